"""The report: one page that needs nothing else, of any study."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from builder import build_results, make_study, resolved_of
from matplotlib.text import Text

import mhclite.evidence.topics  # noqa: F401  registers all exhibits
from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.findings import findings_of
from mhclite.evidence.pages import current
from mhclite.evidence.published import publish
from mhclite.evidence.report import HEADLINE, page, paragraph
from mhclite.evidence.report_origin import origin, training_dates
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import style
from mhclite.evidence.tables import Table, counted, listed
from mhclite.evidence.verdicts import DECIDED
from mhclite.files import read_json, write_json, write_text
from mhclite.records import to_json
from mhclite.study.reading import parse_study

VOID = {"meta", "link", "img", "br", "input"}
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg"/>'
SMALL: dict[str, Any] = {"models": {"d1": 1}, "seeds": (0, 1), "steps": 30}


class Page(HTMLParser):
    """Checks that elements are closed in order; gathers text, cells, images, ids and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "img":
            self.images.append(values)
        elif tag == "a":
            self.links.append(values["href"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += f" {data}" if self.open[-1] in ("td", "th") else data


def with_drawings(folder: Path) -> Results:
    """The results, with a stand-in for each drawing: what is in them does not matter here."""
    results = load_results(folder)
    for exhibit, _ in shown(FIGURES, results.settings):
        write_text(folder / "figures" / f"{exhibit.name}.svg", DRAWING)
    return results


def tables_of(results: Results) -> list[Table]:
    """The study's tables."""
    return [make(results) for _, make in shown(TABLES, results.settings)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The builder's study: two depths, seven variants, three seeds; one run diverged."""
    return with_drawings(build_results(tmp_path_factory.mktemp("report")))


@pytest.fixture(scope="module")
def html(whole: Results) -> str:
    return page(whole, tables_of(whole))


# --- one page that needs nothing else -------------------------------------------------------


def test_every_table_and_figure_is_on_the_page(whole: Results, html: str) -> None:
    parsed = Page(html)
    for table in tables_of(whole):
        for cell in {*table.display.to_numpy().ravel(), *table.display.columns} - {""}:
            assert " ".join(cell.split()) in parsed.text, table.name
        assert " ".join(table.notes.split()) in parsed.text
    drawn = shown(FIGURES, whole.settings)
    for exhibit, _ in drawn:
        assert exhibit.caption_for(whole) in parsed.text
    alts = [image["alt"] for image in parsed.images]
    assert sorted(alts) == sorted(exhibit.alt for exhibit, _ in drawn)
    assert alts[0] == FIGURES[HEADLINE][0].alt  # first, whatever the order of the headings
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in parsed.images)


def test_page_refers_to_nothing_outside_itself(html: str) -> None:
    outside = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "DATA", html)
    for pattern in (r"https?:", r"[\"'(]//", r"@import", r"url\(", r"<script", r"file:"):
        assert not re.search(pattern, outside), pattern
    parsed = Page(html)
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    assert len(set(parsed.ids)) == len(parsed.ids)
    for target in re.findall(r'aria-labelledby="([^"]+)"', html):
        assert target in parsed.ids
    assert str(Path(__file__).parents[3]) not in outside
    assert tempfile.gettempdir() not in outside


def test_text_from_the_study_is_escaped(tmp_path: Path) -> None:
    folder = build_results(tmp_path, make_study(**SMALL, variants=("residual", "mhc")), ())
    study = read_json(folder / "study.json")
    study["title"] = "A <b>title</b> & more"
    study["corpora"]["sotu"]["manifest"]["source"]["description"] = "<script>alert(1)</script>"
    write_json(folder / "study.json", study)
    results = with_drawings(folder)
    html = page(results, tables_of(results))
    assert "<script" not in html
    assert "A &lt;b&gt;title&lt;/b&gt; &amp; more" in html
    (block,) = re.findall(r'<pre id="study-file">(.*?)</pre>', html, flags=re.DOTALL)
    written = parse_study(yaml.safe_load(HTMLText(block).text))
    assert written == make_study(**SMALL, variants=("residual", "mhc"))
    (folder / "runs" / "sotu-d1-mhc-s0" / "run.json").unlink()
    with pytest.raises(UserError, match="run sotu-d1-mhc-s0"):
        page(results, [])


class HTMLText(HTMLParser):
    """The text of HTML, as it is."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += data


# --- the paragraph --------------------------------------------------------------------------


def test_the_paragraph_says_verdicts_and_nothing_else(whole: Results) -> None:
    said = paragraph(whole)
    assert len(re.findall(r"\. (?=[A-Z])", said)) < 5
    counts = [one.verdict for one in findings_of(whole)]
    for verdict in set(counts):
        assert f"{counts.count(verdict)} {verdict}" in said
    told = [one for one in findings_of(whole) if one.claim.statement.partition(" (")[0] in said]
    assert all(one.verdict in DECIDED and one.claim.family == "confirmatory" for one in told)
    assert "42 runs" in said
    assert "; 1 diverged" in said


# --- origin ---------------------------------------------------------------------------------


def test_origin_names_the_first_runs_where_they_differ(tmp_path: Path) -> None:
    study = make_study(**SMALL, variants=("residual", "identity", "hc", "mhc"))
    folder = build_results(tmp_path, study, diverged=())
    results = load_results(folder)
    rows = origin(results).display.to_numpy().tolist()
    assert ["Commit", "f" * 40, "all 8"] in rows
    assert ["Hardware", "Synthetic CPU, 2 cores, 8 GiB memory", "all 8"] in rows
    assert training_dates(results) == "2026-01-01"
    for path in folder.glob("runs/*/timing.jsonl"):
        path.unlink()  # published studies have none
    path = folder / "runs" / "sotu-d1-mhc-s1" / "run.json"
    run = read_json(path)
    run["attempts"][-1]["provenance"]["git"] = {"commit": "e" * 40, "dirty": True}
    run["attempts"].append({**run["attempts"][0], "started": "2026-01-03T23:30:00-02:00"})
    write_json(path, run)
    rows = origin(results).display.to_numpy().tolist()
    first = "sotu-d1-residual-s0, sotu-d1-residual-s1, sotu-d1-identity-s0, sotu-d1-identity-s1"
    assert ["Commit", "f" * 40, f"7 of 8: {first} and 3 more"] in rows
    assert ["Commit", f"{'e' * 40} with uncommitted changes", "1 of 8: sotu-d1-mhc-s1"] in rows
    assert training_dates(results) == "2026-01-01 to 2026-01-04"


def test_words() -> None:
    assert counted(1, "seed") == "1 seed"
    assert counted(12_000, "step") == "12,000 steps"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


# --- studies unlike the published ones ------------------------------------------------------

STUDIES: dict[str, dict[str, Any]] = {
    "the plain residual alone": {"variants": ("residual",), "seeds": (0, 1)},
    "iterations without mHC, 90 %": {
        "variants": ("residual", "mhc_v4", "ohc"),
        "seeds": (0, 1),
        "statistics": {"confidence": 0.9},
    },
    "a norm of its own": {
        **SMALL,
        "variants": ("identity", "mhc_lite"),
        "connections": {"final_norm": "head"},
    },
    "rates searched, one condition at one depth": {
        "models": {"d1": 1, "d2": 2},
        "variants": ("residual", "kromhc"),
        "seeds": (0,),
        "critical_rate": {"factors": [2, 8], "halvings": 1, "below_unigram": 0.1},
        "conditions": {
            "aged": {
                "title": "faster, 5 $",
                "variants": ["kromhc"],
                "models": ["d1"],
                "connections": {"mixing_rate_factor": 3},
            }
        },
    },
}


@pytest.fixture(scope="module", params=STUDIES)
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = make_study(**STUDIES[request.param])
    folder = build_results(tmp_path_factory.mktemp("odd"), study, diverged=())
    write_json(folder / "resolved.json", to_json(resolved_of(study, folder.parent)))
    return load_results(folder)


def said(results: Results) -> Iterator[tuple[str, str]]:
    """All that is said of a study, but captions, which are those of any, and claims, which name
    what they lack."""
    yield "paragraph", paragraph(results)
    for exhibit, write in shown(TABLES, results.settings):
        table = write(results)
        yield exhibit.name, " | ".join(table.display.columns)
        if exhibit.heading != "claims":
            yield exhibit.name, " | ".join(table.display.to_numpy().ravel())
    for exhibit, draw in shown(FIGURES, results.settings):
        with style():
            figure = draw(results)
            figure.draw_without_rendering()
            write_text(results.folder / "figures" / f"{exhibit.name}.svg", DRAWING)
        yield exhibit.name, " | ".join(text.get_text() for text in figure.findobj(Text))


def named(text: str) -> set[str]:
    """The variants that a text names."""
    names = set()
    for variant, about in sorted(VARIANTS.items(), key=lambda one: -len(one[1].label)):
        label = rf"(?<![\w-]){re.escape(about.label)}(?![\w-])"
        if re.search(label, text):
            names.add(variant)
        text = re.sub(label, "", text)  # mHC (V4) is not mHC
    return names


@pytest.mark.slow
def test_any_study_is_shown_and_nothing_named_that_it_lacks(odd: Results, tmp_path: Path) -> None:
    """A study of one depth has no figure over depth, also in a page."""
    for place, text in said(odd):
        assert named(text) <= {*odd.variants}, (place, text)
        for missing in ("nan", "None", "<NA>"):
            assert not re.search(rf"\b{re.escape(missing)}\b", text), (place, text)
        if odd.confidence != 0.95:
            assert not re.search("95 % (?:Student|t |interval)", text), (place, text)
    report = page(odd, tables_of(odd))
    assert all(odd.label(variant) in report for variant in odd.variants)
    publish(odd.folder, tmp_path / "published" / "synthetic")
    (tmp_path / "README.md").write_text("<!-- found:synthetic --><!-- /found -->")
    pages = current(tmp_path, tmp_path / "published")
    figure = tmp_path / f"docs/images/synthetic-{HEADLINE}.svg"
    assert (figure in pages) == (len(odd.models) > 1)
    assert (figure.name in pages[tmp_path / "README.md"]) == (len(odd.models) > 1)
