"""`python -m mhclite describe`: counts of the paper's models, and costs from what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mhclite.cli import main
from mhclite.errors import UserError
from mhclite.files import write_json
from mhclite.planning import describe as step
from mhclite.planning.describe import (
    describe,
    detectable,
    detectable_effect,
    sizes,
    speeds,
    spreads,
)
from mhclite.runs.progress import duration
from mhclite.study.load import load_study
from mhclite.study.sections import CriticalRate
from mhclite.study.settings import Study

CONFIG = Path(__file__).parents[3] / "config"

# Counted from the shapes in the authors' code (FFTYYY/mhc-lite, wz1119/KromHC), for S, M, L.
EXTRA = {
    "residual": (0, 0, 0),
    "hc": (43_320, 129_648, 345_312),
    "mhc": (614_724, 1_843_848, 4_916_496),
    "mhc_lite": (811_428, 2_433_864, 6_489_744),
    "kromhc": (319_668, 958_824, 2_556_624),
}
RESIDUAL = (45_160_960, 124_373_760, 354_599_936)


def test_parameters_of_the_papers_models(tmp_path: Path) -> None:
    found = sizes(load_study(CONFIG / "paper.yaml"), tmp_path)
    rows = {(row.model, row.variant): row for row in found}
    models = list(dict.fromkeys(row.model for row in found))
    assert len(models) == 3
    for at, model in enumerate(models):
        for variant, extra in EXTRA.items():
            assert rows[model, variant].parameters == RESIDUAL[at] + extra[at], (model, variant)
        assert rows[model, "mhc"].tokens == 10_000 * 131_072
        assert rows[model, "mhc"].hours is None


def test_a_wider_residual_has_a_row_of_its_own(tmp_path: Path) -> None:
    rows = sizes(load_study(CONFIG / "config.yaml"), tmp_path)
    plain, wide = (row for row in rows if row.variant == "residual")
    (lite,) = (row for row in rows if row.variant == "mhc_lite")
    assert plain.runs == wide.runs == lite.runs == 3
    assert wide.parameters == pytest.approx(lite.parameters, rel=0.01)
    assert plain.parameters < 0.9 * wide.parameters


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Study:
    """The smoke study, whose parameters nobody counts, which takes seconds."""
    monkeypatch.setattr(step, "parameters", lambda *_: 1000)
    return load_study(CONFIG / "smoke.yaml")


def test_hours_come_from_the_measured_throughput(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {v: 1000.0 * (at + 1) for at, v in enumerate(study.variants)}
    for model in study.models:
        write_json(
            tmp_path / study.name / "throughput" / f"{model}.json",
            {
                "model": model,
                "variants": {v: {"tokens_per_second": {"median": s}} for v, s in speeds.items()},
            },
        )
    rows = sizes(study, tmp_path)
    for row in rows:
        assert row.hours == pytest.approx(row.tokens / speeds[row.variant] / 3600)
    total = sum(row.runs * row.hours for row in rows if row.hours)
    assert main(["describe", str(CONFIG / "smoke.yaml"), "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{len(study.runs())} runs of 40 steps" in text
    assert f": {duration(3600 * total)}, of training steps" in text

    # As many trainings more as a search for critical rates takes.
    search = CriticalRate(factors=[2, 6], halvings=1, below_unigram=0.1)
    searching = describe(study.model_copy(update={"critical_rate": search}), tmp_path)
    assert "up to 3 trainings" in searching
    assert f": {duration(4 * 3600 * total)}, of training steps" in searching


def test_hours_come_from_a_benchmark_file(study: Study, tmp_path: Path) -> None:
    """Of the fastest implementation in the study's mode; what failed there is left out."""
    rows: list[dict[str, Any]] = [
        {
            **{"size": "d2", "mode": "eager", "variant": variant, "implementation": name},
            "tokens_per_second": {"median": speed},
        }
        for variant in study.variants
        for name, speed in (("reference", 500.0), ("fast", 1000.0))
    ]
    rows += [
        {**rows[0], "deterministic": False, "tokens_per_second": {"median": 9000.0}},
        {"size": "d2", "mode": "compiled", "variant": "mhc", "failed": "out of memory"},
    ]
    write_json(tmp_path / "bench.json", {"rows": rows})
    assert speeds(study, "d2", tmp_path / "bench.json") == dict.fromkeys(study.variants, 1000.0)
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match="is neither a throughput nor a benchmark file"):
        speeds(study, "d2", tmp_path / "other.json")


def test_nothing_is_said_that_was_not_measured(study: Study, tmp_path: Path) -> None:
    text = describe(study, tmp_path)
    assert "Time: not measured" in text
    assert "no finished runs of several seeds show a spread" in text
    assert "depth/runs.csv" in detectable(study, CONFIG.parent / "results")


def test_the_studys_own_runs_tell_the_spread_if_there_are_several(
    study: Study, tmp_path: Path
) -> None:
    """Runs of one seed, of conditions, and of two that compute the same do not count."""
    path = tmp_path / study.name / "runs.csv"
    path.parent.mkdir()
    differences = {
        "s": {"mhc": (1.0, 2.0, 3.0), "hc": (5e-4, 6e-4, 0.0)},
        "m": {"mhc": (5.0, 9.0), "hc": (0.5,)},
    }
    cells = ("corpus", "model", "condition", "variant", "seed", "validation_loss")
    rows: list[tuple[Any, ...]] = [("c", "m", "other", "mhc", 0, 99.0)]
    for model, variants in differences.items():
        rows += [("c", model, "base", "residual", seed, 4.0) for seed in range(3)]
        for variant, losses in variants.items():
            rows += [("c", model, "base", variant, i, 4 + loss) for i, loss in enumerate(losses)]
    pd.DataFrame(rows, columns=cells).to_csv(path)
    (pair,) = found = spreads(path, [("mhc", "residual"), ("hc", "residual"), ("oshc", "hc")])
    assert pair == ("mhc", "residual")
    assert found[pair] == pytest.approx(math.sqrt((2 * 1 + 8) / 3))
    text = detectable(study, tmp_path)
    assert str(path) in text
    assert (
        f"mHC - Residual  {detectable_effect(2) * found[pair]:.2g}".split()
        == (text.splitlines()[-1].split()[:4])
    )


@pytest.mark.parametrize("n", [2, 5])
def test_detectable_effects_are_found_in_80_percent(n: int) -> None:
    effect = detectable_effect(n)
    samples = np.random.default_rng(n).normal(effect, 1, size=(20_000, n))
    share = float((stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05).mean())
    assert share == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 20_000))
