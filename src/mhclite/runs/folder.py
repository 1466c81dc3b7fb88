"""What a measuring step is given: finished run folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.files import misfit, read_json, read_jsonl, sha256_of

SCHEMA = 1  # of every file that one step writes for another


def read_schema(path: Path, what: str, step: str, delete: Path | None = None) -> dict[str, Any]:
    """Read a JSON file that `step` wrote; `UserError` if it is missing or of another version.

    `delete` is what the user removes to have it written again: left out, the file itself.
    """
    if not path.is_file():
        raise UserError(
            f"{what} is missing: {path} does not exist; run `snakemake --cores all`, or "
            f"`python -m mhclite {step}` by hand"
        )
    value = read_json(path, what)
    found = value.get("schema") if isinstance(value, dict) else None
    if found != SCHEMA:
        raise UserError(
            f"{what} is from another version of mhclite: {path} has schema {found}, expected "
            f"{SCHEMA}; delete {delete or path} and run `snakemake --cores all`"
        )
    return dict(value)


# What the steps after training read of a run folder, as shapes for `misfit`.
SUMMARY_SHAPE = {
    "status": str,
    "steps": int,
    "diverged_step": int | None,
    "tokens": int,
    "train_loss": float | None,
    "validation_loss": float | None,
    "validation_bits_per_byte": float | None,
    "best_validation_loss": float,
    "seconds": float,
    "tokens_per_second": float,
    "metrics_sha256": str,
}
RECORD_SHAPE = {
    "config": {"training": {}, "model": {}, "connection": {}},
    "corpus": {"digest": str},
    "provenance": {
        "git": {"commit": str | None, "dirty": bool | None},
        "versions": {},
        "hardware": {"cpu": str, "cores": int | None},
        "platform": str,
    },
    "parameters": {"total": int, "connection": int},
}


@dataclass(frozen=True)
class FinishedRun:
    """A run folder that `train` has completed."""

    run: str
    description: dict[str, Any]  # run.json
    summary: dict[str, Any]  # summary.json
    metrics: list[dict[str, Any]]  # metrics.jsonl, one entry a step, step 0 first


def finished_run(runs: Path, run: str) -> FinishedRun:
    """Read the folder of a run; `UserError` if it is not finished or of another version."""
    folder = runs / run
    if not (folder / "summary.json").is_file():
        raise UserError(
            f"run {run} is not finished: {folder / 'summary.json'} does not exist; "
            "`snakemake --cores all` trains or continues it"
        )
    again = f"delete {folder} and run `snakemake --cores all`"
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"run {run} has no {metrics}; {again}")
    read = []
    for name, shape in (("summary.json", SUMMARY_SHAPE), ("run.json", RECORD_SHAPE)):
        content = read_schema(folder / name, f"{name} of run {run}", "train", folder)
        problem = misfit(content, shape)
        if problem:
            raise UserError(f"{folder / name} is not what training wrote: {problem}; {again}")
        read.append(content)
    summary, description = read
    if sha256_of(metrics) != summary["metrics_sha256"]:
        raise UserError(f"{metrics} is not what training wrote: it was changed since; {again}")
    return FinishedRun(run, description, summary, metrics=read_jsonl(metrics))
