"""A variant that is added to a copy of the checkout by docs/adding-a-variant.md and nothing else.

The page's own code is taken, so that the page cannot be out of date.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from checkout import ROOT, Checkout

from mhclite.connections.registry import VARIANTS

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "adding-a-variant.md"
LABEL = "Softmax HC"
STUDY = "config/mine.yaml"
OUT = Path("results/mine")


def add(checkout: Checkout, variant: str, source: str, entry: str) -> None:
    """As the page says: the file, and the entry at the end of the registry."""
    connections = checkout.folder / "src/mhclite/connections"
    (connections / f"{variant}.py").write_text(source)
    registry, end = connections / "registry.py", "}\n\n\ndef check_streams"
    content = registry.read_text()
    assert end in content
    registry.write_text(content.replace(end, entry + end, 1))


def python(checkout: Checkout, *arguments: str) -> str:
    """What Python prints, with the copy's package; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout.folder,
        env=checkout.environment | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps(checkout: Checkout, *commands: tuple[str, ...]) -> list[str]:
    """What steps print, in one process; each must succeed."""
    script = "import sys; from mhclite.cli import main\n"
    for command in commands:
        script += f"if main({list(command)}): sys.exit({command[0]!r})\nprint('\\f')\n"
    return python(checkout, "-c", script).split("\f")


def passed(checkout: Checkout, *arguments: str) -> str:
    """What pytest says of tests of the copy, none of which may fail."""
    files = [f"tests/unit/test_{name}.py" for name in ("connections", "model", "fast", "registry")]
    options = ("-v", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow")
    return python(checkout, "-m", "pytest", *options, *files, *arguments)


def study_of(path: Path, **changes: object) -> None:
    """config/smoke.yaml in small, with other variants."""
    content = yaml.safe_load((ROOT / "config/smoke.yaml").read_text()) | changes
    content["training"] |= {"steps": 20, "evaluation_interval": 10}
    content["stability"] = {"spike_window": 8, "fluctuation_window": 8}
    del content["sinkhorn"], content["conditions"]
    path.write_text(yaml.safe_dump(content))


def keys(printed: str) -> dict[str, list[str]]:
    """Run -> digests of its settings and its code, from what `keys` prints."""
    rows = [line.split() for line in printed.splitlines()]
    return {row[0]: row[1:3] for row in rows if row and "-s0" in row[0]}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy with the page's variant, in which its study has run; `before` are keys without it."""
    made = Checkout(tmp_path_factory.mktemp("new"), own_source=True)
    shutil.copy2(ROOT / "pyproject.toml", made.folder)
    ignored = shutil.ignore_patterns("__pycache__", "workflow", "cluster", "fuzz", "faults")
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, made.folder / name, ignore=ignored)
    study_of(made.folder / "config/all.yaml", variants=list(VARIANTS), seeds=[0])
    before = keys(steps(made, ("keys", "config/all.yaml"))[0])
    assert len(before) == len(VARIANTS)
    (made.folder / "before.json").write_text(json.dumps(before))
    page = PAGE.read_text()
    source, entry = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (variant,) = set(re.findall(r"`src/mhclite/connections/(\w+)\.py`", page))
    assert re.match(rf'\s+"{variant}": Variant\(\s+"{LABEL}"', entry)
    add(made, variant, source, entry)
    study_of(made.folder / STUDY, name="mine", variants=["residual", variant], seeds=[0, 1])
    return made


def test_no_other_runs_key_changes(checkout: Checkout) -> None:
    commands = (("check", STUDY), ("keys", STUDY), ("keys", "config/all.yaml"))
    _, own, others = steps(checkout, *commands)[:3]
    before = json.loads((checkout.folder / "before.json").read_text())
    assert keys(others) == before
    assert keys(own)["sotu-d2-softmax_hc-s0"][1] not in {code for _, code in before.values()}


@pytest.mark.exhaustive
def test_its_study_runs_from_text_to_report(checkout: Checkout) -> None:
    """Twenty steps of two seeds, beside the plain residual."""
    code, output = checkout.snakemake(str(OUT / "report.html"), study=STUDY)
    assert code == 0, output
    out = checkout.folder / OUT
    runs = pd.read_csv(out / "runs.csv").set_index("variant").loc["softmax_hc"]
    assert (runs["status"] == "completed").all()
    measured = ["start_distance", "product_deviation_99", "grad_norm_mean"]
    assert runs[measured].notna().all(axis=None)
    assert LABEL in (out / "tables/results.md").read_text()
    overview = (out / "tables/overview.csv").read_text()
    assert "softmax_hc" in overview
    script = "from mhclite.evidence.style import colour; print(colour('softmax_hc'))"
    own = python(checkout, "-c", script).strip().lower()
    drawn = {path.stem for path in out.glob("figures/*.svg") if own in path.read_text()}
    assert drawn >= {"validation_loss", "row_sums"}


def test_it_conforms(checkout: Checkout) -> None:
    said = passed(checkout, "-k", "softmax_hc")
    assert len(re.findall(r"\[.*softmax_hc.*\] PASSED", said)) > 15
    assert "test_a_session_measures_what_has_kernels[softmax_hc] PASSED" in said
