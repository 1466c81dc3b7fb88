"""Published results: everything again without training; README and docs/ that are not stale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from builder import build_results, make_study, resolved_of

from mhclite.errors import UserError
from mhclite.evidence import pages
from mhclite.evidence.evidence import write
from mhclite.evidence.findings import claims_of, evaluate
from mhclite.evidence.pages import (
    FIGURE,
    Mark,
    current,
    found_block,
    losses_block,
    with_texts,
    write_pages,
)
from mhclite.evidence.published import publish, rebuild
from mhclite.evidence.report_found import found
from mhclite.evidence.results import Results, load_results
from mhclite.files import write_json
from mhclite.records import to_json

pytestmark = pytest.mark.slow  # its fixtures alone take ten seconds

ROOT = Path(__file__).parents[3]


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


def test_blocks_of_the_readme(folder: Path) -> None:
    results = load_results(folder)
    row = next(line for line in losses_block(results).splitlines() if line.startswith("| mHC |"))
    mean = results.runs.loc[results.runs["variant"] == "mhc", "validation_loss"].mean()
    assert f"{mean:.3f} ±" in row
    said = found(results, evaluate(results, claims_of(results)), "sotu")
    block = found_block(results)
    assert all(sentence in block for sentence in [*said.numbers, *said.limits])
    assert "(docs/images/synthetic-depth.svg)" in block


def test_pages_are_written_from_published_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, published, docs = tmp_path / "results", tmp_path / "published", tmp_path / "docs"
    study = make_study(models={"d2": 2, "d4": 4}, variants=["residual", "mhc"], seeds=[0, 1])
    folder = build_results(results, study, diverged=())
    write_json(folder / "resolved.json", to_json(resolved_of(study, results)))
    publish(folder, published / "synthetic")
    made = write(folder)

    def rebuilt(_published: Path, out: Path) -> Results:  # is what was published: tested above
        shutil.copytree(folder, out)
        return made

    monkeypatch.setattr(pages, "rebuild", rebuilt)
    docs.mkdir()
    readme, page = tmp_path / "README.md", docs / "page.md"
    figure = docs / "images" / f"synthetic-{FIGURE}.svg"
    readme.write_text(
        "a <!-- losses:synthetic --><!-- /losses -->, <!-- found:synthetic -->x<!-- /found --> b\n"
    )
    page.write_text("before <!-- table:synthetic/results -->stale<!-- /table --> after\n")
    (docs / "other.md").write_text("no table\n")

    assert write_pages(tmp_path, published) == sorted([readme, figure, page])
    table = (folder / "tables" / "results.md").read_text().strip()
    marks = ("<!-- table:synthetic/results -->", "<!-- /table -->")
    assert page.read_text() == f"before {marks[0]}\n\n{table}\n\n{marks[1]} after\n"
    assert losses_block(made) in readme.read_text()
    assert readme.read_text().endswith("<!-- /found --> b\n")
    assert figure.read_bytes() == (folder / "figures" / f"{FIGURE}.svg").read_bytes()
    assert write_pages(tmp_path, published) == []

    page.write_text("<!-- table:synthetic/nothing --><!-- /table -->")
    with pytest.raises(UserError, match="'nothing', which study 'synthetic' has not"):
        write_pages(tmp_path, published)
    page.write_text("<!-- table:unknown/results --><!-- /table -->")
    with pytest.raises(UserError, match=r"study 'unknown': .*unknown is missing"):
        write_pages(tmp_path, published)


@pytest.mark.parametrize("rest", ["kept\n", "kept\n<!-- table:s/u -->\nold\n<!-- /table -->\n"])
def test_a_mark_that_is_not_closed_loses_no_text(rest: str) -> None:
    texts = {Mark("table", "s", "t"): "new", Mark("table", "s", "u"): "new"}
    with pytest.raises(UserError, match="s/t --> is not closed"):
        with_texts(f"<!-- table:s/t -->\nold\n{rest}", texts)


@pytest.mark.slow
def test_pages_are_current() -> None:
    """`python -m mhclite publish pages` brings them up to date."""
    for path, text in current(ROOT, ROOT / "results/published").items():
        assert path.read_text() == text, f"{path} is stale: run `python -m mhclite publish pages`"
