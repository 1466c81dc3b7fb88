"""The registry of every figure and table of a study.

A figure or table is a function of a file in `topics/`, decorated with all that is said of it:

    @exhibits.figure("throughput", title="...", caption="...", alt="...", heading="cost")
    def throughput(results: Results) -> Figure:

Files, both reports and the outputs of Snakemake's rule follow from that: nothing else names it.
Captions are plain sentences: `{seeds}` and the like stand for the study's numbers, and
`{diverged:; a cross is where ...}` is said only of a study that draws it (`CLAUSES`).
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.table_format import Rows, Table

if TYPE_CHECKING:  # Snakemake reads this module in every job: nothing that draws is imported
    from matplotlib.figure import Figure

    from mhclite.evidence.results import Results

# In the order of both reports; the numbers keep it in Snakemake's.
HEADINGS = {
    "claims": "0 Claims",
    "loss": "1 Loss",
    "stability": "2 Stability",
    "mixing": "3 Mixing matrices",
    "cost": "4 Cost",
    "changes": "5 Changed settings",
}


BASELINE = "residual"  # that of `statistics`, which imports scipy
# What a study (`Study.model_dump`) must have for some exhibits.
NEEDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "": lambda study: True,
    "sinkhorn": lambda study: bool(study["sinkhorn"]),
    "residual": lambda study: BASELINE in study["variants"],
    "iterated": lambda study: any(VARIANTS[v].iterates for v in study["variants"]),
    "depths": lambda study: len({model["n_layer"] for model in study["models"].values()}) > 1,
    # Conditions whose mixing learns faster have a table of their own.
    "conditions": lambda study: any(
        "mixing_rate_factor" not in condition["connections"]
        for condition in study["conditions"].values()
    ),
    "faster_mixing": lambda study: any(
        list(condition["connections"]) == ["mixing_rate_factor"]
        for condition in study["conditions"].values()
    ),
    # A study that was published before there was such a section has no such key.
    "critical_rate": lambda study: bool(study.get("critical_rate")),
    "learning_rates": lambda study: bool(study.get("learning_rates")),
    "streams": lambda study: any(
        "n_streams" in condition["connections"] for condition in study["conditions"].values()
    ),
}

Kind = Literal["figure", "table"]
# What only some studies draw: a caption says it as `{name:text}`.
CLAUSES: dict[str, Callable[[Results], bool]] = {
    "diverged": lambda results: bool((results.all_runs["status"] == "diverged").any()),
    "after_sum": lambda results: (
        BASELINE in results.variants
        and any(
            condition["connections"].get("final_norm") == "after_sum"
            for condition in results.settings["conditions"].values()
        )
    ),
    "faster_mixing": lambda results: any(
        "mixing_rate_factor" in condition["connections"]
        for condition in results.settings["conditions"].values()
    ),
    "exact_sums": lambda results: bool((results.all_runs["product_max_deviation"] < 1e-8).any()),
    "residual": lambda results: NEEDS["residual"](results.settings),
    "hard_inputs": lambda results: bool(results.all_runs["sinkhorn_share_above_30"].notna().any()),
    "others": lambda results: any(file.others for file in results.throughput.values()),
}

KINDS: tuple[Kind, ...] = ("figure", "table")
TOPICS = Path(__file__).parent / "topics"


class Clause:
    """Formats as its own format where it holds, as nothing where it does not."""

    def __init__(self, holds: bool) -> None:
        self.holds = holds

    def __format__(self, text: str) -> str:
        return text if self.holds else ""


@dataclass(frozen=True)
class Exhibit:
    """What is said of a figure or table."""

    kind: Kind
    name: str  # of its files
    title: str
    caption: str  # what it shows, of how many seeds, from which files
    heading: str  # of `HEADINGS`
    alt: str = ""  # what is drawn, for those who cannot see a figure
    needs: str = ""  # of `NEEDS`
    row_head: str = "Variant"  # the column of a table that names its rows

    def shown_in(self, study: dict[str, Any]) -> bool:
        """Whether a study (`Study.model_dump`) has it."""
        return NEEDS[self.needs](study)

    @property
    def files(self) -> list[str]:
        """Its files in the study's folder, the one for Snakemake's report first."""
        suffixes = ("png", "svg") if self.kind == "figure" else ("html", "csv", "md", "tex")
        return [f"{self.kind}s/{self.name}.{suffix}" for suffix in suffixes]

    @property
    def caption_file(self) -> str:
        """The file that holds its caption for Snakemake's report."""
        return f"captions/{self.name}.txt"

    def caption_for(self, results: Results) -> str:
        """The caption with a study's numbers."""
        study, seeds = results.settings, len(results.seeds)
        computed_by = (str(file.implementation) for file in results.throughput.values())
        return self.caption.format(
            seeds=f"{seeds} seed" + "s" * (seeds != 1),
            level=f"{100 * results.confidence:.6g}",
            window=study["stability"]["fluctuation_window"],
            rounds=study["throughput"]["rounds"],
            implementation=" and ".join(dict.fromkeys(computed_by)),
            matrices=(study["sinkhorn"] or {}).get("matrices"),
            baseline=(
                "the plain residual"
                if BASELINE in results.variants
                else results.label(results.variants[0])
            ),
            **{name: Clause(holds(results)) for name, holds in CLAUSES.items()},
        )


Drawing = Callable[["Results"], "Figure"]
Writing = Callable[["Results"], Table]
Making = TypeVar("Making", Drawing, Writing)

FIGURES: dict[str, tuple[Exhibit, Drawing]] = {}
TABLES: dict[str, tuple[Exhibit, Writing]] = {}


def figure(name: str, **about: str) -> Callable[[Drawing], Drawing]:
    """Register a figure; the arguments are literals (see `declared`), the fields of `Exhibit`."""

    def register(draw: Drawing) -> Drawing:
        FIGURES[name] = (Exhibit("figure", name, **about), draw)
        return draw

    return register


def table(name: str, **about: str) -> Callable[[Callable[[Results], Rows]], Writing]:
    """Register a table; the arguments are literals (see `declared`), the fields of `Exhibit`."""

    def register(fill: Callable[[Results], Rows]) -> Writing:
        exhibit = Exhibit("table", name, **about)

        def write(results: Results) -> Table:
            rows = vars(fill(results))
            return Table(**rows, name=name, title=exhibit.title, row_head=exhibit.row_head)

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
                for kind in KINDS:
                    if made_by == f"exhibits.{kind}":
                        about = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
                        found.append(Exhibit(kind, ast.literal_eval(call.args[0]), **about))
    return found
