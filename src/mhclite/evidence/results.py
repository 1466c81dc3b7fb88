"""A study's results as every figure, table and report reads them.

`collect` writes study.json, values.csv, runs.csv and curves.csv; `load_results` reads them back
together with the probes and the throughput measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mhclite.errors import UserError
from mhclite.evidence.metrics import CURVE_COLUMNS, RUN_COLUMNS, VALUE_COLUMNS
from mhclite.files import read_schema
from mhclite.measure.measured import (
    Critical,
    Mixing,
    Probe,
    Throughput,
    critical_rate,
    read_critical,
    read_probe,
    read_throughput,
)
from mhclite.study.sections import BASE

SCHEMA = 3  # of study.json, which `collect` writes


@dataclass(frozen=True, eq=False)
class Results:
    """One study's results.

    Lists and categories follow the study's order. `values` is the tidy table, of which `frame`
    makes all statistics: one row for each number of a run. `all_runs` is the same with one row per
    run, and what else is known of it. `curves` has one row per step kept, of the study's own
    settings. `probes` has an entry for every run; those of the plain residual and of diverged runs
    have no `mixing`.
    """

    folder: Path
    study: dict[str, Any]  # content of study.json
    values: pd.DataFrame
    all_runs: pd.DataFrame
    curves: pd.DataFrame
    probes: dict[str, Probe]  # by run
    throughput: dict[str, Throughput]  # by model
    critical: dict[str, Critical]  # by run, if the study searches critical learning rates
    sinkhorn: dict[str, Any] | None  # content of sinkhorn.json, if the study has the experiment

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.study["name"])

    @property
    def settings(self) -> dict[str, Any]:
        """The study file with its defaults filled in (`Study.model_dump`)."""
        return dict(self.study["study"])

    @property
    def corpora(self) -> list[str]:
        """Corpora."""
        return list(self.settings["corpora"])

    @property
    def models(self) -> list[str]:
        """Model sizes."""
        return list(self.settings["models"])

    @property
    def variants(self) -> list[str]:
        """Residual variants."""
        return list(self.settings["variants"])

    @property
    def seeds(self) -> list[int]:
        """Seeds."""
        return list(self.settings["seeds"])

    @cached_property
    def labels(self) -> dict[str, str]:
        """variant -> its name for readers, e.g. mHC-lite."""
        return {variant: str(self.study["labels"][variant]) for variant in self.variants}

    def variants_of(self, model: str) -> list[str]:
        """Residual variants of a model size."""
        own = self.settings["models"][model].get("variants")  # older studies have no such key
        return [variant for variant in self.variants if own is None or variant in own]

    def n_layer(self, model: str) -> int:
        """Blocks of a model size."""
        return int(self.settings["models"][model]["n_layer"])

    def model_label(self, model: str) -> str:
        """A model size for readers: its depth, with the width where two sizes share a depth."""
        layers = self.n_layer(model)
        label = f"{layers} layer" + "s" * (layers != 1)
        if [self.n_layer(other) for other in self.models].count(layers) > 1:
            label += f", {self.settings['models'][model]['n_embd']} wide"
        return label

    def manifest(self, corpus: str) -> dict[str, Any]:
        """Manifest of a prepared corpus."""
        return dict(self.study["corpora"][corpus]["manifest"])

    @cached_property
    def counting_models(self) -> dict[str, dict[str, float]]:
        """corpus -> {"unigram", "bigram"}: their validation loss in nats per token."""
        return {corpus: dict(self.manifest(corpus)["baselines"]) for corpus in self.corpora}

    def mixing(self, corpus: str, model: str, variant: str) -> dict[int, Mixing]:
        """seed -> what H_res does in one cell of the grid, without runs not probed."""
        runs = self.runs
        cell = (runs["corpus"] == corpus) & (runs["model"] == model) & (runs["variant"] == variant)
        found = {
            int(seed): self.probes[run].mixing
            for run, seed in zip(runs["run"][cell], runs["seed"][cell], strict=True)
        }
        return {seed: mixing for seed, mixing in found.items() if mixing is not None}

    @cached_property
    def by_seed(self) -> dict[tuple[str, str, str, str, str], dict[int, float]]:
        """(corpus, model, variant, condition, metric) -> seed -> value."""
        found: dict[tuple[str, str, str, str, str], dict[int, float]] = {}
        names = ["corpus", "model", "variant", "condition", "metric"]
        table = self.values
        keys = zip(*(table[name].astype(str) for name in names), strict=True)
        for key, seed, value in zip(keys, table["seed"], table["value"], strict=True):
            found.setdefault(key, {})[int(seed)] = float(value)
        return found

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The rows of `all_runs` of the study's own settings."""
        return self.all_runs[self.all_runs["condition"] == BASE].reset_index(drop=True)

    @cached_property
    def completed(self) -> list[str]:
        """Runs of the study's own settings that reached their last step."""
        return list(self.runs.loc[self.runs["status"] == "completed", "run"])

    def panels(self) -> list[tuple[str, str]]:
        """(corpus, model): one panel each in most figures."""
        return [(corpus, model) for corpus in self.corpora for model in self.models]

    def panel_title(self, corpus: str, model: str) -> str:
        """Title of a panel: depth, and the corpus where there are several."""
        return f"{corpus}, " * (len(self.corpora) > 1) + self.model_label(model)


def evenly_spaced(count: int, most: int) -> npt.NDArray[np.intp]:
    """Places of at most `most` out of `count` entries, the first and the last among them."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.intp))


def _read_table(path: Path, columns: dict[str, str], orders: dict[str, list[str]]) -> pd.DataFrame:
    """Read one of the collected CSV files with its column types."""
    types = {name: "str" if kind == "order" else kind for name, kind in columns.items()}
    try:
        # Only an empty field is missing: a corpus may be called "nan" or "null".
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
        lacks = [f"it lacks the column {name!r}" for name in columns if name not in table]
        for name, order in orders.items() if not lacks else ():
            unknown = sorted(set(table[name]) - set(order))
            lacks += [f"its {name} {one!r} is not in study.json" for one in unknown]
        if lacks:
            raise ValueError(lacks[0])
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(
            f"{path} cannot be read as a table: {error}; write it again with "
            "`python -m mhclite collect`"
        ) from None
    for name, order in orders.items():
        table[name] = pd.Categorical(table[name], categories=order, ordered=True)
    return table


def critical_rates(critical: dict[str, Critical], runs: pd.DataFrame) -> pd.DataFrame:
    """One row per run: run, corpus, model, condition, variant, seed, and what its tries come to:
    `critical_rate` (log2 of the factor at which it ceases to learn), `low`, `high`, `beyond`.
    """
    rates = pd.DataFrame({"run": run} | critical_rate(one.tries) for run, one in critical.items())
    known = runs[["run", *(name for name in VALUE_COLUMNS if name in runs)]]
    return known.merge(rates, on="run", validate="one_to_one")


def load_results(folder: str | Path) -> Results:
    """Read results/<study>; a missing or outdated file is a `UserError` that names it."""
    folder = Path(folder)
    study = read_schema(folder / "study.json", "the study's description", SCHEMA)
    settings = study["study"]
    orders = {
        "corpus": list(settings["corpora"]),
        "model": list(settings["models"]),
        "variant": list(settings["variants"]),
        "condition": [BASE, *settings["conditions"]],
    }
    all_runs = _read_table(folder / "runs.csv", RUN_COLUMNS, orders)
    values = _read_table(folder / "values.csv", VALUE_COLUMNS, orders)
    critical = {
        run: read_critical(folder / "critical" / f"{run}.json", run)
        for run in (all_runs["run"] if settings.get("critical_rate") else ())
    }
    if critical:  # a metric as well, unless beyond the factors tried
        rates = critical_rates(critical, all_runs)
        inside = rates[rates["beyond"] == ""].rename(columns={"critical_rate": "value"})
        inside = inside.assign(metric="critical_rate")[list(VALUE_COLUMNS)]
        values = pd.concat([values, inside])
    curves = _read_table(folder / "curves.csv", CURVE_COLUMNS, orders)
    return Results(
        folder=folder,
        study=study,
        values=values,
        all_runs=all_runs,
        curves=curves[curves["condition"] == BASE].reset_index(drop=True),
        probes={run: read_probe(folder / "probes" / f"{run}.json", run) for run in all_runs["run"]},
        throughput={
            model: read_throughput(folder / "throughput" / f"{model}.json", model)
            for model in orders["model"]
        },
        critical=critical,
        sinkhorn=(
            read_schema(folder / "sinkhorn.json", "the Sinkhorn-Knopp experiment", 1)
            if settings["sinkhorn"]
            else None
        ),
    )
