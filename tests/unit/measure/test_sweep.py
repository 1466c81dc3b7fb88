"""The rule by which a sweep chooses a rate, on losses that are known, and a tiny sweep for real."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import configuration, write_corpus

from mhclite import cli
from mhclite.config import RunConfig
from mhclite.measure import sweep
from mhclite.measure.measured import SweepSettings, read_sweep
from mhclite.measure.sweep import Chosen, choose, trial
from mhclite.records import to_json
from mhclite.runs.key import deciding
from mhclite.study.sections import SweepSection
from mhclite.training.loop import train

RULE = SweepSettings(
    ratio=2.0, steps=3, widest=3, finalists=2, margin=0.5, final_seeds=[1, 2], band=0.02, seeds=[0]
)
Losses = dict[int, float | None]


def follow(
    grid: Losses, final: Losses | None = None, settings: SweepSettings = RULE
) -> tuple[Chosen, list[tuple[int, int, bool]]]:
    """What the rule makes of losses by power (a missing one is a hundred), and what it trained."""
    made: list[tuple[int, int, bool]] = []

    def make(power: int, seed: int, of_finalists: bool) -> float | None:
        made.append((power, seed, of_finalists))
        return (final if of_finalists and final is not None else grid).get(power, 100.0)

    return choose(settings, make), made


def powers(made: list[tuple[int, int, bool]], final: bool) -> list[int]:
    return [power for power, _, of_finalists in made if of_finalists == final]


def test_what_diverges_is_worse_than_anything_and_brackets() -> None:
    found, made = follow({-1: 1e9, 0: 9.0, 1: None})
    assert found == Chosen(True, 0, (0, 0))
    assert powers(made, final=True) == []


def test_where_all_diverge_smaller_rates_are_tried() -> None:
    found, made = follow(dict.fromkeys(range(-9, 9)))
    assert found == Chosen(False, None, None)
    assert powers(made, final=False) == [0, -1, 1, -2, -3]
    found, _ = follow({1: None, 0: None, -1: None, -2: 3.0, -3: 3.1})
    assert found == Chosen(True, -2, (-2, -2))


def test_the_full_length_decides_among_finalists() -> None:
    grid: Losses = {-1: 3.2, 0: 3.0, 1: 3.1}
    assert follow(grid, {0: 2.9, 1: 2.8, 2: 2.9})[0].power == 1
    assert follow(grid, {0: 2.9, 1: None})[0].power == 0
    assert follow(grid, {0: None, 1: None})[0] == Chosen(True, None, (0, 0))
    assert follow(grid, {0: 2.9, 1: 2.8}, replace(RULE, finalists=1))[0].power == 0


def test_what_is_far_from_the_best_is_no_finalist() -> None:
    grid: Losses = {-1: 3.2, 0: 3.0, 1: 3.1}
    for margin, expected in ((0.09, []), (0.11, [0, 0, 1, 1])):
        found, made = follow(grid, {0: 2.9, 1: 2.95}, replace(RULE, margin=margin))
        assert found.power == 0
        assert powers(made, final=True) == expected


def test_a_winner_at_the_edge_of_all_that_was_tried_is_followed() -> None:
    grid: Losses = {-1: 3.2, 0: 3.0, 1: 3.1}
    final: Losses = {0: 2.9, 1: 2.8, 2: 2.7, 3: 2.75}
    found, made = follow(grid, final)
    assert found == Chosen(True, 2, (0, 0))
    assert powers(made, final=True) == [0, 0, 1, 1, 2, 2, 3, 3]
    found, _ = follow(grid, {**final, 3: 2.6})
    assert found == Chosen(False, None, (0, 0)), "the widest is no bracket"
    assert follow({-1: 3.1, 0: 3.0, 1: 3.2}, {0: 2.9, -1: 2.8, -2: None})[0].power == -1


def test_of_equal_rates_the_smaller_wins() -> None:
    """Level ground is no bracket: it goes down to the end."""
    assert follow(dict.fromkeys(range(-9, 9), 3.0))[0] == Chosen(False, None, (-3, 1))


def test_the_band_holds_its_neighbours_alone() -> None:
    losses: Losses = {-2: 3.4, -1: 3.019, 0: 3.0, 1: 3.03, 2: 3.0}
    assert follow(losses)[0].band == (-1, 0)


@st.composite
def unimodal(draw: st.DrawFn) -> tuple[int, Losses, SweepSettings]:
    """(where the least is, losses that rise away from it and diverge from some rate on, a rule)."""
    widest = draw(st.integers(1, 6))
    least = draw(st.integers(-8, 8))
    rises = draw(st.lists(st.floats(1e-3, 1), min_size=40, max_size=40))
    losses: Losses = {least: 3.0}
    for away in range(1, 20):
        losses[least + away] = losses[least + away - 1] + rises[away]  # type: ignore[operator]
        losses[least - away] = losses[least - away + 1] + rises[-away]  # type: ignore[operator]
    for power in range(least + draw(st.integers(1, 20)), least + 20):
        losses[power] = None
    settings = replace(RULE, widest=widest, finalists=draw(st.integers(1, 3)))
    return least, losses, settings


@given(unimodal())
def test_any_unimodal_loss_is_bracketed_if_its_least_is_within(
    case: tuple[int, Losses, SweepSettings],
) -> None:
    least, losses, settings = case
    found, made = follow(losses, settings=settings)
    assert found.bracketed == (abs(least) < settings.widest)
    assert found.power == (least if found.bracketed else None)
    grid, final = powers(made, final=False), powers(made, final=True)
    assert len(set(grid)) == len(grid), "nothing is trained twice"
    assert max(map(abs, grid)) <= settings.widest
    section = SweepSection.model_validate(
        {k: v for k, v in to_json(settings).items() if k != "seeds"}
    )
    (fewest, most), full = section.trainings(seeds=1)
    assert fewest <= len(grid) <= most
    assert len(final) <= full


def test_the_grid_has_the_whole_schedule_on_fewer_steps() -> None:
    config = configuration("hc", steps=60, warmup_steps=7, evaluation_interval=20)
    rule = replace(RULE, steps=20)
    name, grid = trial(config, rule, -1, 5, final=False)
    assert (grid.seed, grid.model.learning_rate) == (5, config.model.learning_rate / 2)
    assert (grid.training.steps, grid.training.warmup_steps) == (20, 2)
    assert (grid.training.evaluation_interval, grid.training.checkpoint_interval) == (6, 1)
    assert name in grid.run
    _, final = trial(config, rule, 0, config.seed, final=True)
    assert deciding(final) == deciding(config)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.with_suffix("").iterdir())


def call(folder: Path, out: Path, **changes: object) -> int:
    corpus = folder / "corpus"
    if not corpus.exists():
        write_corpus(corpus)
    config = configuration("identity", steps=6)
    settings = {**to_json(RULE), **changes}
    return cli.main(
        [
            *("sweep", "--config", json.dumps(config.to_json()), "--corpus", str(corpus)),
            *("--settings", json.dumps(settings), "--out", str(out)),
        ]
    )


def test_a_sweep_for_real_can_be_cut_short_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole" / "arm.json"
    assert call(tmp_path, whole) == 0
    found = read_sweep(whole)
    assert len(found.trials) == len(names(whole))
    assert {one.steps for one in found.trials if one.seed in RULE.final_seeds} <= {6}
    assert all(one.loss is not None and math.isfinite(one.loss) for one in found.trials)
    if found.rate is not None:
        assert found.rate in {one.rate for one in found.trials}
    assert not list(whole.parent.rglob("weights.pt"))
    assert not list(whole.parent.rglob("checkpoints"))

    trained: list[str] = []

    def dying(config: RunConfig, corpus: Path, path: Path) -> list[int]:
        trained.append(path.name)
        late = train(config, corpus, path)
        if len(trained) == 2:
            return [15]  # came when this trial was at its end
        if len(trained) == 5:  # two were finished already
            raise KeyboardInterrupt
        return late

    monkeypatch.setattr(sweep, "train", dying)
    out = tmp_path / "cut" / "arm.json"
    assert call(tmp_path, out) == cli.EXIT_INTERRUPTED
    assert names(out) == sorted(trained)
    assert not out.exists()
    assert call(tmp_path, out) == cli.EXIT_INTERRUPTED
    assert len(names(out)) == 3
    monkeypatch.setattr(sweep, "train", train)
    before = {path: path.stat().st_mtime_ns for path in out.parent.rglob("metrics.jsonl")}
    assert call(tmp_path, out) == 0
    assert out.read_bytes() == whole.read_bytes()
    again = {path: path.stat().st_mtime_ns for path in before}
    assert again == before, "finished trials are trained once"


@pytest.mark.parametrize("step", ["sweep", "critical", "stability"])
@pytest.mark.parametrize("text", ["[]", '{"ratio": "two"}'])
def test_settings_that_are_none_are_one_line(
    step: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.dumps(configuration().to_json())
    runs = ["--config", config, "--corpus", str(tmp_path)]
    runs = ["--runs", str(tmp_path), "--run", "a"] if step == "stability" else runs
    out = tmp_path / "o.json"
    assert cli.main([step, *runs, "--settings", text, "--out", str(out)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
