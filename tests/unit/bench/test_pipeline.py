"""What the pipeline costs: the arithmetic of its measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhclite.bench.pipeline import covered, seconds_in_steps


def test_covered_time_counts_overlaps_once() -> None:
    assert covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.5, 5.6)]) == 4.0
    assert covered([]) == 0.0


def test_seconds_in_steps_are_of_all_threads(tmp_path: Path) -> None:
    for run, threads, seconds in (("a", 1, [0.5, 0.25]), ("b", 2, [1.0])):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        record = {"config": {"training": {"threads": threads}}}
        (folder / "run.json").write_text(json.dumps(record))
        lines = [json.dumps({"step": at, "seconds": one}) for at, one in enumerate(seconds, 1)]
        (folder / "timing.jsonl").write_text("\n".join(lines) + "\n")
    assert seconds_in_steps(tmp_path) == pytest.approx(2.75)
