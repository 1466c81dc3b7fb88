"""The claims: what each says, and what would count as support (config/claims.yaml)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.evidence.metrics import COUNTS, METRICS
from mhclite.study.load import read_yaml
from mhclite.study.sections import Settings
from mhclite.study.wording import one_line

NEEDED = {
    "difference": ("metric", "reference"),
    "bound": ("metric", "threshold"),
    "trend": ("metric",),
    "count": ("metric", "reference"),
    "throughput": ("reference", "implementation"),
    "parameters": ("reference",),
}
MAY_HAVE = {"trend": ("reference",)}
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PaperFigure(Settings):
    """A figure that a paper is known to give."""

    value: str
    how: Literal["verbatim", "second-hand", "figure", "code"]


class Requires(Settings):
    """What a study must reach before the claim can be asked of it; `requirements` judges it."""

    functional_mixing: Annotated[int, Field(ge=1)] | None = None
    start_distance: Positive | None = None
    knockout_errors: Positive | None = None
    below_bigram: bool = False
    tokens_per_parameter: Positive | None = None


class Claim(Settings):
    """One entry of config/claims.yaml, which explains the fields."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,60}$")]
    statement: str
    source: str
    scale: str | None = None
    family: Literal["confirmatory", "secondary"] = "secondary"
    kind: Literal["difference", "bound", "trend", "count", "throughput", "parameters"]
    variant: str
    setting: dict[str, Any] = Field({})
    reference: str | None = None
    reference_setting: dict[str, Any] = Field({})
    metric: str | None = None
    direction: Literal["lower", "higher"] = "lower"
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    preserve: Annotated[float, Field(gt=0, lt=1)] | None = None
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    implementation: Literal["reference", "fast", "fused"] | None = None
    by_construction: bool = False
    equal_parameters: bool = False
    requires: Requires = Requires()
    paper: PaperFigure | None = None

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        for name in ("metric", "reference", "threshold", "implementation"):
            has, needs = getattr(self, name) is not None, name in NEEDED[self.kind]
            if has != needs and name not in MAY_HAVE.get(self.kind, ()):
                raise ValueError(
                    f"kind {self.kind} has {', '.join(NEEDED[self.kind])}, and {name!r} does not "
                    "fit that"
                )
        for variant in (self.variant, self.reference):
            if variant is not None and variant not in VARIANTS:
                raise ValueError(f"{variant!r} is unknown; known are {', '.join(VARIANTS)}")
        if self.metric is not None and self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} is unknown; known are {', '.join(METRICS)}")
        if (self.metric in COUNTS) != (self.kind == "count"):
            raise ValueError(f"kind count is for the metrics {', '.join(COUNTS)}, and they for it")
        if self.by_construction and self.kind != "bound":
            raise ValueError("by_construction is for kind bound: a value against a threshold")
        if self.equal_parameters and self.kind != "trend":
            raise ValueError("equal_parameters is for kind trend: it names the model sizes")
        if self.preserve is not None and not (self.metric == "validation_loss" and self.margin):
            raise ValueError("preserve goes with a difference of validation_loss with a margin")
        if self.kind == "bound" and self.log and self.threshold is not None and self.threshold <= 0:
            raise ValueError(f"threshold of {self.metric} is compared by logarithm: above 0")
        return self

    @property
    def arms(self) -> list[tuple[str, dict[str, Any]]]:
        """What is compared: variants with their settings; the reference last."""
        own = (self.variant, self.setting)
        return [own] if self.reference is None else [own, (self.reference, self.reference_setting)]

    @property
    def asks_equality(self) -> bool:
        """Whether *practically equal* may be an answer."""
        least = self.metric is not None and METRICS[self.metric].equal is not None
        plain = self.kind == "difference" and least and not self.margin
        return plain or self.kind == "throughput" or self.preserve is not None

    @property
    def log(self) -> bool:
        """Whether logarithms of the metric are compared."""
        return self.kind == "throughput" or (self.metric is not None and METRICS[self.metric].log)

    @property
    def bar(self) -> float:
        """What the metric of a claim without a reference is compared with, as it is compared."""
        if self.threshold is None:
            return 0.0  # of a trend
        return math.log(self.threshold) if self.log else self.threshold

    @property
    def sign(self) -> int:
        """1 if lower supports the claim, else -1."""
        return 1 if self.direction == "lower" else -1


def parse_claims(content: Any, where: str) -> list[Claim]:
    """Validate a list of claims; `UserError` in one line."""
    if not isinstance(content, list):
        raise UserError(f"{where}: a list of claims is expected, not {content!r:.60}")
    claims = []
    for at, one in enumerate(content):
        try:
            claims.append(Claim.model_validate(one))
        except ValidationError as error:
            name = str(one.get("id", at) if isinstance(one, dict) else at)
            problem = one_line(error, Claim)
            raise UserError(f"{where}: claim {' '.join(name.split()):.60}: {problem}") from None
    names = [claim.id for claim in claims]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two claims have the id {twice[0]!r}")
    return claims


def load_claims(path: Path) -> list[Claim]:
    """Read a claims file."""
    return parse_claims(read_yaml(path, "claims file"), str(path))
