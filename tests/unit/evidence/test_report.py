"""The report: one page that needs nothing else, with the numbers of runs.csv."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from builder import (
    ALL_VARIANTS,
    BIGRAM,
    CLAIMS,
    DIVERGED,
    DIVERGED_STEP,
    UNIGRAM,
    bits_per_byte,
    build_results,
    make_study,
)

from mhclite.cli import STEPS
from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.evidence.claims import load_claims
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.report import HEADLINE, html_of, page, with_minus_signs
from mhclite.evidence.report_matrix import MARKS
from mhclite.evidence.report_methods import counted, listed
from mhclite.evidence.report_origin import origin_rows, rerun_rows, training_dates
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.statistics import paired_differences, summarise
from mhclite.evidence.table_format import NONE, Table
from mhclite.files import read_json, write_json, write_text
from mhclite.study.reading import parse_study

VOID = {"meta", "link", "img", "br", "input"}
DRAWING = '<svg xmlns="http://www.w3.org/2000/svg"/>'
OF_TWO_CORPORA: dict[str, Any] = {"corpora": ("sotu", "other")}
SMALL: dict[str, Any] = {"models": {"d1": 1}, "seeds": (0, 1), "steps": 30}


class Page(HTMLParser):
    """Checks that elements are closed in order; gathers tables, text, images and ids."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[dict[str, str]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.landmarks: set[str] = set()
        self.head_cells: list[dict[str, str]] = []
        self.text = ""
        self._table: list[list[str]] | None = None
        self._cell: str | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "table":
            self._table = self.tables[values["id"].removeprefix("table-")] = []
        elif tag == "tr":
            assert self._table is not None
            self._table.append([])
        elif tag in ("td", "th"):
            self._cell = ""
            if tag == "th":
                self.head_cells.append(values)
        elif tag == "img":
            self.images.append(values)
        elif tag == "a":
            self.links.append(values["href"])
        elif tag in ("header", "nav", "main", "footer"):
            self.landmarks.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            assert self._table is not None
            assert self._cell is not None
            self._table[-1].append(" ".join(self._cell.split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data
        if self._cell is not None:
            self._cell += data


def with_drawings(folder: Path) -> Results:
    """The results, with a stand-in for each drawing: what is in them does not matter here."""
    results = load_results(folder)
    for exhibit, _ in shown(FIGURES, results.settings):
        write_text(folder / "figures" / f"{exhibit.name}.svg", DRAWING)
    return results


def tables_of(results: Results) -> list[Table]:
    """The study's tables."""
    return [make(results) for _, make in shown(TABLES, results.settings)]


def page_of(results: Results) -> str:
    """The page of a study."""
    return page(results, tables_of(results))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The builder's study: two depths, seven variants, three seeds; one run diverged."""
    return with_drawings(build_results(tmp_path_factory.mktemp("report")))


@pytest.fixture(scope="module")
def tables(whole: Results) -> list[Table]:
    """Its tables."""
    return tables_of(whole)


@pytest.fixture(scope="module")
def parsed(whole: Results, tables: list[Table]) -> Page:
    """Its page, made once for the tests of this file."""
    return Page(page(whole, tables))


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Page of a study of two corpora, two depths and three seeds; one run diverged."""
    study = make_study(**OF_TWO_CORPORA)
    return page_of(with_drawings(build_results(tmp_path_factory.mktemp("corpora"), study)))


def rows_by_name(parsed: Page, table: str) -> dict[tuple[str, str], dict[str, str]]:
    """Rows of a table by the heading of their group and their name."""
    headings, *rows = parsed.tables[table]
    found = {}
    group = ""
    for row in rows:
        if len(row) == 1:  # heads a group
            group = row[0]
            continue
        cells = dict(zip(headings, row, strict=True))
        found[group, row[0]] = cells
    assert len(found) == sum(len(row) > 1 for row in rows)
    return found


def of_model(results: Results, model: str, variant: str) -> tuple[str, str]:
    """How `rows_by_name` calls a cell of a study with one corpus."""
    return f"{model}, {results.model_label(model)}", f"{VARIANTS[variant].label} {model}"


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_losses_on_the_page_are_those_of_runs_csv(whole: Results, parsed: Page) -> None:
    runs = pd.read_csv(whole.folder / "runs.csv")
    completed = runs[runs["status"] == "completed"]
    found = rows_by_name(parsed, "results")
    residual = completed[completed["variant"] == "residual"].set_index(["model", "seed"])
    for (model, variant), cell in completed.groupby(["model", "variant"]):
        row = found[of_model(whole, str(model), str(variant))]
        mean, half = row["Validation loss (nats/token)"].split(" ± ")
        assert mean == f"{cell['validation_loss'].mean():.4f}"
        assert row["Bits per byte"].startswith(f"{cell['validation_bits_per_byte'].mean():.4f} ± ")
        assert row["Seeds (n)"] == str(len(cell))
        assert row["Diverged"] == str(len(whole.seeds) - len(cell))
        assert float(half) > 0
        if variant != "residual":
            base = residual.loc[[(model, s) for s in cell["seed"]], "validation_loss"].to_numpy()
            difference = (cell["validation_loss"] - base).mean()
            text = row["Difference to residual (nats/token)"]
            assert text.startswith(f"{difference:.4f} ± ".replace("-", "−"))
    assert found["", "Unigram baseline"]["Bits per byte"] == f"{bits_per_byte(UNIGRAM):.4f}"
    bigram = found["", "Bigram baseline"]
    assert bigram["Validation loss (nats/token)"] == f"{BIGRAM:.4f}"


@pytest.mark.slow
def test_every_run_has_its_loss_on_the_page(whole: Results, parsed: Page) -> None:
    found = rows_by_name(parsed, "results_seeds")
    runs = pd.read_csv(whole.folder / "runs.csv")
    assert len(runs) == 2 * 7 * 3
    for run in runs.to_dict("records"):
        text = found[of_model(whole, run["model"], run["variant"])][f"Seed {run['seed']}"]
        expected = f"{run['validation_loss']:.4f}"
        assert text == ("diverged" if run["status"] == "diverged" else expected)
    assert f"Diverged: {DIVERGED} at step {DIVERGED_STEP}." in parsed.text


@pytest.mark.slow
def test_intervals_on_the_page_are_those_of_the_statistics(whole: Results, parsed: Page) -> None:
    found = rows_by_name(parsed, "results")
    for table, column in (
        (summarise(whole.runs), "Validation loss (nats/token)"),
        (paired_differences(whole.runs), "Difference to residual (nats/token)"),
    ):
        assert len(table)
        for row in table.to_dict("records"):
            text = found[of_model(whole, row["model"], row["variant"])][column]
            expected = f"{row['mean']:.4f} ± {row['half_width']:.4f}".replace("-", "−")
            assert text.removesuffix(" (n = 2)") == expected


@pytest.mark.slow
def test_all_tables_are_there_as_they_are_in_the_files(tables: list[Table], parsed: Page) -> None:
    for table in tables:
        shown = html_of(table)
        rows = [
            row
            for group in shown.groups
            for row in [
                *([[" ".join(line.text for line in group.heading)]] if group.heading else []),
                *([f"{cell.text} {cell.model}".strip() for cell in row] for row in group.rows),
            ]
        ]
        assert parsed.tables[table.name] == [[cell.text for cell in shown.headings], *rows]
        words = " ".join(" ".join(row) for row in rows)
        for column in table.display.columns.drop(["Corpus", "Model"], errors="ignore"):
            for text in table.display[column]:
                assert with_minus_signs(text) in words
        assert " ".join(table.notes.split()) in " ".join(parsed.text.split())


def test_rows_of_a_table_stand_under_what_they_have_in_common() -> None:
    table = Table(
        name="t",
        title="T",
        row_head="Variant",
        notes="",
        data=pd.DataFrame(),
        display=pd.DataFrame(
            [
                ["a", "d1", "1", "mHC", "-0.1", "x"],
                ["", "", "", "HC", "2e-07", "y"],
                ["", "d2", "2", "mHC", NONE, ""],
                ["b", "d1", "1", "mHC", "3", "z"],
            ],
            columns=["Corpus", "Model", "Layers", "Variant", "Loss", "Note"],
        ),
        numeric=("Loss",),
    )
    shown = html_of(table)
    assert [cell.text for cell in shown.headings] == ["Variant", "Loss", "Note"]
    assert [[line.text for line in group.heading] for group in shown.groups] == [
        ["a, d1, 1 layer"],
        ["a, d2, 2 layers"],  # alone, and says nothing: no row
        ["b, d1, 1 layer"],
    ]
    assert [[[cell.text for cell in row] for row in group.rows] for group in shown.groups] == [
        [["mHC", "−0.1", "x"], ["HC", "2e−07", "y"]],
        [],
        [["mHC", "3", "z"]],
    ]
    assert shown.groups[0].rows[1][0].model == "d1"  # a phone says it beside the name
    assert shown.wordy
    assert not shown.wide


def test_a_claim_heads_its_model_sizes(whole: Results, tables: list[Table]) -> None:
    """Claim and verdict in full width; below them the model that decides, then the deepest."""
    (table,) = (table for table in tables if table.name == "claims")
    claims = load_claims(CLAIMS)
    groups = html_of(table).groups
    assert len(groups) == len(claims)
    deepest_first = sorted(whole.models, key=whole.n_layer, reverse=True)
    for claim, group in zip(claims, groups, strict=True):
        statement, said = (line.text for line in group.heading)
        assert statement.startswith(with_minus_signs(claim.statement))
        assert said.split(":")[0] in MARKS
        models = [row[0].text for row in group.rows]
        assert set(models) <= {"all", *deepest_first}
        assert models[1:] == [model for model in deepest_first if model in models[1:]]


def test_minus_signs() -> None:
    assert with_minus_signs("-0.0118 ± 0.0063") == "−0.0118 ± 0.0063"
    assert with_minus_signs("2.20e-07") == "2.20e−07"  # a line could break at a hyphen
    assert with_minus_signs("mHC-2, 2026-01-02") == "mHC-2, 2026-01-02"


def test_the_first_screen_is_what_was_found(html: str) -> None:
    """Words, claims, figure, then size and words; only then the results."""
    order = ["found", "claims", "headline", "scale", "words", "results", "figures", "tables"]
    assert re.findall(r'<section id="(\w+)"', html)[: len(order)] == order
    # Folded away on a screen, printed all the same.
    assert "details::details-content { content-visibility: visible" in html
    matrix = html[html.index('<table id="table-matrix"') :].split("</table>")[0]
    claims = 2 * len(load_claims(CLAIMS))  # two corpora
    folded = [int(count) for count in re.findall(r"<summary>(\d+) more not tested", matrix)]
    assert folded
    assert matrix.count('<tr class="marks">') == claims - sum(folded)
    assert matrix.count("<li>") == sum(folded)
    assert matrix.count("<details>") == claims - sum(folded) + len(folded)
    for mark in MARKS.values():
        assert mark.symbol not in "".join(m.symbol for m in MARKS.values() if m is not mark)


# --- one page that needs nothing else -----------------------------------------------------------


def test_page_refers_to_nothing_outside_itself(html: str) -> None:
    outside = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "DATA", html)
    for pattern in (
        r"https?:",
        r"[\"'(]//",
        r"@import",
        r"url\(",
        r"<script",
        r"<iframe",
        r"file:",
    ):
        assert not re.search(pattern, outside), pattern
    parsed = Page(html)
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    assert len(parsed.links) == 11
    assert str(Path(__file__).parents[3]) not in outside
    assert tempfile.gettempdir() not in outside


def test_page_is_well_formed_and_accessible(html: str) -> None:
    parsed = Page(html)
    assert html.startswith("<!DOCTYPE html>\n<html lang=")
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert parsed.landmarks == {"header", "nav", "main", "footer"}
    assert all(cell["scope"] in ("col", "row", "rowgroup") for cell in parsed.head_cells)
    for target in re.findall(r'aria-labelledby="([^"]+)"', html):
        assert target in parsed.ids
    # The figure of the project stands first, whatever the order of the headings.
    expected = sorted(
        shown(FIGURES, make_study().model_dump()), key=lambda entry: entry[0].name != HEADLINE
    )
    for image, (exhibit, _) in zip(parsed.images, expected, strict=True):
        assert image["alt"] == exhibit.alt
        assert image["src"].startswith("data:image/svg+xml;base64,")


def test_every_figure_has_its_caption_and_files(whole: Results, parsed: Page) -> None:
    text = parsed.text
    for exhibit, _ in shown(FIGURES, whole.settings):
        assert exhibit.title in text
        assert exhibit.caption_for(whole) in text
        assert f"figures/{exhibit.name}.png, figures/{exhibit.name}.svg" in text


@pytest.mark.slow
def test_text_from_the_study_is_escaped(tmp_path: Path) -> None:
    folder = build_results(tmp_path, make_study(**SMALL), diverged=())
    study = read_json(folder / "study.json")
    study["title"] = "A <b>title</b> & more"
    study["corpora"]["sotu"]["manifest"]["source"]["description"] = "<script>alert(1)</script>"
    write_json(folder / "study.json", study)
    html = page_of(with_drawings(folder))
    assert "<script" not in html
    assert "A &lt;b&gt;title&lt;/b&gt; &amp; more" in html


# --- methods and origin -------------------------------------------------------------------------


@pytest.mark.slow
def test_methods_follow_the_settings(whole: Results, tables: list[Table]) -> None:
    settings = whole.settings
    changes = {
        "training": {
            "steps": 71_003,
            "batch_size": 31,
            "warmup_steps": 29,
            "min_lr_ratio": 0.123,
            "betas": [0.81, 0.82],
            "weight_decay": 0.456,
            "grad_clip": 0.789,
            "precision": "bf16",
            "evaluation_interval": 37,
            "evaluation_sequences": 41,
            "threads": 43,
            "processes": 47,
        },
        "connections": {"n_streams": 53, "sinkhorn_iterations": 59},
        "probe": {"sequences": 67},
        "stability": {"spike_window": 73, "spike_sigmas": 7.9, "fluctuation_window": 83},
        "throughput": {"rounds": 89, "warmup_rounds": 97},
        "statistics": {"confidence": 0.875},
    }
    changed = {**settings, **{name: settings[name] | part for name, part in changes.items()}}
    other = replace(whole, study={**whole.study, "study": changed})
    text = Page(page(other, tables)).text
    methods = text[text.index("Corpus sotu") : text.rindex("How to rerun")]
    for part in changes.values():
        for name, value in part.items():
            if name == "confidence":
                value = "87.5 %"
            for number in value if isinstance(value, list) else [value]:
                shown = f"{number:,}" if isinstance(number, int) else str(number)
                assert shown in methods, name


def test_corpus_is_described_from_its_manifest(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert (
        "Synthetic text. License: public domain. Training: 100 documents, 3,000,000 bytes of text, "
        "1,000,000 tokens. Validation: 100 documents, 3,000,000 bytes of text, 1,000,000 tokens. "
        "Documents are assigned by sha256 of the text; validation fraction 0.05." in text
    )
    assert "42 training runs over 1 corpus" not in text
    assert "84 training runs over 2 corpora (sotu and other)" in text
    assert "; 1 diverged." in text


@pytest.mark.slow
def test_study_file_on_the_page_is_the_study(html: str) -> None:
    (block,) = re.findall(r'<pre id="study-file">(.*?)</pre>', html, flags=re.DOTALL)
    written = parse_study(yaml.safe_load(Page(f"<pre>{block}</pre>").text))
    assert written == make_study(**OF_TWO_CORPORA)


def test_origin_names_the_runs_where_they_differ(tmp_path: Path) -> None:
    study = make_study(**SMALL, variants=("residual", "mhc"))
    folder = build_results(tmp_path, study, diverged=())
    results = load_results(folder)
    _, rows = origin_rows(results)
    assert ["Commit", "f" * 40, "all 4"] in rows
    assert ["Versions", "python 3.11.0, torch 2.13.0", "all 4"] in rows
    assert ["Hardware", "Synthetic CPU, 2 cores, 8 GiB memory", "all 4"] in rows

    path = folder / "runs" / "sotu-d1-mhc-s1" / "run.json"
    run = read_json(path)
    provenance = run["attempts"][-1]["provenance"]
    provenance["git"] = {"commit": "e" * 40, "dirty": True}
    provenance["hardware"] |= {"gpu": "A GPU", "gpus": 8}
    write_json(path, run)
    _, rows = origin_rows(results)
    others = "sotu-d1-residual-s0, sotu-d1-residual-s1, sotu-d1-mhc-s0"
    assert ["Commit", "f" * 40, f"3 of 4: {others}"] in rows
    assert ["Commit", f"{'e' * 40} with uncommitted changes", "1 of 4: sotu-d1-mhc-s1"] in rows
    gpu = "8 × A GPU, Synthetic CPU, 2 cores, 8 GiB memory"
    assert ["Hardware", gpu, "1 of 4: sotu-d1-mhc-s1"] in rows


def test_origin_names_the_first_of_many_runs(tmp_path: Path) -> None:
    study = make_study(**SMALL, variants=("residual", "identity", "hc", "mhc"))
    results = load_results(build_results(tmp_path, study, diverged=()))
    path = results.folder / "runs" / "sotu-d1-mhc-s1" / "run.json"
    run = read_json(path)
    run["attempts"][-1]["provenance"]["git"]["commit"] = "e" * 40
    write_json(path, run)
    _, rows = origin_rows(results)
    first = "sotu-d1-residual-s0, sotu-d1-residual-s1, sotu-d1-identity-s0, sotu-d1-identity-s1"
    assert ["Commit", "f" * 40, f"7 of 8: {first} and 3 more"] in rows


def test_days_of_training_are_known_without_timing_files(tmp_path: Path) -> None:
    """Published studies have none."""
    folder = build_results(tmp_path, make_study(**SMALL), diverged=())
    for path in folder.glob("runs/*/timing.jsonl"):
        path.unlink()
    results = load_results(folder)
    assert training_dates(results) == "2026-01-01"
    path = folder / "runs" / "sotu-d1-mhc-s1" / "run.json"
    run = read_json(path)
    run["attempts"].append({**run["attempts"][0], "started": "2026-01-03T23:30:00-02:00"})
    write_json(path, run)
    assert training_dates(results) == "2026-01-01 to 2026-01-04"
    assert ["Training begun (UTC)", "2026-01-01 to 2026-01-04", "all 14"] in origin_rows(results)[1]


def test_commands_to_rerun_exist(results: Results) -> None:
    _, rows = rerun_rows(results)
    steps = [match[1] for row in rows if (match := re.search(r"mhclite (\w+)", row[2]))]
    assert steps == ["evidence"]
    assert set(steps) <= STEPS.keys()
    assert all("results/synthetic" in row[1] for row in rows)


def test_report_says_what_is_corrected_for_the_number_of_tests(parsed: Page) -> None:
    text = " ".join(parsed.text.split())
    methods = text[text.index("Statistics 3 seeds") :]
    assert "The p values of the claims are corrected over a confirmatory family" in methods
    assert "one wrong verdict of a difference is at most 5 %, and as much for" in methods
    assert "intervals are not corrected" in methods
    assert "Nothing is corrected" not in methods


def test_words() -> None:
    assert counted(1, "seed") == "1 seed"
    assert counted(12_000, "step") == "12,000 steps"
    assert counted(2, "process", "processes") == "2 processes"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


# --- pieces that are missing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "all_diverge"),
    [
        ({"seeds": (7,)}, False),
        ({"variants": ("residual", "mhc_lite")}, False),
        ({"variants": ("mhc", "jpmhc")}, False),
        ({"variants": ("residual",)}, False),
        ({"variants": ALL_VARIANTS}, True),
    ],
    ids=["one seed", "no mhc", "no residual", "residual only", "all diverge"],
)
def test_page_of_an_unusual_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], all_diverge: bool
) -> None:
    monkeypatch.setattr("builder.DIVERGED_STEP", 12)
    study = make_study(**(SMALL | options))
    diverged = list(study.runs()) if all_diverge else []
    parsed = Page(page_of(with_drawings(build_results(tmp_path, study, diverged=diverged))))
    text = parsed.text
    for missing in ("nan", "None", "<NA>", "inf"):
        assert not re.search(rf"\b{re.escape(missing)}\b", text[: text.rindex("How to rerun")])
    assert len(parsed.tables["results_seeds"]) == 2 + len(study.variants)  # and the size above
    assert ("With a single seed there is no interval" in text) == (len(study.seeds) == 1)
    assert ("Sinkhorn-Knopp iterations." in text) == ("mhc" in study.variants)
    if all_diverge:
        assert "; 14 diverged." in text
        assert "diverged" in parsed.tables["results_seeds"][2]


@pytest.mark.slow
def test_missing_run_description_is_a_user_error(tmp_path: Path) -> None:
    folder = build_results(tmp_path, make_study(**SMALL), diverged=())
    (folder / "runs" / "sotu-d1-hc-s0" / "run.json").unlink()
    with pytest.raises(UserError, match="run sotu-d1-hc-s0"):
        page_of(with_drawings(folder))
