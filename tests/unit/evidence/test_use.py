"""What the mixing is used for: the tables and the figure of the knock-outs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builder import build_results, knockout, make_study

from mhclite.evidence.results import Results, load_results
from mhclite.evidence.table_format import NONE
from mhclite.evidence.topics.mixing import NO_PROBES
from mhclite.evidence.topics.use import (
    knockouts,
    mixing_use_table,
    streams_within_table,
    use_data,
)


def test_costs_are_means_over_seeds(results: Results) -> None:
    data = use_data(results).set_index(["model", "variant"])
    row = data.loc[("d4", "hc")]  # seed 1 diverged
    costs = [knockout("hc", f"sotu-d4-hc-s{seed}") for seed in (0, 2)]
    assert row["n"] == 2
    assert row["identity"] == pytest.approx(np.mean(costs))
    assert row["token_mean"] == pytest.approx(np.mean(costs) / 10)
    assert row["sublayer"] == 8
    assert row["sublayer_cost"] == pytest.approx(7 / 8 * np.mean(costs))
    assert (row["stream_most"], row["stream_least"]) == (0.3, -0.001)
    assert data.loc[("d4", "residual"), ["identity", "effective_rank", "scale_res"]].isna().all()
    assert data.loc[("d4", "residual"), "activation_norm"] == 8


def test_tables_say_what_was_not_measured(results: Results) -> None:
    use, within = mixing_use_table(results).display, streams_within_table(results).display
    assert (use.iloc[0, 4:] == NONE).all()  # the plain residual
    assert use.iloc[2]["Lost without a stream, most : least"] == "0.300 : -0.00100"
    assert within.iloc[0]["Gradient, backbone"] == "0.100"
    assert within.iloc[0]["Gradient, connection"] == NONE
    assert within.iloc[2]["Gradient, connection"] == "0.0500"


def test_the_figure_shows_each_run_and_each_sublayer(results: Results) -> None:
    figure = knockouts(results)
    left, right = figure.axes[:2]
    points = [line for line in left.lines if line.get_marker() == "o" and len(line.get_xdata()) > 1]
    hc = [knockout("hc", f"sotu-d2-hc-s{seed}") for seed in (0, 1, 2)]
    assert any(list(line.get_xdata()) == hc for line in points)
    assert any(len(line.get_xdata()) == 4 for line in right.lines)
    assert left.get_xlim()[1] > max(hc)


def test_a_study_without_knockouts_says_so(tmp_path: Path) -> None:
    study = make_study(models={"d2": 2}, variants=["residual", "hc"], seeds=[0])
    folder = build_results(tmp_path, study, diverged=())
    path = folder / "probes" / "sotu-d2-hc-s0.json"
    probe = json.loads(path.read_text())
    path.write_text(json.dumps(probe | {"use": None, "parameters": None}))
    results = load_results(folder)
    assert knockouts(results).axes[0].texts[0].get_text() == NO_PROBES
    assert (mixing_use_table(results).display.iloc[:, 4:] == NONE).all(axis=None)
