"""The learning rate of one arm: a grid around its size's rate, then the best at full length.

The *grid* begins with the size's rate and one to either side. Where the best is at the edge, one
more rate is tried on that side, until the best is inside (*bracketed*) or `widest` is reached: a
best rate at the edge is none. Then the best `finalists` within `margin` of the first are trained
for all steps with seeds that the grid did not have, and the lowest mean loss wins; one that stands
alone has won. A winner at the edge of all rates that were tried is followed outwards as the grid
was, at full length. A run that diverges is worse than any that does not; of equal rates the smaller
is the better.

Each trial is an ordinary run folder beside the output, without its weights: a sweep that was killed
goes on with the trial that was under way, from its checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import math
import signal
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mhclite.arguments import file_path, folder_path, required
from mhclite.config import RunConfig
from mhclite.errors import Interrupted
from mhclite.files import write_json
from mhclite.measure.measured import (
    SWEEP_SCHEMA,
    Sweep,
    SweepSettings,
    Trial,
    settings_argument,
)
from mhclite.records import to_json
from mhclite.runs.folder import WEIGHTS, RunFolder, Summary
from mhclite.training.loop import train
from mhclite.training.train import run_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """What a sweep comes to, in powers of the ratio; 0 is the size's own rate."""

    bracketed: bool
    power: int | None  # None: not bracketed, or every finalist diverged
    band: tuple[int, int] | None  # None: every rate diverged


# (power, seed, whether it is a finalist) -> final validation loss, None if it diverged
Make = Callable[[int, int, bool], float | None]


def choose(settings: SweepSettings, make: Make) -> Chosen:
    """Carry out the rule.

    Args:
        make: trains a trial.
    """

    def mean(power: int, final: bool) -> float:
        seeds = settings.final_seeds if final else settings.seeds
        losses = [make(power, seed, final) for seed in seeds]
        return statistics.fmean(math.inf if loss is None else loss for loss in losses)

    def ranked(losses: dict[int, float]) -> list[int]:
        return sorted(losses, key=lambda power: (losses[power], power))

    grid = {power: mean(power, final=False) for power in (0, -1, 1)}
    while (best := ranked(grid)[0]) in (min(grid), max(grid)) and abs(best) < settings.widest:
        further = best + (1 if best > 0 else -1)
        grid[further] = mean(further, final=False)
    band = _band(grid, best, settings.band)
    if not min(grid) < best < max(grid):
        return Chosen(False, None, band)
    near = [power for power in ranked(grid) if grid[power] <= grid[best] + settings.margin]
    if len(near) == 1 or settings.finalists == 1:
        return Chosen(True, best, band)
    final = {power: mean(power, final=True) for power in near[: settings.finalists]}
    while (winner := ranked(final)[0]) in (min(grid | final), max(grid | final)):
        further = winner + (1 if winner > best else -1)
        if abs(further) > settings.widest:
            return Chosen(False, None, band)
        final[further] = mean(further, final=True)
    return Chosen(True, winner if final[winner] < math.inf else None, band)


def _band(grid: dict[int, float], best: int, width: float) -> tuple[int, int] | None:
    """The powers around the best that are all at most `width` above it."""
    if grid[best] == math.inf:
        return None
    low = high = best
    while grid.get(low - 1, math.inf) <= grid[best] + width:
        low -= 1
    while grid.get(high + 1, math.inf) <= grid[best] + width:
        high += 1
    return low, high


def at_rate(config: RunConfig, name: str, factor: float) -> RunConfig:
    """The run at `factor` times its learning rate, in one process, as the trial `name`."""
    return replace(
        config,
        run=f"{config.run}-{name}",
        model=replace(config.model, learning_rate=config.model.learning_rate * factor),
        training=replace(config.training, processes=1),
    )


def train_trial(config: RunConfig, corpus: Path, path: Path) -> Summary:
    """Train a trial, or go on with it, in a run folder that does not keep its weights.

    Raises:
        Interrupted: after a signal; the trial is saved.
    """
    folder = RunFolder(path)
    late = train(config, corpus, path)
    (folder / WEIGHTS).unlink(missing_ok=True)
    if late:
        raise Interrupted(
            f"{signal.Signals(late[0]).name} at the end of {path.name}; run the same command to "
            "continue"
        )
    return folder.summary()


def trial(
    config: RunConfig, settings: SweepSettings, power: int, seed: int, final: bool
) -> tuple[str, RunConfig]:
    """(name of its folder, the run). The grid's have the whole schedule, on fewer steps."""
    training = config.training

    def scaled(steps: int) -> int:
        return steps * settings.steps // training.steps

    if not final:
        config = replace(
            config,
            training=replace(
                training,
                steps=settings.steps,
                warmup_steps=scaled(training.warmup_steps),
                evaluation_interval=max(1, scaled(training.evaluation_interval)),
                checkpoint_interval=max(1, scaled(training.checkpoint_interval)),
            ),
        )
    factor = settings.ratio**power
    name = f"{'final' if final else 'grid'}-x{factor:g}-s{seed}"
    return name, at_rate(replace(config, seed=seed), name, factor)


def measure(config: RunConfig, corpus: Path, settings: SweepSettings, out: Path) -> Sweep:
    """Sweep one arm, or go on with it.

    Args:
        config: any run of the arm; its rate is the size's.
        corpus: folder of the prepared corpus.
        out: the file that will be written; trials are in the folder of this name without `.json`.

    Raises:
        Interrupted: after a signal; the trial that was under way is saved.
    """
    trials: list[Trial] = []

    def make(power: int, seed: int, final: bool) -> float | None:
        name, one = trial(config, settings, power, seed, final)
        loss = train_trial(one, corpus, out.with_suffix("") / name).validation_loss
        log.info("%s: %s", name, "diverged" if loss is None else f"{loss:.4f}")
        trials.append(Trial(one.model.learning_rate, seed, one.training.steps, loss))
        return loss

    found = choose(settings, make)
    shared = config.model.learning_rate

    def rate(power: int) -> float:
        return shared * settings.ratio**power

    return Sweep(
        SWEEP_SCHEMA,
        config.corpus,
        config.model.name,
        config.condition,
        config.connection.variant,
        settings,
        shared,
        found.bracketed,
        None if found.power is None else rate(found.power),
        None if found.band is None else [rate(power) for power in found.band],
        trials,
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite sweep`."""
    required(
        parser,
        config=(None, "resolved configuration of a run of the arm (JSON, or @FILE)"),
        corpus=(folder_path, "folder of a prepared corpus"),
        settings=(None, "JSON object with the keys of the section `sweep`, and the grid's seeds"),
        out=(file_path, "file to write"),
    )


def run(args: argparse.Namespace) -> None:
    """Sweep, and write the file."""
    config = run_config(args.config)
    settings = settings_argument(SweepSettings, args.settings, "--settings")
    write_json(args.out, to_json(measure(config, args.corpus, settings, args.out)))
