"""The claims: what each says, and what would count as support (config/claims.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.evidence.columns import RUN_COLUMNS
from mhclite.study.reading import read_yaml
from mhclite.study.settings import Settings

GAIN_GROWTH = "gain_growth"  # log of the composite gain after the last sub-layer over the first's
METRICS = (*(name for name, kind in RUN_COLUMNS.items() if kind == "float64"), GAIN_GROWTH)
NEEDED = {
    "difference": ("metric", "reference"),
    "bound": ("metric", "threshold"),
    "throughput": ("reference", "implementation"),
    "parameters": ("reference",),
}


class PaperFigure(Settings):
    """A figure that a paper is known to give."""

    value: str
    how: Literal["verbatim", "second-hand", "figure", "code"]


class Claim(Settings):
    """One entry of config/claims.yaml, which explains the fields."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,60}$")]
    statement: str
    source: str
    kind: Literal["difference", "bound", "throughput", "parameters"]
    variant: str
    reference: str | None = None
    metric: str | None = None
    direction: Literal["lower", "higher"] = "lower"
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    implementation: Literal["reference", "fast", "fused"] | None = None
    paper: PaperFigure | None = None

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        for name in ("metric", "reference", "threshold", "implementation"):
            if (getattr(self, name) is not None) != (name in NEEDED[self.kind]):
                needs = ", ".join(NEEDED[self.kind])
                raise ValueError(f"kind {self.kind} has {needs}, and {name!r} does not fit that")
        for variant in (self.variant, self.reference):
            if variant is not None and variant not in VARIANTS:
                raise ValueError(f"{variant!r} is unknown; known are {', '.join(VARIANTS)}")
        if self.metric is not None and self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} is unknown; known are {', '.join(METRICS)}")
        return self


def parse_claims(content: Any, where: str) -> list[Claim]:
    """Validate a list of claims; `UserError` in one line."""
    try:
        claims = TypeAdapter(list[Claim]).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        at = first["loc"][0] if first["loc"] else ""
        named = (
            content[at].get("id") if isinstance(at, int) and isinstance(content[at], dict) else ""
        )
        path = ".".join(str(part) for part in first["loc"][1:])
        what = str(first.get("ctx", {}).get("error", first["msg"]))
        place = " ".join(filter(None, [f"claim {named or at}" if first["loc"] else "", path]))
        said = f"{where}: {place + ': ' if place else ''}{what}"
        raise UserError(" ".join(said.split())) from None
    names = [claim.id for claim in claims]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two claims have the id {twice[0]!r}")
    return claims


def load_claims(path: Path) -> list[Claim]:
    """Read a claims file."""
    return parse_claims(read_yaml(path, "claims file"), str(path))
