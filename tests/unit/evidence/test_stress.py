"""The stress experiment: failures of known runs at known steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builder import build_results, make_study, resolved_of, run_stability, seal, write_lines

from mhclite.evidence.collect import collect
from mhclite.evidence.failures import SMOOTHING, failure_step, first_fluctuation, first_gain
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.table_format import markdown
from mhclite.evidence.topics.stress import (
    outcomes,
    stable_rates,
    stress_rates,
    stress_table,
    warnings_before_failure,
    warnings_table,
)
from mhclite.files import read_jsonl

VARIANTS = ("residual", "hc", "mhc")
CONDITIONS: dict[str, Any] = {
    f"x{factor}": {
        "title": f"{factor} x the rate",
        "variants": list(VARIANTS),
        "learning_rate_factor": factor,
    }
    for factor in (2, 4)
}
DIVERGED = "sotu-d2-hc-x4-s0"  # at step 45, see builder
RISES = "sotu-d2-hc-x2-s1"  # its loss rises from step 40 on
RISES_FROM = 40


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("stress")
    study = make_study(models={"d2": 2}, variants=VARIANTS, seeds=(0, 1), conditions=CONDITIONS)
    folder = build_results(root, study, diverged=[DIVERGED])
    run = folder / "runs" / RISES
    lines = read_jsonl(run / "metrics.jsonl")
    for line in lines[RISES_FROM:]:  # the first line is step 0
        line["loss"] += 3.0
    write_lines(run / "metrics.jsonl", lines)
    summary = json.loads((run / "summary.json").read_text())
    summary["validation_loss"] += 3.0
    seal(run, summary)
    mixing = read_jsonl(run / "mixing.jsonl")
    mixing[1]["gain_forward"] *= 2  # step 20: before the loss rises
    write_lines(run / "mixing.jsonl", mixing)
    run_stability(study, folder)
    collect(resolved_of(study, root), folder)
    return load_results(folder)


def test_failure_step_by_hand() -> None:
    losses = np.full(100, 2.0)
    assert failure_step(losses, 0.5) is None
    losses[60:] = 4.0  # steps 61 on: after the k-th the mean of 16 is 2 + 2 k / 16
    assert failure_step(losses, 0.5) == 60 + 5  # 5 / 8 > 1 / 2, 4 / 8 is not
    assert failure_step(losses[: SMOOTHING - 1], 0.5) is None


def test_fluctuation_and_gain_by_hand() -> None:
    generator = np.random.default_rng(0)
    calm = 1 + 0.01 * generator.standard_normal(60)
    assert first_fluctuation(calm, 10) is None
    calm[45] = 3.0
    assert first_fluctuation(calm, 10) == 46
    lines = [
        {"step": s, "gain_forward": 1.0, "gain_backward": g} for s, g in enumerate((1, 1.4, 2))
    ]
    assert first_gain(lines) == 2
    assert first_gain(lines[:2]) is None
    assert first_gain([lines[0], {"step": 7, "gain_forward": None, "gain_backward": 1}]) == 7


def test_outcomes(results: Results) -> None:
    runs = outcomes(results).set_index(["variant", "factor", "seed"])
    assert len(runs) == 3 * 3 * 2
    failed = runs[runs["failed"]]
    assert sorted(failed.index) == [("hc", 2.0, 1), ("hc", 4.0, 0)]
    rose = runs.loc["hc", 2.0, 1]
    # The mean of 16 rises by 3 / 16 a step: above 0.5 after three, if the loss still falls a bit
    # after four.
    assert rose["failure_step"] in (RISES_FROM + 2, RISES_FROM + 3)
    assert rose["gap"] > 2.5
    assert rose["first_gain"] == 20
    assert runs.loc["hc", 4.0, 0]["failure_step"] == 45
    assert runs.loc["hc", 1.0, 0]["first_grad_norm_spike"] == 40
    assert runs["first_loss_spike"].notna().sum() <= 1


def test_rates_and_warnings(results: Results) -> None:
    runs = outcomes(results)
    rates = stable_rates(results, runs).set_index("variant")
    assert rates.loc["mhc", "largest_holding"] == 4
    assert rates.loc["hc", "largest_holding"] == 1
    assert rates.loc["hc", "smallest_failing"] == 2
    assert (rates.loc["hc", "failed_2"], rates.loc["hc", "failed_4"]) == (1, 1)
    warned = warnings_before_failure(runs).set_index("signal")
    assert (warned["failing"] == 2).all()
    assert (warned["holding"] == 16).all()
    assert warned.loc["gain", "warned"] == 1
    step = int(runs.set_index(["variant", "factor", "seed"]).loc["hc", 2.0, 1]["failure_step"])
    assert warned.loc["gain", "lead_median"] == step - 20
    assert warned.loc["gain", "first"] == 1
    spikes = warned.loc["grad_norm_spike"]
    assert spikes["warned"] == 2  # at step 40 in every run of hc
    assert spikes["false_alarms"] == 4


def test_tables_and_figure(results: Results, tmp_path: Path) -> None:
    rates = markdown(stress_table(results))
    assert "x 1" in rates
    assert "1 of 2" in rates
    assert "composite gain" in markdown(warnings_table(results))
    with style():
        assert len(save(stress_rates(results), tmp_path / "stress")) == 2
