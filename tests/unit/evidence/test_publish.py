"""README and docs: made from published studies, and not stale."""

from __future__ import annotations

from pathlib import Path

import pytest
from builder import build_results, make_study, resolved_of

from mhclite.errors import UserError
from mhclite.evidence.evidence import write_tables
from mhclite.evidence.publish import (
    README_FIGURE,
    current_pages,
    publish,
    readme_blocks,
    rebuild,
    with_blocks,
    with_tables,
    write_docs,
)
from mhclite.evidence.results import load_results
from mhclite.files import write_json
from mhclite.records import to_json

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "results" / "published" / "laptop"


def test_blocks_are_replaced_between_their_marks() -> None:
    page = "a\n<!-- found:begin -->\nold\n<!-- found:end -->\nb"
    assert with_blocks(page, {"found": "new"}) == page.replace("old", "new")
    with pytest.raises(UserError, match="no block between <!-- found:begin"):
        with_blocks("nothing", {"found": "new"})
    with pytest.raises(UserError, match=r"found:end -->$"):
        with_blocks("<!-- found:begin -->\nnot closed", {"found": "new"})


@pytest.mark.slow
def test_readme_is_made_from_the_published_study(tmp_path: Path) -> None:
    """Stale? `make publish`, or `python -m mhclite publish readme` (see the Makefile)."""
    results = rebuild(PUBLISHED, tmp_path / "laptop")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_blocks(readme, readme_blocks(results)) == readme
    drawn = tmp_path / "laptop" / "figures" / f"{README_FIGURE}.svg"
    assert drawn.read_bytes() == (ROOT / "docs" / "images" / drawn.name).read_bytes()


@pytest.mark.slow
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
    write_tables(load_results(folder))
    table = (folder / "tables" / "results.md").read_text().strip()
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


@pytest.mark.slow
def test_tables_in_docs_are_current() -> None:
    """`python -m mhclite publish docs` brings them up to date."""
    for path, page in current_pages(ROOT / "docs", ROOT / "results/published").items():
        assert path.read_text() == page, f"{path} is stale: run `python -m mhclite publish docs`"
