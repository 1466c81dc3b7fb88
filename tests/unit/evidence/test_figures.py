"""Figures draw the numbers of the results, and say what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import builder
import pytest
from builder import (
    ALL_VARIANTS,
    DIVERGED,
    build_results,
    gain,
    make_study,
    probe_of,
    row_sum_deviation,
    throughput_of,
)
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.evidence import style
from mhclite.evidence.exhibits import FIGURES, shown
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.statistics import paired_differences, summarise
from mhclite.evidence.topics.mixing import pooled_quantiles, sinkhorn_histogram
from mhclite.evidence.topics.stability import POINTS, thinned
from mhclite.evidence.verdicts import Verdict
from mhclite.measure.files import Mixing, SinkhornInput
from mhclite.records import build
from mhclite.study.settings import Study

TINY: dict[str, Any] = {"models": {"d1": 1}, "seeds": (0, 1), "steps": 30}


def shown_of(results: Results) -> list[str]:
    """The figures that a study has."""
    return [exhibit.name for exhibit, _ in shown(FIGURES, results.settings)]


_DRAWN: dict[tuple[Path, str], Figure] = {}


def figure_of(results: Results, name: str) -> Figure:
    """A figure, drawn once for all tests of a study."""
    key = (results.folder, name)
    if key not in _DRAWN:
        with style.style():
            _DRAWN[key] = FIGURES[name][1](results)
    return _DRAWN[key]


def texts(figure: Figure) -> str:
    """Everything written in a figure, one string."""
    return "\n".join(str(text.get_text()) for text in figure.findobj(Text))


def lines_of(axes: Any, colour: str, bold: bool) -> list[Any]:
    """The thin lines of the seeds or the bold one of their mean, of one colour."""
    lines = [
        line
        for line in axes.lines
        if line.get_color() == colour and line.get_marker() == "None" and len(line.get_xdata())
    ]
    return [line for line in lines if (line.get_linewidth() > 1) == bold]


def test_missing_results_are_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="collect"):
        load_results(tmp_path)


# --- style ------------------------------------------------------------------------------------


def test_every_variant_has_a_look_of_its_own() -> None:
    for look in (style.colour, style.marker):
        assert len({look(variant) for variant in VARIANTS}) == len(VARIANTS)


# --- numbers ----------------------------------------------------------------------------------


def test_final_loss_and_difference_are_those_of_the_statistics(results: Results) -> None:
    figure = figure_of(results, "loss_vs_depth")
    tables = (
        summarise(results.runs, confidence=0.95),
        paired_differences(results.runs, confidence=0.95),
    )
    for axes, table in zip(figure.axes, tables, strict=True):
        expected = {
            (row["variant"], model): (row["mean"], row["half_width"])
            for row in table.to_dict("records")
            for model in [row["model"]]
        }
        found = {}
        variants = [v for v in results.variants if v in set(table["variant"])]
        cells = [(variant, model) for model in results.models for variant in variants]
        for cell, (means, _, (bars,)) in zip(cells, axes.containers, strict=True):
            ((_, low), (_, high)) = bars.get_segments()[0]
            found[cell] = (means.get_ydata()[0], (high - low) / 2)
        assert found.keys() == expected.keys()
        for cell, values in expected.items():
            assert found[cell] == pytest.approx(values, abs=1e-12), cell


def test_every_completed_run_is_a_point_of_the_final_losses(results: Results) -> None:
    losses, _ = figure_of(results, "loss_vs_depth").axes
    points = [
        y for line in losses.lines if line.get_marker() == "o" and line.get_alpha()
        for y in line.get_ydata()
    ]  # fmt: skip
    completed = results.runs[results.runs["status"] == "completed"]
    assert sorted(points) == pytest.approx(sorted(completed["validation_loss"]))


def test_intervals_much_longer_than_the_range_of_values_are_cut(
    results: Results, tmp_path: Path
) -> None:
    beyond = "go on beyond the panel"
    assert beyond not in texts(figure_of(results, "loss_vs_depth"))
    # The t quantile of two seeds is 12.7.
    two = load_results(build_results(tmp_path, make_study(**TINY), diverged=()))
    figure = figure_of(two, "loss_vs_depth")
    assert beyond in texts(figure)
    losses = two.runs["validation_loss"]
    least, most = losses.min(), losses.max()
    low, high = figure.axes[0].get_ylim()
    assert low == pytest.approx(least - (most - least))
    assert high == pytest.approx(most + (most - least))


def test_loss_curves_leave_diverged_runs_out_of_the_mean(results: Results) -> None:
    panel = figure_of(results, "validation_loss").axes[1]  # 4 layers
    hc = style.colour("hc")
    (mean,) = lines_of(panel, hc, bold=True)
    curves = results.curves.dropna(subset=["validation_loss"])
    own = curves[(curves["model"] == "d4") & (curves["variant"] == "hc")]
    finished = own[own["run"] != DIVERGED]
    expected = finished.groupby("step")["validation_loss"].mean()
    assert list(mean.get_xdata()) == list(expected.index)
    assert list(mean.get_ydata()) == pytest.approx(list(expected))
    # The diverged run is drawn up to its end, which a cross marks.
    assert len(lines_of(panel, hc, bold=False)) == len(results.seeds)
    (cross,) = [line for line in panel.lines if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == own[own["run"] == DIVERGED]["step"].max()
    assert "diverged: HC\u00a01\u00a0of\u00a03" in panel.get_xlabel()


def test_loss_differences_are_paired_by_seed(results: Results) -> None:
    panel = figure_of(results, "validation_loss").axes[2]  # below 2 layers
    (mean,) = lines_of(panel, style.colour("mhc_lite"), bold=True)
    differences = paired_differences(results.runs).set_index(["model", "variant"])
    assert mean.get_ydata()[-1] == pytest.approx(differences.loc[("d2", "mhc_lite"), "mean"])


def test_baselines_are_named_with_their_loss(results: Results) -> None:
    """Once, right of the last panel, where no curve crosses the words."""
    first, last = figure_of(results, "validation_loss").axes[:2]
    assert not first.texts
    for name, loss in results.counting_models["sotu"].items():
        (label,) = (text for text in last.texts if text.get_text() == f"{name}\n{loss:.2f}")
        assert isinstance(label, Annotation)
        assert label.xy == (1, loss)
        assert label.get_horizontalalignment() == "left"


def test_verdicts_stand_beside_the_panel_that_decides(results: Results) -> None:
    """No marker can be under them, whatever the values."""
    shallow, deep = figure_of(results, "forest").axes
    texts = [*shallow.texts, *deep.texts]
    assert {text.get_text() for text in texts} <= set(get_args(Verdict))
    assert len(texts) == len(shallow.get_yticks())
    for text in texts:
        assert isinstance(text, Annotation)
        assert (text.xy[0], text.get_horizontalalignment()) == (1.0, "left")


def test_gradient_norm_has_mean_and_spread_of_the_window(results: Results) -> None:
    left, right, *_ = figure_of(results, "gradient_norm").axes
    curves = results.curves
    last = curves["step"] == curves["step"].max()
    cell = curves[(curves["model"] == "d2") & (curves["variant"] == "mhc") & last]
    for panel, column in ((left, "grad_norm_window_mean"), (right, "grad_norm_window_sd")):
        (mean,) = lines_of(panel, style.colour("mhc"), bold=True)
        assert mean.get_ydata()[-1] == pytest.approx(cell[column].mean())
    assert len(left.collections) == len(ALL_VARIANTS)  # the bands


def test_thinning_keeps_the_first_and_the_last_step(results: Results) -> None:
    curves = results.curves
    long = curves[curves["run"] == curves["run"].iloc[0]]
    long = long.loc[long.index.repeat(20)].assign(step=range(20 * len(long)))
    kept = thinned(long)["step"]
    assert kept.min() == 0
    assert kept.max() == 20 * (len(long) // 20) - 1
    assert POINTS / 2 < len(kept) <= POINTS


def test_throughput_bars_are_medians_and_name_the_ratio(results: Results) -> None:
    panel = figure_of(results, "throughput").axes[0]
    study = Study.model_validate(results.settings)
    measured = throughput_of(study, "d2")["variants"]
    widths = [bar.get_width() for bar in panel.patches]
    assert widths == [measured[v]["tokens_per_second"]["median"] for v in ALL_VARIANTS]
    ratios = [text.get_text() for text in panel.texts]
    assert ratios == [f"{1 / measured[v]['ratio_quartiles']['median']:.2f}×" for v in ALL_VARIANTS]


def test_pooled_quantiles() -> None:
    levels = [0, 0.001, 0.25, 0.5, 0.75, 0.999, 1]
    seeds = [[-9, -3, -1, 0, 1, 3, 5], [-8, -4, -2, 1, 2, 4, 6], [-7, -5, -3, 2, 3, 5, 7]]
    assert pooled_quantiles(seeds, levels) == {
        "whislo": -4,
        "q1": -2,
        "med": 1,
        "q3": 2,
        "whishi": 4,
        "fliers": [-9, 7],
    }


def test_both_sums_show_the_extremes_as_distance_from_one(results: Results) -> None:
    figure = figure_of(results, "row_sums")
    for axes, is_product in zip(figure.axes[:2], (False, True), strict=True):
        extremes = [line.get_xdata() for line in axes.lines if line.get_marker() == "."]
        shown = [v for v in ALL_VARIANTS if v != "residual"]
        for variant, rows, columns in zip(shown, extremes[::2], extremes[1::2], strict=True):
            width = row_sum_deviation(variant, product=is_product)
            assert rows == pytest.approx([-width, width], rel=1e-6), variant
            assert columns == pytest.approx([-width / 2, width / 2], rel=1e-6), variant
    text = texts(figure)
    assert "minus 1" in text
    assert "1 exactly" in text
    assert "operator orientation" in FIGURES["row_sums"][0].caption.lower()


def test_share_of_sinkhorn_inputs_above_30_is_written(results: Results) -> None:
    figure = figure_of(results, "sinkhorn_inputs")
    inputs = next(iter(results.mixing("sotu", "d2", "mhc").values())).sinkhorn_input
    assert inputs is not None
    assert f"{100 * inputs.share_above_30:.3g} % above 30" in texts(figure)
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == pytest.approx(100)


def test_an_open_last_bin_of_the_sinkhorn_histogram_is_closed() -> None:
    mixing = build(
        Mixing, probe_of(make_study().runs()["sotu-d2-mhc-s0"].to_json(), False)["mixing"]
    )
    entry = SinkhornInput([0, 1, 2], counts=[1, 2, 1], share_above_30=0.25, max=40.0)
    other = replace(entry, counts=[0, 0, 4], share_above_30=0.75, max=50.0)
    edges, shares, above, highest = sinkhorn_histogram(
        [replace(mixing, sinkhorn_input=one) for one in (entry, other)]
    )
    assert edges.tolist() == [0, 1, 2, 3]
    assert shares.tolist() == [0.125, 0.25, 0.625]
    assert (above, highest) == (0.5, 50.0)


def test_composite_gain_over_depth(results: Results) -> None:
    figure = figure_of(results, "composite_gain")
    forward, backward = figure.axes[2:]  # 4 layers
    for panel, factor in ((forward, 1), (backward, 1.1)):
        (mean,) = lines_of(panel, style.colour("hc"), bold=True)
        assert list(mean.get_xdata()) == list(range(1, 9))
        assert mean.get_ydata() == pytest.approx([factor * gain("hc", k) for k in range(1, 9)])
    assert "within 0.005 of 1: Identity HC, mHC-lite, KromHC, JPmHC" in " ".join(
        forward.get_xlabel().split()
    )


def test_identity_distance_of_every_sublayer(results: Results) -> None:
    panel = figure_of(results, "identity_distance").axes[0]
    (mean,) = lines_of(panel, style.colour("kromhc"), bold=True)
    assert mean.get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_diverged_runs_are_named(results: Results) -> None:
    assert results.divergence_note("sotu", "d2") == ""
    note = results.divergence_note("sotu", "d4").replace("\u00a0", " ")
    assert note == "diverged: HC 1 of 3"
    assert results.divergence_note("sotu", "d4", ["mhc"]) == ""


# --- pieces that are missing --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "all_diverge", "said"),
    [
        (
            {"seeds": (7,), "variants": ("residual", "hc", "mhc_lite")},
            False,
            {"identity_distance": "sub-layer"},
        ),
        (
            {"variants": ("mhc", "mhc_lite")},
            False,
            {"loss_vs_depth": "not in this study", "validation_loss": "minus mHC"},
        ),
        (
            {"variants": ("residual",)},
            False,
            {
                "row_sums": "no H_res to show",
                "composite_gain": "no H_res to show",
                "identity_distance": "no H_res to show",
                "knockouts": "no H_res to show",
                "validation_loss": "nothing to compare",
            },
        ),
        (
            {"variants": ("residual", "mhc")},
            True,
            {
                "loss_vs_depth": "No run reached its last step",
                "sinkhorn_inputs": "No run of mHC reached its last step",
                "row_sums": "No multi-stream run reached its last step",
                "composite_gain": "No multi-stream run reached its last step",
                "identity_distance": "No multi-stream run reached its last step",
                "knockouts": "No multi-stream run reached its last step",
                "gradient_norm": "No run has the 20 steps",
                "loss_against_time": "No run reached its last step",
                "token_efficiency": "no completed plain residual",
                "stream_similarity": "No completed run has more than one stream",
            },
        ),
        (
            {
                "corpora": ("one", "two"),
                "variants": ("residual", "mhc"),
            },
            False,
            {},
        ),
    ],
    ids=["one seed and no mhc", "no residual", "residual only", "all diverge", "two corpora"],
)
def test_what_is_missing_is_said_and_the_rest_is_drawn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    all_diverge: bool,
    said: dict[str, str],
) -> None:
    monkeypatch.setattr("builder.DIVERGED_STEP", 12)
    study = make_study(**(TINY | options))
    diverged: Sequence[str] = list(study.runs()) if all_diverge else ()
    results = load_results(build_results(tmp_path, study, diverged=diverged))
    for name in shown_of(results):
        with style.style():
            figure = FIGURES[name][1](results)
            figure.draw_without_rendering()  # lays it out: a panel that does not fit would warn
        text = texts(figure).replace("\n", " ")
        if name in said:
            assert said[name] in text, name
        else:
            assert "reached its last step" not in text, name


def test_one_model_size_may_have_no_completed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.DIVERGED_STEP", 12)
    study = make_study(**TINY | {"models": {"d1": 1, "d2": 2}, "variants": ("residual", "mhc")})
    diverged = [run for run in study.runs() if "-d2-" in run]
    results = load_results(build_results(tmp_path, study, diverged=diverged))
    elsewhere = (
        "depth",
        "loss_vs_depth",
        "throughput",
        "stream_similarity",
        "mixing_over_training",
    )
    for name in shown_of(results):
        text = " ".join(texts(figure_of(results, name)).split())
        assert "1 layer" in text or name in elsewhere, name
        if name == "gradient_norm":
            assert "2 layers: no run has the 20 steps" in text
        if name == "loss_vs_depth":
            assert "2 layers, diverged: Residual 2 of 2, mHC 2 of 2" in text


def test_a_run_that_goes_astray_does_not_hide_the_other_differences(
    results: Results,
) -> None:
    curves = results.curves.copy()
    astray = (curves["run"] == DIVERGED) & (curves["step"] > 0)
    curves.loc[astray, "validation_loss"] += 100
    figure = FIGURES["validation_loss"][1](replace(results, curves=curves))
    low, high = figure.axes[3].get_ylim()
    assert -0.1 < low < high < 0.1


def test_variants_that_do_not_mix_are_named_rather_than_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., dict[str, Any]] = builder.probe_of

    def without_mixing(run: dict[str, Any], diverged: bool) -> dict[str, Any]:
        probe = original(run, diverged)
        if probe["variant"] == "identity":
            mixing = probe["mixing"]
            mixing["identity_distance"] = [0.0] * mixing["n_sublayers"]
        return probe

    monkeypatch.setattr("builder.probe_of", without_mixing)
    both = make_study(variants=("identity", "mhc_lite"), **TINY)
    results = load_results(build_results(tmp_path / "both", both, diverged=()))
    assert "0 everywhere: Identity HC" in texts(figure_of(results, "identity_distance"))
    alone = make_study(variants=("identity",), **TINY)
    results = load_results(build_results(tmp_path / "alone", alone, diverged=()))
    text = texts(figure_of(results, "identity_distance"))
    assert "H_res is the identity everywhere: Identity HC." in text


def test_gains_of_exactly_one_are_shown_around_one(tmp_path: Path) -> None:
    study = make_study(variants=("mhc_lite",), **TINY)
    results = load_results(build_results(tmp_path, study, diverged=()))
    low, high = figure_of(results, "composite_gain").axes[0].get_ylim()
    assert 0.99 < low < 1 < high < 1.2
