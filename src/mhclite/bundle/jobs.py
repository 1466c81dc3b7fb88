"""The jobs of a study that need torch and numpy alone, as a bundle carries them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mhclite.config import RunConfig
from mhclite.errors import UserError
from mhclite.files import read_json
from mhclite.records import Misfit, build

SCHEMA = 2
BUNDLE = "bundle.json"  # the jobs, in the folder of the bundle
RECEIPTS = "bundle-receipts.json"  # output -> digest of what it was made of; in results/<study>
TRAIN = "train"


@dataclass(frozen=True)
class PackedJob:
    """A job (`mhclite.jobs`), with the digest of all that decides its output."""

    step: str
    output: str  # declared output, under results/<study>/
    log: str  # likewise
    digest: str  # for `train` the key of the run
    arguments: list[str]
    processes: int = 1

    def config(self) -> RunConfig:
        """The run that a training job trains."""
        assert self.step == TRAIN
        text = self.arguments[self.arguments.index("--config") + 1]
        return RunConfig.from_json(json.loads(text))

    def corpus(self) -> Path:
        """The prepared corpus of a training job."""
        return Path(self.arguments[self.arguments.index("--corpus") + 1])


@dataclass(frozen=True)
class Bundle:
    """bundle.json."""

    schema: int
    study: str
    throughput: list[PackedJob]
    runs: list[list[PackedJob]]  # training and probe of each run, in the order of their work


def receipts(out: Path) -> dict[str, str]:
    """Output -> digest of what it was made of, for the throughput and probes of a bundle."""
    path = out / RECEIPTS
    if not path.is_file():
        return {}
    try:
        return build(Receipts, {"made_of": read_json(path, "receipts")}).made_of
    except Misfit as problem:
        raise UserError(f"{path} is not what a bundle wrote: {problem}; delete it") from None


@dataclass(frozen=True)
class Receipts:
    """bundle-receipts.json."""

    made_of: dict[str, str]
