"""The report: one page that needs nothing else, of any study."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from builder import build_results, make_study
from matplotlib.text import Text

import mhclite.evidence.topics  # noqa: F401  registers all exhibits
from mhclite.connections.registry import VARIANTS
from mhclite.evidence.evidence import write_tables
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.findings import (
    ASKED_OF_HC,
    MOST,
    OWN,
    claims_of,
    findings_of,
    main_findings,
)
from mhclite.evidence.report import decided, page, unanswered
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.statistics import DECIDED
from mhclite.evidence.style import style
from mhclite.evidence.tables import NONE, Table
from mhclite.files import read_json, write_json, write_text
from mhclite.study.load import parse_study

ROOT = Path(__file__).parents[3]
MOST_WORDS = 40  # of the notes of a table
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
        self.text = self.code = ""
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
        if self.open and self.open[-1] == "pre":
            self.code += data
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += f" {data}" if self.open[-1] in ("td", "th") else data


def with_drawings(results: Results) -> Results:
    """The results, with a stand-in for each drawing: what is in them does not matter here."""
    for exhibit, _ in shown(FIGURES, results.settings):
        write_text(results.folder / "figures" / f"{exhibit.name}.svg", DRAWING)
    return results


def tables_of(results: Results) -> list[Table]:
    """The study's tables."""
    return [make(results) for _, make in shown(TABLES, results.settings)]


@pytest.fixture(scope="module")
def whole(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The builder's study: two depths, seven variants, three seeds; one run diverged."""
    folder = tmp_path_factory.mktemp("report")
    for name in ("runs", "runs.csv"):
        (folder / name).symlink_to(results.folder / name)
    return with_drawings(replace(results, folder=folder))


@pytest.fixture(scope="module")
def html(whole: Results) -> str:
    return page(whole, tables_of(whole))


# --- one page that needs nothing else -------------------------------------------------------


def test_every_exhibit_is_printed_or_linked(whole: Results, html: str) -> None:
    parsed, settings = Page(html), whole.settings
    for table in tables_of(whole):
        if TABLES[table.name][0].printed_in(settings):
            for cell in {*table.display.to_numpy().ravel(), *table.display.columns} - {""}:
                assert " ".join(cell.split()) in parsed.text, table.name
            assert " ".join(table.notes.split()) in parsed.text
        else:
            assert f"tables/{table.name}.html" in parsed.links
    drawn = [exhibit for exhibit, _ in shown(FIGURES, settings)]
    printed = [exhibit for exhibit in drawn if exhibit.printed_in(settings)]
    linked = [exhibit for exhibit in drawn if f"figures/{exhibit.name}.png" in parsed.links]
    assert linked == [exhibit for exhibit in drawn if exhibit not in printed]
    assert sorted(i["alt"] for i in parsed.images) == sorted(one.alt for one in printed)
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in parsed.images)


def test_page_needs_nothing_and_links_files_beside_it(whole: Results, html: str) -> None:
    outside = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "DATA", html)
    for pattern in (r"https?:", r"[\"'(]//", r"@import", r"url\(", r"<script", r"file:"):
        assert not re.search(pattern, outside), pattern
    parsed = Page(html)
    write_tables(whole)
    for link in parsed.links:
        assert (whole.folder / link).is_file() or link.startswith("figures/"), link
        if link.endswith(".html"):  # a table's own page, which needs nothing either
            assert Page((whole.folder / link).read_text()).links == []
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert {*re.findall(r'aria-labelledby="([^"]+)"', html)} <= {*parsed.ids}
    assert tempfile.gettempdir() not in outside


def test_text_from_the_study_is_escaped_and_origins_are_counted(tmp_path: Path) -> None:
    study = make_study(**SMALL, variants=("residual", "mhc"))
    folder = build_results(tmp_path, study, ())
    content = read_json(folder / "study.json")
    content["title"] = "A <b>title</b> & more"
    content["corpora"]["sotu"]["manifest"]["source"]["description"] = "<script>alert(1)</script>"
    write_json(folder / "study.json", content)
    path = folder / "runs" / "sotu-d1-mhc-s1" / "run.json"
    run = read_json(path)
    run["attempts"][-1]["provenance"]["git"] = {"commit": "e" * 40, "dirty": True}
    run["attempts"].append({**run["attempts"][0], "started": "2026-01-03T23:30:00-02:00"})
    write_json(path, run)
    results = with_drawings(load_results(folder))
    html = page(results, tables_of(results))
    assert "<script" not in html
    assert "A &lt;b&gt;title&lt;/b&gt; &amp; more" in html
    parsed = Page(html)
    assert parse_study(yaml.safe_load(parsed.code)) == study
    commits = f"{'f' * 40} (3 of 4 runs); {'e' * 40} with uncommitted changes (1 of 4 runs)"
    for said in (commits, "Synthetic CPU, 2 cores, 8 GiB memory", "2026-01-01 to 2026-01-04"):
        assert said in parsed.text


# --- what is said ---------------------------------------------------------------------------


def test_the_first_page_says_verdicts_and_nothing_else(whole: Results, html: str) -> None:
    """A claim is told as found if it is decided, and counted once as open if it is not."""
    findings, said = findings_of(whole), Page(html).text
    told = [one["statement"] for one in decided(whole)]
    for one in findings:
        is_told = one.claim.statement in told
        assert not is_told or one.verdict in DECIDED, one.claim.id
        assert is_told or not one.is_main or one.verdict not in DECIDED, one.claim.id
    counts = [int(one["count"].split()[0]) for one in unanswered(whole)]
    open_ones = [one for one in findings if one.verdict in ("not reached", "inconclusive")]
    assert sum(counts) == len(open_ones)
    assert all(one["why"] in said for one in unanswered(whole))
    assert "1 of 42 runs diverged" in said


def test_claims_are_asked_of_a_variant_of_ones_own(whole: Results) -> None:
    """The study as it was collected knows no claim on JPmHC and KromHC."""
    own = ("jpmhc", "kromhc")
    claims = [claim for claim in whole.study["claims"] if claim["variant"] not in own]
    seen = replace(whole, study={**whole.study, "claims": claims})
    asked = [claim for claim in claims_of(seen) if claim.source == OWN]
    assert [claim.variant for claim in asked] == [own[1]] * 3 + [own[0]] * 3
    assert len({claim.id for claim in asked}) == 6
    for claim in asked:
        like = next(one for one in claims_of(whole) if one.id in ASKED_OF_HC
                    and (one.kind, one.reference) == (claim.kind, claim.reference))  # fmt: skip
        assert claim.requires == like.requires
        assert named(claim.statement) - {"mhc"} == {claim.variant}
    assert {claim.id for claim in asked} <= {one.claim.id for one in main_findings(seen)}


# --- studies unlike the published ones ------------------------------------------------------

STUDIES: dict[str, dict[str, Any]] = {
    "the plain residual alone": {
        "variants": ("residual",),
        "seeds": (0, 1),
    },
    "all runs diverged": {**SMALL, "variants": ("residual", "hc", "mhc"), "diverged": True},
    "a norm of its own": {
        **SMALL,
        "variants": ("identity", "mhc_v4", "ohc"),
        "connections": {"final_norm": "head"},
    },
    "rates searched, one condition at one depth": {
        "models": {"d1": 1, "d2": 2},
        "variants": ("residual", "kromhc"),
        "seeds": (0,),
        "critical_rate": {"factors": [2, 8], "halvings": 1, "below_unigram": 0.1},
        "conditions": {
            "aged": {"title": "faster, 5 $", "variants": ["kromhc"], "models": ["d1"],
                     "connections": {"mixing_rate_factor": 3}}
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=STUDIES)
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    options = dict(STUDIES[request.param])
    lost = options.pop("diverged", False)
    study = make_study(**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builder.DIVERGED_STEP", 12)
        folder = build_results(tmp_path_factory.mktemp("odd"), study, list(study.runs()) * lost)
    return load_results(folder)


def said(results: Results) -> Iterator[tuple[str, str]]:
    """All that is said of a study, but captions, which are those of any, and claims, which name
    what they lack."""
    yield "found", " ".join(one["statement"] for one in decided(results))
    yield "open", " ".join(one["why"] for one in unanswered(results))
    for exhibit, write in shown(TABLES, results.settings):
        table = write(results)
        assert len(table.notes.split()) <= MOST_WORDS, exhibit.name
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
def test_any_study_is_shown_and_nothing_named_that_it_lacks(odd: Results) -> None:
    for place, text in said(odd):
        assert named(text) <= {*odd.variants}, (place, text)
        for missing in ("nan", "None", "<NA>"):
            assert not re.search(rf"\b{re.escape(missing)}\b", text), (place, text)
    findings, report = main_findings(odd), page(odd, tables_of(odd))
    assert all(odd.labels[variant] in report for variant in odd.variants)
    # Of claims an answer is printed: no number where the study falls short.
    assert len({one.claim.id for one in findings if not one.is_main}) <= MOST
    for row in TABLES["verdicts"][1](odd).display.to_dict("records"):
        assert not row["Verdict"].startswith("not reached") or row.get("Effect", NONE) == NONE
