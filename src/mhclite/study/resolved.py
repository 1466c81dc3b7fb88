"""resolved.json: a study as `collect` takes it, with its runs, corpora and claims spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mhclite.config import RunConfig
from mhclite.records import read_record
from mhclite.study.sections import RESULTS
from mhclite.study.settings import Study

SCHEMA = 2


@dataclass(frozen=True)
class Resolved:
    """Everything that a study file says, with its defaults."""

    schema: int
    study: dict[str, Any]  # `Study.model_dump`
    runs: dict[str, RunConfig]
    corpora: dict[str, str]  # name -> folder of the prepared corpus
    claims: list[dict[str, Any]]  # config/claims.yaml


def resolve(study: Study, claims: Sequence[BaseModel]) -> Resolved:
    """A study and the claims that it is asked about."""
    return Resolved(
        SCHEMA,
        study.model_dump(mode="json"),
        study.runs(),
        {name: str(RESULTS / study.corpus_folder(name)) for name in study.corpora},
        [claim.model_dump(mode="json") for claim in claims],
    )


def read_resolved(path: Path) -> Resolved:
    """Read resolved.json; `UserError` if it is missing, damaged or of another version."""
    again = f"delete {path} and run `snakemake --cores all`"
    return read_record(Resolved, path, "the resolved study", SCHEMA, again)
