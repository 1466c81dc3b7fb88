"""What a session has found so far: session.json, from which the next one goes on.

Standard library and small modules alone. Only the process that began the session writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhclite.bench.session.plan import Plan
from mhclite.errors import UserError
from mhclite.files import read_json, write_json

SCHEMA = 1
FILE = "session.json"
LOG = "log.txt"
KEPT_OF_LOG = 4_000_000  # bytes, at the start of a session

Result = dict[str, Any]


@dataclass
class Session:
    """Results by stage and item, kept in a folder as they come."""

    folder: Path
    plan: Plan
    cores: int
    of: dict[str, Any]  # what all results have in common: GPU, versions, code
    attempts: list[dict[str, Any]] = field(default_factory=list)  # each start: clocks, times
    stages: dict[str, dict[str, Result]] = field(default_factory=dict)

    @property
    def log_file(self) -> Path:
        return self.folder / LOG

    def results(self, stage: str) -> Mapping[str, Result]:
        """Of a stage, by item."""
        return self.stages.get(stage, {})

    def keep(self, stage: str, key: str, result: Result) -> None:
        self.stages.setdefault(stage, {})[key] = result
        self.write()

    def write(self) -> None:
        value = {
            "schema": SCHEMA, "of": self.of, "attempts": self.attempts, "stages": self.stages
        }  # fmt: skip
        write_json(self.folder / FILE, value)

    def limits(self) -> dict[str, float]:
        """Rates of a copy and of a product on this card."""
        found = self.results("limits").get("rates", {})
        if "bytes_per_second" not in found:
            raise UserError("the rates of the card were not measured")
        return {name: found[name] for name in ("bytes_per_second", "flops_per_second")}

    def wrong(self) -> list[str]:
        """What is not as it should be: results that disagree."""
        return [
            f"{stage}: {key}: {result['wrong']}"
            for stage, results in self.stages.items()
            for key, result in results.items()
            if result.get("wrong")
        ]

    def failed(self) -> list[str]:
        return [
            f"{stage}: {key}: {result['failed']}"
            for stage, results in self.stages.items()
            for key, result in results.items()
            if "failed" in result
        ]


def open_session(folder: Path, plan: Plan, cores: int, of: dict[str, Any]) -> Session:
    """The session in a folder, or a new one.

    Raises:
        UserError: the folder holds that of another card, other versions or other code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    session = Session(folder, plan, cores, of)
    path = folder / FILE
    if path.is_file():
        found = read_json(path, "the session")
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise UserError(f"{path} is not a session of this version: name another --out")
        for name, value in of.items():
            there = found["of"].get(name)
            if there != value:
                raise UserError(
                    f"{folder} holds a session whose {name} is {there!r:.80}, and here it is "
                    f"{value!r:.80}: name another --out"
                )
        session.attempts, session.stages = found["attempts"], found["stages"]
    if session.log_file.is_file() and session.log_file.stat().st_size > KEPT_OF_LOG:
        session.log_file.write_bytes(session.log_file.read_bytes()[-KEPT_OF_LOG:])
    return session
