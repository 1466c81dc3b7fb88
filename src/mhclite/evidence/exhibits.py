"""The registry of every figure and table of a study.

A figure or table is a function of a file in `topics/`, decorated with all that is said of it:

    @exhibits.figure("throughput", title="...", caption="...", alt="...", heading="cost")
    def throughput(results: Results) -> Figure:

Files, both reports and the outputs of Snakemake's rule follow from that: nothing else names it.
Captions are plain sentences, in which `{seeds}` and the like stand for the study's numbers.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

if TYPE_CHECKING:  # Snakemake reads this module in every job: nothing that draws is imported
    from matplotlib.figure import Figure

    from mhclite.evidence.results import Results
    from mhclite.evidence.tables import Table

# In the order of both reports; the numbers keep it in Snakemake's.
HEADINGS = {
    "claims": "0 Main claims",
    "loss": "1 Loss",
    "stability": "2 Stability",
    "mixing": "3 Mixing matrices",
    "cost": "4 Cost",
    "changes": "5 Changed settings",
}


def _conditions(study: dict[str, Any]) -> list[list[str]]:
    """The settings in `connections` of each condition of a study."""
    return [list(condition["connections"]) for condition in study["conditions"].values()]


# What a study (`Study.model_dump`; a published one may lack sections) must have for some exhibits.
NEEDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "": lambda study: True,
    "sinkhorn": lambda study: bool(study["sinkhorn"]),
    "depths": lambda study: len({model["n_layer"] for model in study["models"].values()}) > 1,
    "several cells": lambda study: len(study["models"]) * len(study["corpora"]) > 1,
    # Conditions whose mixing learns faster have a table of their own.
    "conditions": lambda study: any("mixing_rate_factor" not in c for c in _conditions(study)),
    "faster_mixing": lambda study: ["mixing_rate_factor"] in _conditions(study),
    "critical_rate": lambda study: bool(study.get("critical_rate")),
    "learning_rates": lambda study: bool(study.get("learning_rates")),
    "never": lambda study: False,
}

Kind = Literal["figure", "table"]
TOPICS = Path(__file__).parent / "topics"


@dataclass(frozen=True)
class Exhibit:
    """What is said of a figure or table."""

    kind: Kind
    name: str  # of its files
    title: str
    caption: str  # what it shows, of how many seeds, from which files; at most 40 words
    heading: str  # of `HEADINGS`
    alt: str = ""  # what is drawn, for those who cannot see a figure
    needs: str = ""  # of `NEEDS`
    printed: str = ""  # of `NEEDS`, where the report prints it; it links what it does not print

    def shown_in(self, study: dict[str, Any]) -> bool:
        """Whether a study (`Study.model_dump`) has it."""
        return NEEDS[self.needs](study)

    def printed_in(self, study: dict[str, Any]) -> bool:
        """Whether the report of a study that has it prints it."""
        return NEEDS[self.printed](study)

    @property
    def files(self) -> list[str]:
        """Its files in the study's folder, the one for Snakemake's report first."""
        suffixes = ("png", "svg") if self.kind == "figure" else ("html", "csv", "md")
        return [f"{self.kind}s/{self.name}.{suffix}" for suffix in suffixes]

    @property
    def caption_file(self) -> str:
        """The file that holds its caption for Snakemake's report."""
        return f"captions/{self.name}.txt"

    def caption_for(self, results: Results) -> str:
        """The caption with a study's numbers."""
        study, seeds = results.settings, len(results.seeds)
        return self.caption.format(
            seeds=f"{seeds} seed" + "s" * (seeds != 1),
            rounds=study["throughput"]["rounds"],
        )


Drawing = Callable[["Results"], "Figure"]
Writing = Callable[["Results"], "Table"]
Making = TypeVar("Making", Drawing, Writing)

FIGURES: dict[str, tuple[Exhibit, Drawing]] = {}
TABLES: dict[str, tuple[Exhibit, Writing]] = {}


def figure(name: str, **about: str) -> Callable[[Drawing], Drawing]:
    """Register a figure; the arguments are literals (see `declared`), the fields of `Exhibit`."""

    def register(draw: Drawing) -> Drawing:
        FIGURES[name] = (Exhibit("figure", name, **about), draw)
        return draw

    return register


def table(name: str, **about: str) -> Callable[[Writing], Writing]:
    """Register a table; the arguments are literals (see `declared`), the fields of `Exhibit`."""

    def register(fill: Writing) -> Writing:
        exhibit = Exhibit("table", name, **about)

        def write(results: Results) -> Table:
            return replace(fill(results), name=name, title=exhibit.title)

        TABLES[name] = (exhibit, write)
        return write

    return register


def shown(
    registry: dict[str, tuple[Exhibit, Making]], study: dict[str, Any]
) -> list[tuple[Exhibit, Making]]:
    """What a study (`Study.model_dump`) has of a registry, in the order of the headings."""
    places = list(HEADINGS)
    found = [entry for entry in registry.values() if entry[0].shown_in(study)]
    return sorted(found, key=lambda entry: places.index(entry[0].heading))


def declared() -> list[Exhibit]:
    """Every exhibit, read from the source of the topics without importing them.

    Snakemake needs their names in every job; importing what draws them would take seconds.
    """
    found = []
    for path in sorted(TOPICS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for call in getattr(node, "decorator_list", []):
                made_by = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                for kind in get_args(Kind):
                    if made_by == f"exhibits.{kind}":
                        about = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
                        found.append(Exhibit(kind, ast.literal_eval(call.args[0]), **about))
    return found
