"""README and docs/: made from published studies, and not stale."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from builder import build_results, make_study, resolved_of

from mhclite.errors import UserError
from mhclite.evidence.evidence import write_tables
from mhclite.evidence.exhibits import FIGURES
from mhclite.evidence.findings import findings_of
from mhclite.evidence.publish import FIGURE, current, publish, with_texts, write_pages
from mhclite.evidence.report import verdict_counts
from mhclite.evidence.results import load_results
from mhclite.evidence.style import save, style
from mhclite.files import write_json
from mhclite.measure.files import read_probe
from mhclite.records import to_json
from mhclite.runs.parquet import STUDY, unpack

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_pages_are_written_from_published_studies(tmp_path: Path) -> None:
    results, published, docs = tmp_path / "results", tmp_path / "published", tmp_path / "docs"
    study = make_study(models={"d2": 2, "d4": 4}, variants=["residual", "mhc"], seeds=[0, 1])
    folder = build_results(results, study, diverged=())
    write_json(folder / "resolved.json", to_json(resolved_of(study, results)))
    publish(folder, published / "synthetic")
    docs.mkdir()
    readme, page = tmp_path / "README.md", docs / "page.md"
    figure = docs / "images" / f"synthetic-{FIGURE}.svg"
    readme.write_text("a <!-- found:synthetic -->x<!-- /found --> b\n")
    page.write_text("no mark\n")

    assert write_pages(tmp_path, published) == sorted([readme, figure])
    made = load_results(folder)
    write_tables(made)
    with style():
        save(FIGURES[FIGURE][1](made), tmp_path / "drawn")
    assert (folder / "tables" / "overview.md").read_text().strip() in readme.read_text()
    assert verdict_counts(findings_of(made)) in readme.read_text()
    assert readme.read_text().endswith("<!-- /found --> b\n")
    assert figure.read_bytes() == (tmp_path / "drawn.svg").read_bytes()
    assert write_pages(tmp_path, published) == []

    page.write_text("<!-- found:unknown --><!-- /found -->")
    with pytest.raises(UserError, match=r"study 'unknown': .*unknown is missing"):
        write_pages(tmp_path, published)


def test_a_mark_that_is_not_closed_loses_no_text() -> None:
    page = "<!-- found:s -->\nold\nkept\n<!-- found:u -->\nold\n<!-- /found -->\n"
    with pytest.raises(UserError, match="found:s --> is not closed"):
        with_texts(page, {"s": "new", "u": "new"})


@pytest.mark.exhaustive
def test_published_probes_are_possible(tmp_path: Path) -> None:
    """Those of earlier versions are read."""
    seen = 0
    for packed in (ROOT / "results/published").glob(f"*/{STUDY}"):
        unpack(packed, tmp_path / packed.parent.name)
    for path in sorted(tmp_path.glob("*/probes/*.json")):
        probe = read_probe(path, path.stem)
        seen += 1
        if probe.mixing is not None:
            assert math.isfinite(probe.mixing.single.error + probe.mixing.product.error), path
    assert seen > 400


@pytest.mark.exhaustive
def test_pages_are_current() -> None:
    """`python -m mhclite publish pages` brings them up to date. Their numbers: test_filled.py."""
    for path, text in current(ROOT, ROOT / "results/published").items():
        assert path.read_text() == text, f"{path} is stale: run `python -m mhclite publish pages`"
