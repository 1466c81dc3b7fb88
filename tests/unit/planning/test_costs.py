"""Costs of a study from measured speeds, and what its seeds can show."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tiny import run_record, run_summary

from mhclite.cli import main
from mhclite.errors import UserError
from mhclite.evidence.claims import load_claims
from mhclite.evidence.verdicts import detectable_effect, power
from mhclite.files import write_json
from mhclite.planning import costs
from mhclite.planning.describe import as_text, describe
from mhclite.records import to_json
from mhclite.study.reading import load_study
from mhclite.study.sections import CriticalRate
from mhclite.study.settings import Study

CONFIG = Path(__file__).parents[3] / "config"
PUBLISHED = Path(__file__).parents[3] / "results"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(CONFIG / "smoke.yaml")


def benchmark_file(path: Path, study: Study, **changed: float) -> Path:
    """A benchmark of model d2 in which fast is twice as fast as the reference, eager."""
    rows: list[dict[str, Any]] = [
        {
            **{"size": "d2", "mode": "eager", "variant": variant, "implementation": name},
            "tokens_per_second": {"median": speed * changed.get(variant, 1.0)},
        }
        for variant in study.variants
        for name, speed in (("reference", 500.0), ("fast", 1000.0))
        if variant != "residual" or name == "fast"
    ]
    rows[0]["implementation"] = ""  # the residual has but one
    rows.append({"size": "d2", "mode": "compiled", "variant": "mhc", "failed": "out of memory"})
    write_json(path, {"hardware": {"cpu": "A"}, "precision": "fp32", "rows": rows})
    return path


def test_costs_follow_from_a_benchmark_file(study: Study, tmp_path: Path) -> None:
    file = benchmark_file(tmp_path / "bench.json", study, mhc_lite=0.5)
    found = describe(study, tmp_path, file)["plan"]
    rows = {row["variant"]: row for row in found["costs"]["variants"]}
    tokens = study.training.steps * study.training.batch_size * study.models["d2"].block_size
    assert rows["mhc"]["runs"] == 2
    assert rows["mhc"]["device_hours"] == pytest.approx(2 * tokens / 1000 / 3600)
    # Twice the time, and once more for the runs under a condition.
    assert rows["mhc_lite"]["device_hours"] == pytest.approx(4 * tokens / 500 / 3600)
    total = found["costs"]["total"]
    assert total["device_hours"] == pytest.approx(sum(r["device_hours"] for r in rows.values()))
    assert total["days"] == pytest.approx(
        {1: total["device_hours"] / 24, 8: total["device_hours"] / 192}
    )
    assert found["speeds"] == [f"{file} (A, fp32)"]


def test_searches_for_critical_rates_are_trainings_too(study: Study, tmp_path: Path) -> None:
    file = benchmark_file(tmp_path / "bench.json", study, mhc_lite=0.5)
    search = CriticalRate(factors=[2, 6], halvings=1, below_unigram=0.1)
    plain = describe(study, tmp_path, file)
    found = describe(study.model_copy(update={"critical_rate": search}), tmp_path, file)
    assert plain["totals"]["tries"] == 0
    assert found["totals"]["tries"] == 3 * found["totals"]["runs"]
    hours = plain["totals"]["device_hours"]
    assert found["totals"]["device_hours"] == pytest.approx(4 * hours)
    assert f"up to {found['totals']['tries']} times more" in as_text(found)


@pytest.mark.slow
def test_nothing_is_said_that_was_not_measured(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study_file = str(CONFIG / "smoke.yaml")
    assert main(["describe", study_file, "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "no speed was measured" in text
    assert "no finished runs of several seeds show a spread" in text
    assert main(["describe", study_file, "--results", str(PUBLISHED)]) == 0
    assert f"Spread: {PUBLISHED}/published/depth/runs, another study" in capsys.readouterr().out
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match="is neither a throughput nor a benchmark file"):
        costs.speeds(study, "d2", tmp_path, tmp_path / "other.json")


def test_disk_is_final_weights_and_two_checkpoints_per_unfinished_run(
    study: Study, tmp_path: Path
) -> None:
    found = describe(study, tmp_path)
    cost = found["plan"]["costs"]
    row = next(row for row in found["rows"] if row["variant"] == "hc")
    hc = next(entry for entry in cost["variants"] if entry["variant"] == "hc")
    size = 4 * row["parameters"] + costs.RUN_BYTES_PER_STEP * study.training.steps
    assert hc["disk_bytes"] == 2 * size
    largest = max(row["checkpoint_bytes"] for row in found["rows"])
    assert cost["checkpoints"] == {1: 2 * largest, 8: 16 * largest}
    assert cost["tokens"] == {"sotu": None}


def test_the_studys_own_runs_tell_the_spread_if_there_are_several(
    study: Study, tmp_path: Path
) -> None:
    """Pooled over cells; runs of one seed, diverged runs and conditions do not count."""
    runs = tmp_path / study.name / "runs"
    losses = {"residual": (4.0, 4.1), "mhc": (3.9, 4.1), "mhc_lite": (3.0, 3.3)}
    for name, config in study.runs().items():
        values = losses.get(config.connection.variant)
        if values is None:
            continue
        loss = values[config.seed] if config.condition == "base" else 99.0
        write_json(runs / name / "run.json", to_json(run_record(config, "k")))
        summary = run_summary(config, "k", validation_loss=loss)
        write_json(runs / name / "summary.json", to_json(summary))
    found = costs.study_power(study, tmp_path)
    assert found["own"]
    pairs = {(row["variant"], row["reference"]): row for row in found["comparisons"]}
    assert list(pairs) == [("mhc", "residual"), ("mhc_lite", "residual"), ("mhc_lite", "mhc")]
    _, residual, mhc = pairs.values()
    assert residual["sd"] == pytest.approx(np.std([-1.0, -0.8], ddof=1))
    assert mhc["sd"] == pytest.approx(np.std([-0.9, -0.8], ddof=1))
    effect = detectable_effect(3, 0.95)
    assert effect is not None
    assert residual["detectable"][3] == pytest.approx(effect * residual["sd"])
    assert residual["detectable"][1] is None

    one = next(runs.glob("*-mhc_lite-s1/summary.json"))
    write_json(one, json.loads(one.read_text()) | {"status": "diverged", "validation_loss": None})
    (left,) = costs.study_power(study, tmp_path)["comparisons"]
    assert (left["variant"], left["reference"]) == ("mhc", "residual")


def test_spreads_of_cells_are_pooled() -> None:
    losses = {
        **{("c", "small", "a", seed): value for seed, value in enumerate((1.0, 2.0, 3.0))},
        **{("c", "large", "a", seed): value for seed, value in enumerate((5.0, 9.0))},
        **{("c", "alone", "a", 0): 1.0},
        **{
            ("c", model, "b", seed): 0.0
            for model in ("small", "large", "alone")
            for seed in range(5)
        },
    }
    cells = costs.paired_differences(losses, "a", "b")
    assert cells == [[1.0, 2.0, 3.0], [5.0, 9.0]]  # one seed has no spread
    assert costs.pooled_spread(cells) == (pytest.approx(math.sqrt((2 * 1 + 8) / 3)), 3)
    assert costs.paired_differences(losses, "a", "c") == []


def test_the_spread_of_two_that_compute_the_same_is_refused(study: Study, tmp_path: Path) -> None:
    assert costs.compute_the_same([0.0004, -0.0009])
    assert not costs.compute_the_same([0.0004, 0.0011])
    runs = tmp_path / study.name / "runs"
    losses = {"residual": (4.0, 4.1), "mhc": (3.9, 4.05), "mhc_lite": (3.9002, 4.0499)}
    for name, config in study.runs().items():
        if config.condition == "base" and config.connection.variant in losses:
            summary = run_summary(
                config, "k", validation_loss=losses[config.connection.variant][config.seed]
            )
            write_json(runs / name / "run.json", to_json(run_record(config, "k")))
            write_json(runs / name / "summary.json", to_json(summary))
    found = costs.study_power(study, tmp_path)
    assert {row["reference"] for row in found["comparisons"]} == {"residual"}
    assert found["refused"] == [("mhc_lite", "mhc")]
    text = "\n".join(costs._power_lines(found))
    assert "No spread is taken from" in text
    assert "for mHC-lite - mHC: the two agree to 0.001 nats in every seed" in text
    alone = costs._power_lines(found | {"comparisons": []})
    assert alone[0] == "Detectable differences: unknown."
    assert len(alone) == 2


@pytest.mark.parametrize("step", [0.0, 0.0002, 0.0015, 0.02, 3.0])
def test_seeds_that_are_too_few_for_a_margin_are_said(
    step: float, study: Study, tmp_path: Path
) -> None:
    claims = load_claims(CONFIG / "claims.yaml")
    (margin,) = {m for pair, m in costs.margins(claims).items() if pair == ("mhc_lite", "mhc")}
    runs = tmp_path / study.name / "runs"
    for name, config in study.runs().items():
        if config.condition == "base" and config.connection.variant in ("mhc", "mhc_lite"):
            other = config.connection.variant == "mhc_lite"
            loss = 3.0 + other * (0.1 + config.seed * step)
            write_json(runs / name / "run.json", to_json(run_record(config, "k")))
            write_json(
                runs / name / "summary.json",
                to_json(run_summary(config, "k", validation_loss=loss)),
            )
    found = costs.study_power(study, tmp_path, claims)
    (row,) = found["comparisons"]
    assert row["margin"] == margin
    detected = row["detectable"][len(study.seeds)]
    text = "\n".join(costs._power_lines(found))
    assert ("cannot decide whether mHC-lite" in text) == (detected > margin)
    if row["needed"] is None:
        assert f"more than {costs.MOST_SEEDS} seeds" in text
    else:
        enough = detectable_effect(row["needed"], 0.95)
        assert enough is not None
        assert enough * row["sd"] <= margin
        fewer = detectable_effect(row["needed"] - 1, 0.95)
        assert fewer is None or fewer * row["sd"] > margin


def test_times_and_sizes_have_the_unit_that_suits_them(study: Study, tmp_path: Path) -> None:
    found = describe(study, tmp_path)
    for device in ("cpu", "auto", "cuda"):
        training = study.training.model_copy(update={"device": device})
        for hours in (2e-3, 0.3, 30.0, 3e5):
            rows = [row | {"hours": hours} for row in found["rows"]]
            cost = costs.study_costs(
                study.model_copy(update={"training": training}), rows, tmp_path
            )
            text = as_text(found | {"rows": rows, "plan": found["plan"] | {"costs": cost}})
            assert ("GPU" in text) == (device == "cuda")
            numbers = re.findall(r"([\d.,]+) (?:s|min|h|d|MiB|GiB)\b", text)
            assert len(numbers) > len(rows)
            assert all(float(number.replace(",", "")) > 0 for number in numbers)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_detectable_effects_are_found_in_80_percent(n: int) -> None:
    effect = detectable_effect(n, 0.95)
    assert effect is not None
    assert power(effect, n, 0.95) == pytest.approx(0.8)
    samples = np.random.default_rng(n).normal(effect, 1, size=(20_000, n))
    share = float((stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05).mean())
    assert share == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 20_000))


def test_one_seed_detects_nothing() -> None:
    assert detectable_effect(1, 0.95) is None
