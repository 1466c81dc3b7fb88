"""What a user writes is text in every format, and no setting of the user's shows in a figure."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from builder import build_results, make_study

from mhclite.evidence.results import load_results
from mhclite.evidence.tables import escaped, html_table, markdown
from mhclite.evidence.topics.conditions import conditions_table
from mhclite.study.sections import Condition

TITLES = (
    "costs $5_{x",  # half a formula: matplotlib reads from one dollar to the next
    r"$\frac$ of 100 % & more \\ #1 ~ ^",
    "*a* `b` [c](d) | <b>e</b> &amp; _f_ {g} {{h}}",
)


def test_titles_are_text_in_markdown_and_html(tmp_path: Path) -> None:
    conditions = {
        f"c{at}": {"title": title, "variants": ["mhc"], "learning_rate_factor": 2.0 + at}
        for at, title in enumerate(TITLES)
    }
    study = make_study(models={"d1": 1}, variants=("mhc",), seeds=(0,), conditions=conditions)
    table = conditions_table(load_results(build_results(tmp_path, study, ())))
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line) for line in lines]
    assert len({len(row) for row in rows}) == 1, "a bar in a cell begins a column"
    cells = [cell.strip() for row in rows for cell in row]
    # As they are shown, if nothing in them is markup.
    assert set(TITLES) <= {re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell) for cell in cells}
    for markup in (r"(?<!\\)\$", r"(?<!\\)`", r"(?<!\\)\*a", r"(?<!\\)\]\(", r"(?<!\\)<b>"):
        assert not any(re.search(markup, cell) for cell in cells), markup
    assert escaped("mhc_lite [1.0, 2.0] < 3 & 4 - 5") == "mhc_lite [1.0, 2.0] < 3 & 4 - 5"
    text = html_table(table)
    assert all(title in html.unescape(text) for title in TITLES)
    assert "<b>e</b>" not in text
    assert Condition(title="a\n  b\x1b[31m\tc\n", variants=["mhc"]).title == "a b[31m c"


DRAW = """
import sys
from pathlib import Path
import seaborn as sns
from mhclite.evidence.style import grid, plain_log, save, style
with style():
    figure, axes = grid(1, 2, 2.0)
    axes[0, 0].plot([1, 2, 3], [1e-3, 1.5, 2.25])
    axes[0, 0].set_title("Größe ± 1")
    plain_log(axes[0, 0])
    sns.lineplot(x=[1000.5, 2000.25], y=[0.001, 0.002], ax=axes[0, 1])
    save(figure, Path(sys.argv[1]))
"""
MATPLOTLIBRC = """
font.size: 30
axes.facecolor: red
text.usetex: True
axes.formatter.use_locale: True
svg.fonttype: none
savefig.bbox: tight
savefig.transparent: True
lines.linestyle: --
axes.prop_cycle: cycler("color", ["r"])
backend: module://nowhere
"""


@pytest.mark.exhaustive
@pytest.mark.slow
def test_figures_are_the_same_bytes_in_any_surroundings(tmp_path: Path) -> None:
    here = tmp_path / "here"
    for folder in (here, tmp_path / "home" / ".config" / "matplotlib"):
        folder.mkdir(parents=True)
        (folder / "matplotlibrc").write_text(MATPLOTLIBRC)
    own = {"MATPLOTLIBRC": str(here), "HOME": str(tmp_path / "home"), "LC_ALL": "C"}
    surroundings: dict[str, dict[str, str]] = {
        "plain": {},
        "notebook": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        "own settings": own | {"PYTHONUTF8": "0", "TZ": "Asia/Tokyo"},
    }
    (tmp_path / "draw.py").write_text(DRAW, encoding="utf-8")
    drawn = {}
    for name, environment in surroundings.items():
        subprocess.run(
            [sys.executable, str(tmp_path / "draw.py"), str(tmp_path / name)],
            cwd=tmp_path if name == "plain" else here,
            env={**os.environ, **environment},
            check=True,
        )
        drawn[name] = [(tmp_path / f"{name}.{kind}").read_bytes() for kind in ("png", "svg")]
    assert drawn["notebook"] == drawn["own settings"] == drawn["plain"]
