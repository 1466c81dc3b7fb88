"""Published results: everything again without training, and a README that is not stale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builder import build_results, make_study, resolved_of

from mhclite.errors import UserError
from mhclite.evidence.evidence import write
from mhclite.evidence.publish import (
    END,
    README_FIGURE,
    current_pages,
    publish,
    readme_block,
    rebuild,
    with_block,
    with_tables,
    write_docs,
)
from mhclite.evidence.results import load_results
from mhclite.files import write_json
from mhclite.records import to_json

pytestmark = pytest.mark.slow  # its fixtures alone take ten seconds

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "results" / "published" / "laptop"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete synthetic study as Snakemake leaves it."""
    results = tmp_path_factory.mktemp("published")
    study = make_study(models={"d1": 1}, variants=("residual", "mhc"), seeds=(0, 1))
    folder = build_results(results, study, diverged=())
    write_json(folder / "resolved.json", to_json(resolved_of(study, results)))
    write(folder)
    return folder


@pytest.mark.slow
def test_rebuilt_is_what_was_published(folder: Path, tmp_path: Path) -> None:
    publish(folder, tmp_path / "kept")
    kept = sorted(p.name for p in (tmp_path / "kept/runs/sotu-d1-mhc-s0").iterdir())
    assert kept == ["metrics.jsonl", "mixing.jsonl", "run.json", "summary.json"]
    rebuild(tmp_path / "kept", tmp_path / "again")
    for path in (path for kind in ("figures", "tables") for path in (folder / kind).iterdir()):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert (tmp_path / "again/report.html").is_file()


def test_an_unfinished_study_is_not_published(folder: Path, tmp_path: Path) -> None:
    resolved = json.loads((folder / "resolved.json").read_text())
    resolved["runs"]["sotu-d1-mhc-s9"] = resolved["runs"]["sotu-d1-mhc-s1"]
    write_json(tmp_path / "resolved.json", resolved)
    with pytest.raises(UserError, match="is not finished"):
        publish(tmp_path, tmp_path / "kept")


def test_readme_block(folder: Path) -> None:
    results = load_results(folder)
    block = readme_block(results)
    row = next(line for line in block.splitlines() if line.startswith("| mHC |"))
    mean = results.runs.loc[results.runs["variant"] == "mhc", "validation_loss"].mean()
    assert f"{mean:.3f} ±" in row
    assert with_block(f"a\n<!-- results:begin -->\nold\n{END}\nb", "new").splitlines() == [
        "a",
        "<!-- results:begin -->",
        "new",
        END,
        "b",
    ]
    with pytest.raises(UserError, match="no block"):
        with_block("nothing", "new")


@pytest.mark.slow
def test_readme_is_made_from_the_published_study(tmp_path: Path) -> None:
    """Stale? `make publish`, or `python -m mhclite publish readme` (see the Makefile)."""
    results = rebuild(PUBLISHED, tmp_path / "laptop")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_block(readme, readme_block(results)) == readme
    drawn = tmp_path / "laptop" / "figures" / f"{README_FIGURE}.svg"
    assert drawn.read_bytes() == (ROOT / "docs" / "images" / drawn.name).read_bytes()


def test_tables_in_docs_are_written_from_published_studies(tmp_path: Path) -> None:
    results, published, docs = tmp_path / "results", tmp_path / "published", tmp_path / "docs"
    study = make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[0, 1])
    folder = build_results(results, study, diverged=())
    write_json(folder / "resolved.json", to_json(resolved_of(study, results)))
    publish(folder, published / "synthetic")
    docs.mkdir()
    page = docs / "page.md"
    page.write_text("before <!-- table:synthetic/results -->stale<!-- /table --> after\n")
    (docs / "other.md").write_text("no table\n")

    assert write_docs(docs, published) == [page]
    table = (write(folder).folder / "tables" / "results.md").read_text().strip()
    marks = ("<!-- table:synthetic/results -->", "<!-- /table -->")
    assert page.read_text() == f"before {marks[0]}\n\n{table}\n\n{marks[1]} after\n"
    assert write_docs(docs, published) == []

    page.write_text("<!-- table:synthetic/nothing --><!-- /table -->")
    with pytest.raises(UserError, match="'nothing', which study 'synthetic' has not"):
        write_docs(docs, published)
    page.write_text("<!-- table:unknown/results --><!-- /table -->")
    with pytest.raises(UserError, match=r"study 'unknown': .*unknown is missing"):
        write_docs(docs, published)


@pytest.mark.parametrize("rest", ["kept\n", "kept\n<!-- table:s/u -->\nold\n<!-- /table -->\n"])
def test_a_mark_that_is_not_closed_loses_no_text(rest: str) -> None:
    with pytest.raises(UserError, match="s/t --> is not closed"):
        with_tables(f"<!-- table:s/t -->\nold\n{rest}", {("s", "t"): "new", ("s", "u"): "new"})


def test_tables_in_docs_are_current() -> None:
    """`python -m mhclite publish docs` brings them up to date."""
    for path, page in current_pages(ROOT / "docs", ROOT / "results/published").items():
        assert path.read_text() == page, f"{path} is stale: run `python -m mhclite publish docs`"
