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
    pooled_spread,
    sizes,
    speeds,
)
from mhclite.runs.status import duration
from mhclite.study.reading import load_study
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


@pytest.mark.exhaustive
@pytest.mark.slow
def test_parameters_of_the_papers_models(tmp_path: Path) -> None:
    found, _ = sizes(load_study(CONFIG / "paper.yaml"), tmp_path, None)
    rows = {(row.model, row.variant): row for row in found}
    models = list(dict.fromkeys(row.model for row in found))
    assert len(models) == 3
    for at, model in enumerate(models):
        assert rows[model, "residual"].parameters == RESIDUAL[at]
        for variant, extra in EXTRA.items():
            assert rows[model, variant].extra_parameters == extra[at], (model, variant)
        assert rows[model, "mhc"].tokens == 10_000 * 131_072
        assert rows[model, "mhc"].hours is None


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(CONFIG / "smoke.yaml")


def test_hours_come_from_the_measured_throughput(
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(step, "counts", lambda *_: (1000, 1e6))  # which takes seconds
    speeds = {v: 1000.0 * (at + 1) for at, v in enumerate(study.variants)}
    for model in study.models:
        write_json(
            tmp_path / study.name / "throughput" / f"{model}.json",
            {"variants": {v: {"tokens_per_second": {"median": s}} for v, s in speeds.items()}},
        )
    rows, sources = sizes(study, tmp_path, None)
    for row in rows:
        assert row.hours == pytest.approx(row.tokens / speeds[row.variant] / 3600)
    total = sum(row.runs * row.hours for row in rows if row.hours)
    assert main(["describe", str(CONFIG / "smoke.yaml"), "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{len(study.runs())} runs of 40 steps" in text
    assert f": {duration(3600 * total)}, of training steps" in text
    assert all(source in text for source in sources)

    # As many trainings more as a search for critical rates takes.
    search = CriticalRate(factors=[2, 6], halvings=1, below_unigram=0.1)
    searching = describe(study.model_copy(update={"critical_rate": search}), tmp_path)
    assert f"up to {3 * len(study.runs())} trainings" in searching
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
    found, source = speeds(study, "d2", tmp_path, tmp_path / "bench.json")
    assert found == dict.fromkeys(study.variants, 1000.0)
    assert source == str(tmp_path / "bench.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match="is neither a throughput nor a benchmark file"):
        speeds(study, "d2", tmp_path, tmp_path / "other.json")


@pytest.mark.slow
def test_nothing_is_said_that_was_not_measured(study: Study, tmp_path: Path) -> None:
    text = describe(study, tmp_path)
    assert "no speed was measured" in text
    assert "no finished runs of several seeds show a spread" in text
    assert detectable(study, CONFIG.parent / "results")[1].endswith("depth/runs.csv")


def test_the_studys_own_runs_tell_the_spread_if_there_are_several(
    study: Study, tmp_path: Path
) -> None:
    """Runs of one seed, of conditions, and of two that compute the same do not count."""
    path = tmp_path / study.name / "runs.csv"
    losses = {"residual": (4.0, 4.1), "mhc": (3.9, 4.1), "mhc_lite": (3.9002, 4.1003)}
    rows = [
        {
            **{"corpus": config.corpus, "model": config.model.name, "seed": config.seed},
            **{"variant": config.connection.variant, "condition": config.condition},
            "validation_loss": losses[config.connection.variant][config.seed]
            if config.condition == "base"
            else 99.0,
        }
        for config in study.runs().values()
        if config.connection.variant in losses
    ]
    path.parent.mkdir()
    pd.DataFrame([*rows, {**rows[0], "seed": 7, "validation_loss": None}]).to_csv(path)
    found, source = detectable(study, tmp_path)
    assert source == str(path)
    assert set(found) == {"mHC - Residual", "mHC-lite - Residual"}
    effect = detectable_effect(3)
    assert effect is not None
    expected = effect * np.std([-0.1, 0.0], ddof=1)
    assert found["mHC - Residual"][3] == pytest.approx(expected)
    pooled = {("c", "m", "a", seed): value for seed, value in enumerate((1.0, 2.0, 3.0))}
    pooled |= {("c", "l", "a", seed): value for seed, value in enumerate((5.0, 9.0))}
    pooled |= {("c", model, "b", seed): 0.0 for model in "ml" for seed in range(5)}
    assert pooled_spread(pooled, "a", "b") == pytest.approx(math.sqrt((2 * 1 + 8) / 3))


@pytest.mark.parametrize("n", [2, 5])
def test_detectable_effects_are_found_in_80_percent(n: int) -> None:
    effect = detectable_effect(n)
    assert effect is not None
    samples = np.random.default_rng(n).normal(effect, 1, size=(20_000, n))
    share = float((stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05).mean())
    assert share == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 20_000))
    assert detectable_effect(1) is None
