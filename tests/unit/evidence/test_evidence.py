"""The whole step on one study: every file, the same bytes each time, kept and rebuilt.

The study is drawn once for all tests of this file, which read it only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from builder import build_results, make_study, resolved_of

from mhclite import cli
from mhclite.errors import UserError
from mhclite.evidence import style
from mhclite.evidence.evidence import found_text, write
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.findings import findings_of
from mhclite.evidence.publish import FIGURE, current, publish, rebuild, with_texts, write_pages
from mhclite.evidence.report import verdict_counts
from mhclite.evidence.results import Results
from mhclite.files import write_json
from mhclite.records import to_json
from mhclite.runs.parquet import STUDY, unpack

pytestmark = pytest.mark.slow  # its fixture alone takes ten seconds

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Written:
    """A complete synthetic study as Snakemake leaves it."""

    folder: Path
    results: Results
    files: dict[str, bytes]  # what the step wrote, by path in the folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    results = tmp_path_factory.mktemp("evidence")
    study = make_study(
        models={"d1": 1, "d2": 2}, variants=("residual", "hc", "mhc"), seeds=(0, 1), steps=30
    )
    folder = build_results(results, study, diverged=())
    write_json(folder / "resolved.json", to_json(resolved_of(study, results)))
    before = files_of(folder)
    loaded = write(folder)
    files = {path: content for path, content in files_of(folder).items() if path not in before}
    return Written(folder, loaded, files)


def test_every_file_comes_from_the_registry(written: Written) -> None:
    settings = written.results.settings
    exhibits = [exhibit for exhibit, _ in (*shown(FIGURES, settings), *shown(TABLES, settings))]
    files = {file for exhibit in exhibits for file in (*exhibit.files, exhibit.caption_file)}
    assert written.files.keys() == files | {"report.html", "found.txt"}
    assert written.files["found.txt"].decode() == found_text(written.results)
    for exhibit in exhibits:
        caption = written.files[exhibit.caption_file].decode()
        assert caption == exhibit.caption_for(written.results)
        if exhibit.kind == "figure":
            png, svg = (written.files[file] for file in exhibit.files)
            assert png.startswith(b"\x89PNG\r\n\x1a\n")
            assert int.from_bytes(png[16:20]) == style.PAGE_WIDTH * style.PNG_DPI
            assert svg.rstrip().endswith(b"</svg>")


# Of a user's own: nothing of it shows in a figure.
MATPLOTLIBRC = """
font.size: 30
axes.facecolor: red
text.usetex: True
savefig.bbox: tight
backend: module://nowhere
"""


@pytest.mark.exhaustive
def test_another_process_writes_the_same_bytes(written: Written, tmp_path: Path) -> None:
    """With another hash seed (nothing may depend on the order of a set), locale, time zone and
    settings of matplotlib."""
    before = files_of(written.folder)
    (tmp_path / "matplotlibrc").write_text(MATPLOTLIBRC)
    subprocess.run(
        [sys.executable, "-W", "error", "-m", "mhclite", "evidence", "--results", written.folder],
        env={"PYTHONHASHSEED": "12345", "PATH": "", "PYTHONPATH": str(ROOT / "src"),
             "MPLBACKEND": "module://matplotlib_inline.backend_inline", "LC_ALL": "C",
             "MATPLOTLIBRC": str(tmp_path), "TZ": "Asia/Tokyo"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )  # fmt: skip
    again = files_of(written.folder)
    assert again.keys() == before.keys()  # and nothing half written is left
    assert [path for path in before if again[path] != before[path]] == []


@pytest.mark.exhaustive
def test_rebuilt_is_what_was_published(written: Written, tmp_path: Path) -> None:
    publish(written.folder, tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        STUDY, "runs.csv", "claims.csv",
    }  # fmt: skip
    unpack(tmp_path / "kept" / STUDY, tmp_path / "files")
    kept = sorted(p.name for p in (tmp_path / "files/runs/sotu-d1-mhc-s0").iterdir())
    assert kept == ["metrics.jsonl", "mixing.jsonl", "run.json", "summary.json"]
    rebuild(tmp_path / "kept", tmp_path / "again")
    for path, content in written.files.items():
        if path.startswith(("figures/", "tables/")):
            assert (tmp_path / "again" / path).read_bytes() == content, path
    assert (tmp_path / "again/report.html").is_file()


@pytest.mark.parametrize("action", ["make", "rebuild"])
def test_a_study_that_is_not_there(
    action: str, written: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a name mistyped in `make figures STUDY=` or `make publish STUDY=`."""
    option = {"make": "--results", "rebuild": "--published"}[action]
    publish(written.folder, tmp_path / "synthetic")
    nowhere = str(tmp_path / "nosuch")
    assert cli.main(["publish", action, option, nowhere, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert nowhere in line
    assert action == "make" or written.folder.name in line  # what there is
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic"]


def test_an_unfinished_study_is_not_published(written: Written, tmp_path: Path) -> None:
    resolved = json.loads((written.folder / "resolved.json").read_text())
    resolved["runs"]["sotu-d1-mhc-s9"] = resolved["runs"]["sotu-d1-mhc-s1"]
    write_json(tmp_path / "resolved.json", resolved)
    with pytest.raises(UserError, match="is not finished"):
        publish(tmp_path, tmp_path / "kept")


# --- README and docs/ -----------------------------------------------------------------------


def test_pages_are_written_from_published_studies(written: Written, tmp_path: Path) -> None:
    published, docs = tmp_path / "published", tmp_path / "docs"
    publish(written.folder, published / "synthetic")
    docs.mkdir()
    readme, page = tmp_path / "README.md", docs / "page.md"
    figure = docs / "images" / f"synthetic-{FIGURE}.svg"
    readme.write_text("no mark\n")
    page.write_text("<!-- found:unknown --><!-- /found -->")
    with pytest.raises(UserError, match=r"study 'unknown': .*unknown is missing"):
        write_pages(tmp_path, published)

    page.write_text("no mark\n")
    readme.write_text("a <!-- found:synthetic -->x<!-- /found --> b\n")
    assert write_pages(tmp_path, published) == sorted([readme, figure])
    text = readme.read_text()
    assert written.files["tables/overview.md"].decode().strip() in text
    assert verdict_counts(findings_of(written.results)) in text
    assert text.endswith("<!-- /found --> b\n")
    assert figure.read_bytes() == written.files[f"figures/{FIGURE}.svg"]


def test_a_mark_that_is_not_closed_loses_no_text() -> None:
    page = "<!-- found:s -->\nold\nkept\n<!-- found:u -->\nold\n<!-- /found -->\n"
    with pytest.raises(UserError, match="found:s --> is not closed"):
        with_texts(page, {"s": "new", "u": "new"})


@pytest.mark.exhaustive
def test_pages_are_current() -> None:
    """`python -m mhclite publish pages` brings them up to date. Their numbers: test_filled.py."""
    for path, text in current(ROOT, ROOT / "results/published").items():
        assert path.read_text() == text, f"{path} is stale: run `python -m mhclite publish pages`"
