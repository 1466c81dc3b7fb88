"""The resolved configuration of one run: what `train` is given.

Made from a study (`Study.runs`), written to run.json and read back. Plain dataclasses: training
needs torch and numpy alone. The values were checked where the study was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mhclite.records import build, to_json


@dataclass(frozen=True)
class ModelConfig:
    """A model size; `docs/configuration.md` explains each field."""

    name: str
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    learning_rate: float
    qk_norm: bool = False
    mlp_width: int | None = None  # hidden units of an MLP; None: 4 n_embd


@dataclass(frozen=True)
class ConnectionConfig:
    """A residual variant. What the variant does not read is left at its default."""

    variant: str
    n_streams: int
    # Carried out by the model.
    home_stream: str = "alternate"
    decay_logits: str = "authors"
    stream_dtype: str = "authors"
    final_norm: str = "per_stream"
    freeze_mixing: bool = False
    connection_rate_factor: float = 1.0
    mixing_rate_factor: float = 1.0
    implementation: str = "reference"
    # Arguments of the variant's class.
    options: Mapping[str, Any] = field(default_factory=dict)


# Settings of a connection that the model carries out; the others go to the variant's class.
MODEL_FIELDS = frozenset(f.name for f in fields(ConnectionConfig)) - {"options"}
RESIDUAL = ConnectionConfig("residual", n_streams=1)


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop; `docs/configuration.md` explains each field."""

    steps: int
    batch_size: int
    micro_batch_size: int | None
    warmup_steps: int
    min_lr_ratio: float
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    precision: str
    device: str
    threads: int
    compile: bool
    processes: int
    evaluation_interval: int
    evaluation_sequences: int
    checkpoint_interval: int
    deterministic: bool = True  # a default, for records of runs from before it was a setting


@dataclass(frozen=True)
class RunConfig:
    """One run of a study."""

    run: str  # its id and the name of its folder
    corpus: str
    condition: str
    seed: int
    model: ModelConfig
    connection: ConnectionConfig
    training: TrainingConfig

    @property
    def tokens_per_step(self) -> int:
        """Tokens that an optimizer step is trained on, over all processes."""
        return self.training.batch_size * self.model.block_size

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for the command line and run.json."""
        found: dict[str, Any] = to_json(self)
        return found

    @staticmethod
    def from_json(value: Any) -> RunConfig:
        """The reverse; `records.Misfit` for what is not one."""
        return build(RunConfig, value)


@dataclass(frozen=True)
class ThroughputConfig:
    """What `throughput` measures: training steps of several connections at one model size."""

    model: ModelConfig
    connections: dict[str, ConnectionConfig]  # by name, of a variant or a variant under a condition
    training: TrainingConfig
    rounds: int
    warmup_rounds: int
    implementations: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for the command line."""
        found: dict[str, Any] = to_json(self)
        return found
