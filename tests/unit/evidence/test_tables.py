"""Tables say what was put in: their numbers are traced back to the synthetic study."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builder import (
    ALL_VARIANTS,
    BIGRAM,
    DIVERGED,
    DIVERGED_STEP,
    GRAD_NORM_SPIKE,
    UNIGRAM,
    bits_per_byte,
    build_results,
    final_loss,
    gain,
    make_study,
    parameters_of,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mhclite import cli
from mhclite.evidence.evidence import terminal_table, write_tables
from mhclite.evidence.exhibits import TABLES, shown
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.table_format import (
    NONE,
    Table,
    fixed,
    latex,
    latex_table,
    markdown,
    plus_minus,
    scaled_plus_minus,
    significant,
)
from mhclite.evidence.topics.losses import best_rows, results_data, seeds_data
from mhclite.evidence.values import values_by_seed

NAMES = (
    *("claims", "overview", "paper", "results", "results_seeds", "parameters", "stability"),
    *("mixing_use", "streams_within"),
)
FORMATS = ("csv", "md", "tex", "html")


def table_of(results: Results, name: str) -> Table:
    """One of a study's tables."""
    return TABLES[name][1](results)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tables/ of the synthetic study, with intervals of 90 %."""
    study = make_study(statistics={"confidence": 0.9})
    folder = build_results(tmp_path_factory.mktemp("tables"), study)
    write_tables(load_results(folder))
    return folder / "tables"


def losses(n_layer: int, variant: str, seeds: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """Final losses of one cell, by seed."""
    return np.array([final_loss("sotu", n_layer, variant, seed) for seed in seeds])


def half_width(values: np.ndarray, confidence: float) -> float:
    """Half-width of the t interval, by scipy's own interval."""
    interval = stats.t.interval(confidence, len(values) - 1, values.mean(), stats.sem(values))
    return float(interval[1] - values.mean())


def markdown_rows(path: Path) -> list[dict[str, str]]:
    """Rows of the Markdown table in a file, group names filled in."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows: list[dict[str, str]] = []
    for row in cells[2:]:
        assert len(row) == len(cells[0])
        named = dict(zip(cells[0], row, strict=True))
        for group in {"Corpus", "Model", "Layers"} & named.keys():
            named[group] = named[group] or rows[-1][group]
        rows.append(named)
    return rows


# --- results --------------------------------------------------------------------------------


def test_results_csv_traces_to_every_seed(folder: Path) -> None:
    data = pd.read_csv(folder / "results.csv")
    cells = data[data["kind"] == "variant"].set_index(["n_layer", "variant"])
    assert len(cells) == 2 * len(ALL_VARIANTS)
    for n_layer in (2, 4):
        for variant in ALL_VARIANTS:
            row = cells.loc[(n_layer, variant)]
            diverged = (n_layer, variant) == (4, "hc")
            seeds = (0, 2) if diverged else (0, 1, 2)
            expected = losses(n_layer, variant, seeds)
            assert (row["n"], row["n_diverged"]) == (len(seeds), int(diverged))
            assert row["validation_loss"] == pytest.approx(expected.mean(), rel=1e-12)
            assert row["validation_loss_half_width"] == pytest.approx(half_width(expected, 0.9))
            assert row["bits_per_byte"] == pytest.approx(bits_per_byte(expected.mean()))
            assert row["confidence"] == 0.9
            for seed in (0, 1, 2):
                if seed in seeds:
                    assert row[f"seed_{seed}"] == final_loss("sotu", n_layer, variant, seed)
                else:
                    assert math.isnan(row[f"seed_{seed}"])
            if variant == "residual":
                assert row[["difference_n", "difference_mean"]].isna().all()
            else:
                difference = expected - losses(n_layer, "residual", seeds)
                assert row["difference_n"] == len(seeds)
                assert row["difference_mean"] == pytest.approx(difference.mean())
                assert row["difference_half_width"] == pytest.approx(half_width(difference, 0.9))


def test_baselines_stand_on_top_of_each_corpus(tmp_path: Path) -> None:
    study = make_study(corpora=["b", "a"], models={"d2": 2}, variants=["residual"], seeds=[0])
    data = results_data(load_results(build_results(tmp_path, study, diverged=())))
    assert data["corpus"].tolist() == ["b"] * 3 + ["a"] * 3
    assert data["variant"].tolist() == ["unigram", "bigram", "residual"] * 2
    assert data["validation_loss"].tolist()[:2] == [UNIGRAM, BIGRAM]
    assert data["bits_per_byte"].tolist()[:2] == pytest.approx(
        [bits_per_byte(UNIGRAM), bits_per_byte(BIGRAM)]
    )


def test_confidence_is_that_of_the_study_everywhere(folder: Path) -> None:
    for name in ("claims", "results", "stability"):
        notes = (folder / f"{name}.md").read_text().splitlines()[-1]
        assert "90 % Student t interval" in notes
        assert "95 %" not in notes
        assert (
            "90 %" in (folder.parent / "captions" / f"{name}.txt").read_text()
            or name == "stability"
        )


def test_results_for_readers_say_the_same(folder: Path) -> None:
    rows = markdown_rows(folder / "results.md")
    assert [row["Variant"] for row in rows[:3]] == [
        "Unigram baseline",
        "Bigram baseline",
        "Residual",
    ]
    assert rows[0]["Validation loss (nats/token)"] == "5.2500"
    by_name = {(row["Layers"], row["Variant"]): row for row in rows}
    hc = by_name["4", "HC"]
    expected = losses(4, "hc", (0, 2))
    assert hc["Validation loss (nats/token)"] == (
        f"{expected.mean():.4f} ± {half_width(expected, 0.9):.4f}"
    )
    assert (hc["Seeds (n)"], hc["Diverged"]) == ("2", "1")
    difference = losses(2, "mhc") - losses(2, "residual")
    assert by_name["2", "mHC"]["Difference to residual (nats/token)"] == (
        f"{difference.mean():.4f} ± {half_width(difference, 0.9):.4f}"
    )
    assert by_name["2", "Residual"]["Difference to residual (nats/token)"] == NONE
    bold = [key for key, row in by_name.items() if "**" in row["Validation loss (nats/token)"]]
    assert bold == [("2", "mHC-lite"), ("4", "mHC-lite")]
    notes = (folder / "results.md").read_text().splitlines()[-1]
    assert "90 % Student t interval over seeds" in notes
    assert "n seeds that completed" in notes


def test_a_variant_that_diverged_is_never_the_best(tmp_path: Path) -> None:
    study = make_study(models={"d2": 2}, variants=["residual", "mhc", "mhc_lite"])
    built = build_results(tmp_path, study, diverged=("sotu-d2-mhc_lite-s0",))
    data = results_data(load_results(built))
    lowest = data.loc[data[data["kind"] == "variant"]["validation_loss"].idxmin(), "variant"]
    assert lowest == "mhc_lite"
    assert [data.loc[row, "variant"] for row in best_rows(data)] == ["mhc"]


def test_seeds_sidecar_has_every_run(folder: Path, results: Results) -> None:
    sidecar = pd.read_csv(folder / "results_seeds.csv").set_index("run")
    assert list(sidecar.index) == list(results.study["runs"])
    for seed in (0, 1, 2):
        row = sidecar.loc[f"sotu-d4-mhc-s{seed}"]
        loss, base = (final_loss("sotu", 4, variant, seed) for variant in ("mhc", "residual"))
        assert row["validation_loss"] == loss
        assert row["difference_to_residual"] == loss - base
    assert sidecar.loc[DIVERGED, "status"] == "diverged"
    assert sidecar.loc[DIVERGED, "diverged_step"] == DIVERGED_STEP
    assert sidecar["difference_to_residual"].isna().sum() == 2 * 3 + 1
    assert sidecar["diverged_step"].isna().sum() == len(sidecar) - 1


def test_one_seed_gives_means_without_intervals(tmp_path: Path) -> None:
    study = make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[7])
    built = load_results(build_results(tmp_path, study, diverged=()))
    display = table_of(built, "results").display
    loss, base = (final_loss("sotu", 2, variant, 7) for variant in ("mhc", "residual"))
    assert display.iloc[-1]["Validation loss (nats/token)"] == f"{loss:.4f}"
    assert display.iloc[-1]["Difference to residual (nats/token)"] == f"{loss - base:.4f}"
    assert "over 1 seed\n" in terminal_table(built)


def test_all_runs_of_a_variant_diverged_or_no_residual(tmp_path: Path) -> None:
    study = make_study(models={"d4": 4}, variants=["hc", "mhc"], seeds=[0, 1])
    diverged = ("sotu-d4-hc-s0", "sotu-d4-hc-s1")
    built = load_results(build_results(tmp_path, study, diverged=diverged))
    results_display, stability_display = (
        table_of(built, name).display for name in ("results", "stability")
    )
    hc = results_display.iloc[2]
    assert hc["Validation loss (nats/token)"] == NONE
    assert (hc["Seeds (n)"], hc["Diverged"]) == ("0", "2")
    assert "Difference to residual (nats/token)" not in results_display
    assert stability_display["Diverged runs"].tolist() == ["2 of 2", "0 of 2"]
    assert stability_display["Final gain, forward (arithmetic mean)"][0] == NONE
    assert seeds_data(built)["difference_to_residual"].isna().all()
    assert f"{NONE}, 2 diverged" in terminal_table(built)
    for _, make in shown(TABLES, built.settings):
        assert "nan" not in markdown(make(built)).lower()


# --- parameters and stability ---------------------------------------------------------------


def test_parameters_trace_to_the_throughput_files(folder: Path) -> None:
    data = pd.read_csv(folder / "parameters.csv").set_index(["model", "variant"])
    rows = {(row["Model"], row["Variant"]): row for row in markdown_rows(folder / "parameters.md")}
    for model, n_layer in (("d2", 2), ("d4", 4)):
        measured = json.loads((folder.parent / "throughput" / f"{model}.json").read_text())
        for variant, label in (("residual", "Residual"), ("kromhc", "KromHC")):
            row, source = data.loc[(model, variant)], measured["variants"][variant]
            count = parameters_of(n_layer, variant)
            assert row["parameters"] == count["total"]
            assert row["extra_parameters"] == count["connection"]
            percent = 100 * count["connection"] / (count["total"] - count["connection"])
            assert row["extra_percent"] == pytest.approx(percent)
            assert row["flops_per_token"] == source["flops_per_token"]
            for q in ("median", "q1", "q3"):
                assert row[f"tokens_per_second_{q}"] == source["tokens_per_second"][q]
                assert row[f"ratio_{q}"] == source["ratio_quartiles"][q]
            assert row["peak_memory_bytes"] == source["peak_memory_bytes"]
            shown = rows[model, label]
            assert shown["Parameters"] == f"{count['total']:,}"
            speed = source["tokens_per_second"]
            assert shown["Throughput (tokens/s)"] == (
                f"{speed['median']:,.0f} [{speed['q1']:,.0f}, {speed['q3']:,.0f}]"
            )
    assert rows["d2", "KromHC"]["Step time (residual = 1)"] == "2.25 [2.23, 2.29]"
    assert rows["d2", "KromHC"]["Peak memory (MiB)"] == "133.0"
    notes = (folder / "parameters.md").read_text()
    assert "Measured on Synthetic CPU, 1 thread, fp32, batch 16 × context 64, 9 rounds." in notes


def test_models_measured_differently_are_said_apart(tmp_path: Path) -> None:
    study = make_study(variants=["residual"], seeds=[0])
    built = build_results(tmp_path, study, diverged=())
    path = built / "throughput" / "d4.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "Some GPU"'))
    notes = table_of(load_results(built), "parameters").notes
    assert "d2: Synthetic CPU, 1 thread, fp32" in notes
    assert "; d4: Some GPU, fp32" in notes


@pytest.mark.slow
def test_throughput_without_a_variant_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build_results(tmp_path, make_study(seeds=[0]), diverged=())
    path = built / "throughput" / "d4.json"
    path.write_text(path.read_text().replace('"jpmhc"', '"other"'))
    assert cli.main(["evidence", "--results", str(built)]) == 2
    message = capsys.readouterr().err
    assert "the throughput of model d4 was measured without variant jpmhc" in message
    assert f"delete {path} and run" in message


def test_stability_traces_to_runs_and_probes(folder: Path) -> None:
    data = pd.read_csv(folder / "stability.csv").set_index(["n_layer", "variant"])
    hc = data.loc[(4, "hc")]
    assert (hc["n_runs"], hc["n_diverged"]) == (3, 1)
    # One spike in each of three runs: two with 60 - 10 - 16 steps judged, the diverged with 18.
    assert (hc["loss_spikes"], hc["grad_norm_spikes"]) == (0, 3)
    assert GRAD_NORM_SPIKE < DIVERGED_STEP
    assert hc["judged_steps"] == 34 + 34 + 18
    # Claims have the same denominator, run by run.
    rates = values_by_seed(load_results(folder.parent), "sotu", "d4", "hc", "grad_norm_spikes")
    assert rates == {0: 1000 / 34, 1: math.inf, 2: 1000 / 34}
    assert np.isnan(hc["loss_spikes_per_1000_steps"])  # no rate from no event
    assert hc["loss_spikes_low"] == 0
    # 90 %: -ln(0.05) = 2.9957 events.
    assert hc["loss_spikes_high"] == pytest.approx(2.9957 / 0.086, rel=1e-4)
    assert hc["single_max_deviation"] == 0.8
    assert hc["product_max_deviation"] == 8.0
    assert hc["gain_forward"] == pytest.approx(gain("hc", 8))
    assert hc["gain_backward"] == pytest.approx(1.1 * gain("hc", 8))
    assert data.loc[(2, "mhc"), "sinkhorn_share_above_30"] == pytest.approx(50 / 700)
    assert data["sinkhorn_share_above_30"].notna().sum() == 2
    assert data["grad_norm_mean"].between(0.9, 1.1).all()  # the diverged run's 2.4 is not in it
    assert data.loc[(2, "residual"), ["gain_forward", "single_max_deviation"]].isna().all()

    shown = {(row["Layers"], row["Variant"]): row for row in markdown_rows(folder / "stability.md")}
    assert shown["4", "HC"]["Diverged runs"] == "1 of 3"
    assert shown["4", "HC"]["Loss spikes, of steps judged"] == "0 of 86"
    assert shown["4", "HC"]["Loss spikes per 1,000 judged"] == "0 to 35"
    assert shown["4", "HC"]["Gradient-norm spikes"] == "3"
    assert shown["4", "mHC"]["Sums off, product"] == "0.300"
    assert shown["4", "HC"]["Sums off, product"] == NONE, "they are not meant to be 1"
    assert shown["4", "mHC-lite"]["Sums off, single"] == "2.00e-07"
    assert shown["2", "mHC"]["log(1/ν) > 30 (%)"] == "7.14"
    assert shown["2", "Residual"]["Final gain, forward (arithmetic mean)"] == NONE
    notes = (folder / "stability.md").read_text()
    assert "more than 6 standard deviations above the mean of the 16 steps before it" in notes
    assert "90 % Student t interval over seeds" in notes


def test_too_few_steps_for_a_verdict_shows_no_rate(tmp_path: Path) -> None:
    study = make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[0], steps=12)
    built = load_results(build_results(tmp_path, study, diverged=()))
    display = table_of(built, "stability").display
    assert set(display["Loss spikes per 1,000 judged"]) == {NONE}
    assert set(display["Gradient norm, last 20 steps"]) == {NONE}


# --- files ----------------------------------------------------------------------------------


def test_every_table_in_every_format(folder: Path) -> None:
    written = {path.name for path in folder.iterdir()}
    assert written == {f"{n}.{f}" for n in NAMES for f in FORMATS}


@pytest.mark.slow
def test_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = build_results(tmp_path, make_study(statistics={"confidence": 0.9}))
    write_tables(load_results(again))
    for path in folder.iterdir():
        assert (again / "tables" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", NAMES)
def test_latex_is_well_formed(folder: Path, name: str) -> None:
    text = (folder / f"{name}.tex").read_text()
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert text.isascii()
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    alignment = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    assert alignment is not None
    for line in body.splitlines()[1:]:
        cells = line.removesuffix(r" \\").split(" & ")
        assert len(cells) == len(alignment[1])
    # Nothing special is left unescaped outside of comments and maths.
    plain = text.replace(rf"\label{{tab:{name}}}", "")
    plain = re.sub(r"\$[^$]*\$|^%.*$|%$", "", plain, flags=re.MULTILINE)
    assert not re.search(r"(?<!\\)[%#_^~]", plain)


def test_latex_names_are_escaped(tmp_path: Path) -> None:
    study = make_study(
        corpora=["my_text"], models={"d_2": 2}, variants=["residual", "mhc"], seeds=[0, 1]
    )
    table = table_of(load_results(build_results(tmp_path, study, diverged=())), "results")
    text = latex_table(table)
    assert r"my\_text & --" in text
    assert r"d\_2 & 2 & Residual" in text
    assert r"\textbf{" in text


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ("-0.0123 ± 0.0045", r"$-$0.0123 $\pm$ 0.0045"),
        ("2.00e-07", r"$2.00 \times 10^{-7}$"),
        ("-1.5e+08", r"$-1.5 \times 10^{8}$"),
        ("mHC-lite", "mHC-lite"),
        ("a_b & 5 % of $3 {x}", r"a\_b \& 5 \% of \$3 \{x\}"),
        ("log(1/ν) > 30", r"log(1/$\nu$) $>$ 30"),
        ("GPT-2 at 10^3", r"GPT-2 at 10\textasciicircum{}3"),
        ("3 [-1, 2]", r"3 [$-$1, 2]"),
    ],
)
def test_latex_of_text(plain: str, expected: str) -> None:
    assert latex(plain) == expected


def test_html_is_escaped_and_bold(folder: Path) -> None:
    text = (folder / "stability.html").read_text()
    assert "log(1/ν) &gt; 30 (%)" in text
    assert "log(1/ν) &gt; 30: share of" in text
    assert '<meta charset="utf-8">' in text
    assert "90 % Student t interval" in text
    results = (folder / "results.html").read_text()
    best = losses(2, "mhc_lite")
    cell = f"{best.mean():.4f} ± {half_width(best, 0.9):.4f}"
    row = re.search(rf'id="(T_results_row\d+_col4)"[^>]*>{re.escape(cell)}<', results)
    assert row is not None
    assert re.search(rf"#{row[1]}[^{{]*\{{\s*font-weight: bold", results)


# --- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (1.0, "1.00"),
        (9.996, "10.0"),
        (0.9996, "1.00"),
        (0.01234, "0.0123"),
        (0.001, "0.00100"),
        (0.0009994, "9.99e-04"),
        (0.0009996, "0.00100"),
        (1234.5, "1,234"),
        (999_600, "1.00e+06"),
        (123456789.0, "1.23e+08"),
        (-2.345, "-2.35"),
        (math.nan, NONE),
        (None, NONE),
        (pd.NA, NONE),
    ],
)
def test_significant(value: float | None, expected: str) -> None:
    assert significant(value) == expected


@given(st.floats(1e-9, 1e9))
def test_significant_is_within_half_a_unit(value: float) -> None:
    assert float(significant(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


def test_plus_minus() -> None:
    assert plus_minus(3.14159, 0.01) == "3.1416 ± 0.0100"
    assert plus_minus(3.14159, math.nan) == "3.1416"
    assert plus_minus(math.nan, math.nan) == NONE
    assert scaled_plus_minus(1.0204, 0.0012) == "1.02 ± 0.00"
    assert scaled_plus_minus(0.01234, 0.001) == "0.0123 ± 0.0010"
    assert scaled_plus_minus(512.3, 12.0) == "512 ± 12"
    assert fixed(1234567, 0) == "1,234,567"


# --- the terminal ---------------------------------------------------------------------------


def test_terminal_table_shows_the_study(
    results_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in results_folder.rglob("*")}
    assert cli.main(["evidence", "--results", str(results_folder), "--show"]) == 0
    shown = capsys.readouterr().out
    # A look changes no file: nothing is rerun because of it.
    assert {path: path.stat().st_mtime_ns for path in results_folder.rglob("*")} == before
    lines = shown.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert "95 % Student t interval" in shown
    assert "mean over 3 seeds" in shown
    heading = next(line for line in lines if line.startswith("sotu"))
    assert heading.split("  ")[-1].strip() == "4 layers"
    rows = {line.split("  ")[0]: line for line in lines if "±" in line and "(" in line}
    assert list(rows)[-7:] == [
        "Residual",
        "Identity HC",
        "HC",
        "mHC",
        "mHC-lite",
        "KromHC",
        "JPmHC",
    ]
    best = losses(2, "mhc_lite")
    assert (
        f"{best.mean():.3f} ± {half_width(best, 0.95):.3f} ({bits_per_byte(best.mean()):.3f}) *"
        in rows["mHC-lite"]
    )
    assert "1 diverged" in rows["HC"]
    assert shown.count(" *") - shown.count("; *") == 2
    assert "Unigram baseline: 5.250 (2.525)" in shown
    assert "Bigram baseline: 4.500 (2.164)" in shown
