"""The two things that a bundle asks of the workflow: prepare corpora, and take files as made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mhclite.errors import UserError


def snakemake(study_file: Path, *arguments: str) -> None:
    """Run Snakemake on a study in the folder of the project.

    Raises:
        UserError: it fails, or this is not the folder of the project.
    """
    if not Path("Snakefile").is_file():
        raise UserError(f"{Path.cwd()} has no Snakefile: run this in the folder of the project")
    command = [sys.executable, "-m", "snakemake", *arguments, "--cores", "all"]
    done = subprocess.run(
        [*command, "--configfile", str(study_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        reason = (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")
        raise UserError(f"snakemake {' '.join(arguments)[:200]}: {reason}")
