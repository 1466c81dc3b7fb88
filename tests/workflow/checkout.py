"""The real DAG in a copy of the checkout, so that tests may edit and break it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from copy import copy
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "workflow", "profiles", "config", "src", "environment.yml")

# Of the smoke study in tests: a control, one that iterates, one that does not. All variants train
# in tests/unit.
VARIANTS = ["residual", "mhc", "mhc_lite"]

# Most of a dry run's time is the import of Snakemake: done once, and each run is a fork of that.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["snakemake.cli"])


def run_snakemake(arguments: list[str], folder: Path, environment: dict[str, str], to: str) -> None:
    """What `python -m snakemake` does, in a process that has imported it already."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor in (1, 2):
        os.dup2(os.open(to, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.argv = ["snakemake", *arguments]
    sys.path.insert(0, str(folder))
    from snakemake.cli import main

    main()


class Checkout:
    """A copy of the project in which Snakemake can be run.

    Args:
        own_source: for tests that edit it. Else `src` is that of the project, which spares its
            copying and its compilation.
    """

    def __init__(self, folder: Path, own_source: bool = False) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        ignored = shutil.ignore_patterns("*.egg-info")
        for name in COPIED:
            if name == "src" and not own_source:
                (folder / name).symlink_to(ROOT / name)
            elif (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, folder / name)
        # Captions are read by path; the editable install must not win over this copy.
        path = [str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = {**os.environ, "PATH": os.pathsep.join(path)}

    def copy(self, folder: Path) -> Checkout:
        """Another with everything that is in this one, results and Snakemake's records."""
        shutil.copytree(self.folder, folder)
        copied = copy(self)
        copied.folder = folder
        return copied

    def command(self, *arguments: str, study: str = "config/smoke.yaml") -> list[str]:
        # --configfile takes all words up to the next option, so it comes last.
        options = ("--cores", "2", "--configfile", study)
        return [sys.executable, "-m", "snakemake", *arguments, *options]

    def start(self, *arguments: str, study: str = "config/smoke.yaml") -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments, study=study),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def snakemake(self, *arguments: str, study: str = "config/smoke.yaml") -> tuple[int, str]:
        """Exit code and everything printed."""
        command = self.command(*arguments, study=study)[3:]
        with tempfile.NamedTemporaryFile("r") as output:
            given = (command, self.folder, self.environment, output.name)
            process = FORKS.Process(target=run_snakemake, args=given)
            process.start()
            process.join(600)
            code = process.exitcode
            process.kill()  # where it has not ended
            assert code is not None, output.read()
            return code, output.read()

    def planned(self, *arguments: str, study: str = "config/smoke.yaml") -> dict[str, int]:
        """Jobs that a dry run plans, by rule; empty if there is nothing to do."""
        code, output = self.snakemake("--dry-run", *arguments, study=study)
        assert code == 0, output
        return self.jobs(output)

    @staticmethod
    def jobs(output: str) -> dict[str, int]:
        """Jobs by rule, of what a dry run prints."""
        if "Nothing to be done" in output:
            return {}
        lines = output.split("Job stats:", 1)[1].split("total", 1)[0].splitlines()[3:]
        return {rule: int(count) for rule, count in (line.split() for line in lines if line)}
