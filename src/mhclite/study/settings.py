"""A study: corpora x models x variants x seeds, and the settings they share.

With its sections (`sections.py`) the one description of a study file. Everything else (the DAG, the
parameter table in docs/configuration.md) is derived from them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mhclite.config import (
    MODEL_FIELDS,
    ConnectionConfig,
    ModelConfig,
    RunConfig,
    ThroughputConfig,
    TrainingConfig,
)
from mhclite.connections.registry import VARIANTS, check_streams, connection_parameters
from mhclite.files import digest_of
from mhclite.study.sections import (
    BASE,
    TAKEN,
    Condition,
    Connections,
    Corpus,
    CriticalRate,
    LearningRates,
    Model,
    Name,
    ProbeSection,
    Seed,
    Settings,
    Sinkhorn,
    StabilitySection,
    SweepSection,
    ThroughputSection,
    Tokenizer,
    Tracking,
    Training,
    known_variant,
    n_streams,
)
from mhclite.study.wording import one_line


class Study(Settings):
    """A study file."""

    name: Name = Field(description="the study's folder under results/ and its MLflow experiment")
    corpora: dict[Name, Corpus] = Field(description="corpora by name", min_length=1)
    tokenizer: Tokenizer
    models: dict[Name, Model] = Field(description="model sizes by name", min_length=1)
    variants: list[str] = Field(description="residual variants", min_length=1)
    seeds: list[Seed] = Field(
        description="each seed fixes backbone and batches, for all variants alike", min_length=1
    )
    connections: Connections = Connections()
    training: Training
    conditions: dict[Name, Condition] = Field(
        {}, description="further runs, each group with some settings changed"
    )
    sweep: SweepSection | None = Field(
        None,
        description="search for the learning rate of every arm (corpus, size, condition or none, "
        "variant) in place of the study's own runs; `seeds` are the grid's",
    )
    learning_rates: LearningRates | None = Field(
        None,
        description="path of the file that a study with a `sweep` made, from the folder in which "
        "this one is started: every run takes the rate of its arm; left out: that of its size",
    )
    probe: ProbeSection = ProbeSection()
    sinkhorn: Sinkhorn | None = Field(
        None, description="experiment of its own on random logits; left out: not made"
    )
    critical_rate: CriticalRate | None = Field(
        None, description="search for the critical learning rate of every run; left out: not made"
    )
    throughput: ThroughputSection = ThroughputSection()
    stability: StabilitySection = StabilitySection()
    tracking: Tracking = Tracking()

    @field_validator("name")
    @classmethod
    def _not_taken(cls, value: str) -> str:
        if value in TAKEN:
            raise ValueError(
                f"{value!r} is a folder that is no study's ({', '.join(TAKEN)}): choose another"
            )
        return value

    @field_validator("variants")
    @classmethod
    def _variants_are_known(cls, value: list[str]) -> list[str]:
        return [known_variant(variant) for variant in value]

    @model_validator(mode="after")
    def _grid_is_possible(self) -> Self:
        for what, values in (("variants", self.variants), ("seeds", self.seeds)):
            if len(set(map(str, values))) < len(values):
                raise ValueError(f"{what} has an entry twice: {values}")
        for variant in self.variants:
            n = n_streams(variant, self.connections)
            check_streams(variant, n, self.connections.permutations)
        for name, model in self.models.items():
            own = model.variants or []
            for variant in own:
                if variant not in self.variants or own.count(variant) > 1:
                    raise ValueError(
                        f"models.{name}.variants: {variant!r} is there twice, or none of the "
                        f"study's: {', '.join(self.variants)}"
                    )
        for variant in self.variants:
            if not any(variant in self.variants_of(model) for model in self.models):
                raise ValueError(
                    f"variants: {variant} is trained at no size: see models.*.variants"
                )
        if self.sweep is not None:
            self._sweep_is_possible(self.sweep)
        if self.learning_rates is not None:
            self._runs(BASE)  # its arms first: conditions have these too
        if BASE in self.conditions:
            raise ValueError(f"conditions: {BASE!r} names the study's own settings; choose another")
        for name, condition in self.conditions.items():
            self._condition_is_possible(name, condition)
        if self.learning_rates is not None:
            self.grid()
        return self

    def _sweep_is_possible(self, sweep: SweepSection) -> None:
        for section in ("learning_rates", "critical_rate", "sinkhorn"):
            if getattr(self, section) is not None:
                raise ValueError(
                    f"{section}: a study with a sweep makes learning rates and nothing else; leave "
                    f"`{section}` or `sweep` out"
                )
        if sweep.steps > self.training.steps:
            raise ValueError(
                f"sweep.steps = {sweep.steps} must be at most training.steps = "
                f"{self.training.steps}, for which the best are trained"
            )
        if both := set(self.seeds) & set(sweep.final_seeds):
            raise ValueError(
                f"sweep.final_seeds: {min(both)} is one of `seeds`, by which the best of the grid "
                "were found: choose another"
            )
        for name, condition in self.conditions.items():
            if condition.learning_rate_factor != 1:
                raise ValueError(
                    f"conditions.{name}.learning_rate_factor: a sweep finds the rate that it "
                    "multiplies; leave it out here"
                )

    def _condition_is_possible(self, name: str, condition: Condition) -> None:
        for part in ("variants", "models", "seeds"):
            own = list(getattr(self, part))
            for value in getattr(condition, part) or []:
                if value not in own:
                    raise ValueError(
                        f"conditions.{name}: {value!r} is none of the study's {part}: "
                        f"{', '.join(map(str, own))}"
                    )
        try:
            changed = self.under(name)
        except ValidationError as error:
            raise ValueError(f"conditions.{name}: {one_line(error, Study)}") from None
        if condition.match_parameters is not None:
            for model in changed.models:
                for variant in changed.variants_of(model):
                    try:
                        changed.mlp_width(model, variant, condition.match_parameters)
                    except ValueError as error:
                        raise ValueError(f"conditions.{name}.match_parameters: {error}") from None
            return
        for variant in condition.variants:
            if (
                changed.resolved_connection(variant) == self.resolved_connection(variant)
                and changed.training == self.training
                and all(
                    changed.resolved_model(model) == self.resolved_model(model)
                    for model in changed.models
                )
            ):
                raise ValueError(f"conditions.{name} changes nothing for {variant}")

    def under(self, condition: str) -> Study:
        """A study of one condition: its settings, variants, models and seeds alone."""
        change = self.conditions[condition]
        settings = self.model_dump() | {"conditions": {}, "variants": change.variants}
        settings["learning_rates"] = self.learning_rates
        settings["connections"] |= change.connections
        settings["training"] |= change.training
        if change.models is not None:
            settings["models"] = {model: settings["models"][model] for model in change.models}
        if change.seeds is not None:
            settings["seeds"] = change.seeds
        for name, model in list(settings["models"].items()):
            model |= change.model
            model["learning_rate"] *= change.learning_rate_factor
            if model["variants"] is not None:
                model["variants"] = [v for v in change.variants if v in model["variants"]]
                if not model["variants"]:
                    del settings["models"][name]
        if not settings["models"]:
            raise ValueError(
                f"conditions.{condition}: no size that it is tried on has one of its variants"
            )
        return Study.model_validate(settings)

    # --- the grid ---------------------------------------------------------------------------

    def corpus_settings(self, corpus: str) -> dict[str, Any]:
        """What `prepare` needs to know, as JSON."""
        return {
            "name": corpus,
            "corpus": self.corpora[corpus].model_dump(mode="json"),
            "tokenizer": self.tokenizer.model_dump(mode="json"),
        }

    def longest_context(self) -> int:
        """The largest `block_size`: each split of a corpus must have more tokens."""
        return max(model.block_size for model in self.models.values())

    def corpus_folder(self, corpus: str) -> str:
        """Folder of a prepared corpus under results/: its name and a digest of its settings."""
        return f"corpora/{corpus}-{digest_of(self.corpus_settings(corpus))[:8]}"

    def variants_of(self, model: str) -> list[str]:
        """Variants that are trained at a size, in the study's order."""
        own = self.models[model].variants
        return [variant for variant in self.variants if own is None or variant in own]

    def runs(self) -> dict[str, RunConfig]:
        """Every run of the study: id -> its resolved configuration. A sweep has none of its own."""
        return {} if self.sweep else self.grid()

    def arms(self) -> dict[str, list[RunConfig]]:
        """Every arm: its name -> its runs in the grid, which differ in their seed."""
        found: dict[str, list[RunConfig]] = {}
        for config in self.grid().values():
            found.setdefault(config.run.removesuffix(f"-s{config.seed}"), []).append(config)
        return found

    def grid(self) -> dict[str, RunConfig]:
        """Corpora x models x variants x seeds, and those of each condition."""
        runs = self._runs(BASE)
        for name, change in self.conditions.items():
            of_arm = name
            if not (
                change.connections or change.training or change.model or change.match_parameters
            ):
                of_arm = BASE  # another rate alone: so many times the one that was found
            runs |= self.under(name)._runs(
                name, change.match_parameters, of_arm, change.learning_rate_factor
            )
        return runs

    def rate_of(self, corpus: str, model: str, condition: str, variant: str) -> float:
        """Learning rate of an arm; `ValueError` if the study's file has none."""
        rates = self.learning_rates
        assert rates is not None
        found = rates.by_arm.get((corpus, model, condition, variant))
        if found is not None and found.rate is not None:
            return found.rate
        arm = f"corpus: {corpus}, model: {model}, condition: {condition}, variant: {variant}"
        why = "entry"
        if found is not None:
            why = "rate, as every finalist diverged," if found.bracketed else "bracketed rate"
        raise ValueError(
            f"learning_rates: {rates.file} has no {why} for {arm}: sweep it (sweep.widest), or "
            "write its `rate` there by hand"
        )

    def _runs(
        self, condition: str, match: str | None = None, of_arm: str = BASE, factor: float = 1.0
    ) -> dict[str, RunConfig]:
        place = "" if condition == BASE else f"-{condition}"
        training, runs = self.resolved_training(), dict[str, RunConfig]()
        arms = [(m, variant) for m in self.models for variant in self.variants_of(m)]
        widths = {arm: None if match is None else self.mlp_width(*arm, match) for arm in arms}
        for corpus in self.corpora:
            for arm in arms:
                model, variant = arm
                size = replace(self.resolved_model(model), mlp_width=widths[arm])
                if self.learning_rates is not None:
                    rate = factor * self.rate_of(corpus, model, of_arm, variant)
                    size = replace(size, learning_rate=rate)
                connection = self.resolved_connection(variant)
                for seed in self.seeds:
                    run = f"{corpus}-{model}-{variant}{place}-s{seed}"
                    runs[run] = RunConfig(run, corpus, condition, seed, size, connection, training)
        return runs

    def measured_connections(self, model: str) -> dict[str, ConnectionConfig]:
        """Name -> connection of what throughput is measured for at one size.

        Its variants, and `<variant>-<condition>` where a condition changes the number of streams.
        """
        own = self.variants_of(model)
        found = {variant: self.resolved_connection(variant) for variant in own}
        for name, condition in self.conditions.items():
            if "n_streams" in condition.connections:
                changed = self.under(name)
                for variant in filter(own.__contains__, condition.variants):
                    found[f"{variant}-{name}"] = changed.resolved_connection(variant)
        return found

    def throughput_config(self, model: str) -> ThroughputConfig:
        """What `throughput` needs to know of one model size."""
        return ThroughputConfig(
            model=self.resolved_model(model),
            connections=self.measured_connections(model),
            training=self.resolved_training(),
            rounds=self.throughput.rounds,
            warmup_rounds=self.throughput.warmup_rounds,
            implementations=tuple(self.throughput.implementations),
        )

    def nodes(self) -> dict[str, int]:
        """Nodes of a run, by condition. How a run is started: its configuration does not know."""
        changed = {name: self.under(name).training.nodes for name in self.conditions}
        return {BASE: self.training.nodes, **changed}

    def resolved_training(self) -> TrainingConfig:
        """The training loop."""
        return TrainingConfig(**self.training.model_dump(exclude={"nodes"}))

    def resolved_model(self, model: str) -> ModelConfig:
        """A model size with its name and vocabulary."""
        sizes = self.models[model].model_dump(exclude={"variants"})
        return ModelConfig(name=model, vocab_size=self.tokenizer.vocab_size, **sizes)

    def mlp_width(self, model: str, variant: str, as_with: str) -> int:
        """Hidden units of an MLP with which a variant has as many parameters as another.

        Raises:
            ValueError: it has as many or more with the ordinary MLP.
        """
        size = self.models[model]

        def count(of: str) -> int:
            c = self.resolved_connection(of)
            head = c.final_norm == "head"
            return connection_parameters(
                of, c.n_streams, size.n_embd, size.n_layer, c.options, head
            )

        added = round((count(as_with) - count(variant)) / (2 * size.n_embd * size.n_layer))
        if added < 1:
            raise ValueError(
                f"{variant} has as many parameters as {as_with} or more: there is nothing to widen"
            )
        return 4 * size.n_embd + added

    def resolved_connection(self, variant: str) -> ConnectionConfig:
        """A variant with only the settings that it reads; the others are left at their defaults."""
        read = {name: getattr(self.connections, name) for name in VARIANTS[variant].options}
        own = {name: value for name, value in read.items() if name not in MODEL_FIELDS}
        return ConnectionConfig(
            variant=variant,
            n_streams=n_streams(variant, self.connections),
            options=own,
            **{name: value for name, value in read.items() if name not in own},
        )
