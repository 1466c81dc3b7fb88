"""A tiny corpus, model and run, and what tests of several implementations share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mhclite.config import MODEL_FIELDS, ConnectionConfig, ModelConfig, RunConfig, TrainingConfig
from mhclite.connections.fast.sinkhorn_operator import sinkhorn
from mhclite.connections.fast.sinkhorn_v4 import sinkhorn_v4
from mhclite.connections.matrices import sinkhorn_knopp
from mhclite.connections.mhc_v4 import shipped_sinkhorn
from mhclite.connections.registry import VARIANTS as REGISTRY
from mhclite.connections.registry import has_streams
from mhclite.data.manifest import (
    Baselines,
    Manifest,
    Shard,
    SourceEntry,
    Split,
    SplitEntry,
    TokenizerEntry,
    content_digest,
    shard_name,
    write_manifest,
)
from mhclite.files import sha256_of
from mhclite.model import GPT
from mhclite.runs.folder import (
    SCHEMA,
    Attempt,
    CorpusRecord,
    ParameterCounts,
    RunRecord,
    Summary,
)
from mhclite.runs.provenance import GitState, Provenance
from mhclite.study.sections import Connections

M = TypeVar("M", bound=torch.nn.Module)
VARIANTS = tuple(REGISTRY)
MIXING = tuple(name for name in VARIANTS if "freeze_mixing" in REGISTRY[name].options)
MODEL = ModelConfig(
    name="tiny", vocab_size=31, n_layer=2, n_head=2, n_embd=8, block_size=6, learning_rate=1e-2
)
TRAINING = TrainingConfig(
    steps=6,
    batch_size=4,
    micro_batch_size=None,
    warmup_steps=2,
    min_lr_ratio=0.1,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    grad_clip=1.0,
    precision="fp32",
    device="cpu",
    threads=1,
    compile=False,
    processes=1,
    evaluation_interval=3,
    evaluation_sequences=4,
    checkpoint_interval=2,
)


def streams_of(variant: str) -> list[int]:
    """Numbers of streams that the variant can have, among those that tests take."""
    return [n for n in (1, 2, 4) if has_streams(variant, n)]


def n_of(variant: str) -> int:
    """The most streams that tests give the variant."""
    return streams_of(variant)[-1]


def perturbed(module: M, size: float = 0.3, seed: int = 1) -> M:
    """All of its parameters matter: each is moved from where it starts, the same every time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return module


# Operator and formula of Sinkhorn-Knopp, of logits and a number of iterations.
SINKHORN: dict[str, tuple[Any, Any]] = {
    "mhc": (sinkhorn, sinkhorn_knopp),
    "mhc_v4": (lambda x, k: sinkhorn_v4(x, k, 1e-6), lambda x, k: shipped_sinkhorn(x, k, 1e-6)),
}


def sinkhorn_errors(
    functions: tuple[Any, Any], logits: torch.Tensor, weight: torch.Tensor
) -> tuple[float, float]:
    """Largest errors of the operator in float32 against the formula in float64: of the matrices,
    and of the gradient of their weighted sum."""
    results = []
    for function, dtype in zip(functions, (torch.float32, torch.float64), strict=True):
        given = logits.to(dtype, copy=True).requires_grad_()
        M = function(given, 20)
        (gradient,) = torch.autograd.grad((M * weight).sum(), given)
        results.append((M.detach().double(), gradient.double()))
    matrices, gradient = (float((ours - exact).abs().max()) for ours, exact in zip(*results))
    return matrices, gradient


def one_graph(size: ModelConfig, connection: ConnectionConfig, bf16: bool = False) -> None:
    """The compiler traces the loss without a break, and its gradients are those of eager."""
    model = perturbed(GPT(size, connection, seed=0), 0.1)
    tokens = torch.arange(2 * (size.block_size + 1)).view(2, -1) % size.vocab_size
    found = []
    for loss in (model.loss, torch.compile(model.loss, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss(tokens)
        value.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch._dynamo.reset()
    largest = max(float(gradient.abs().max()) for gradient in found[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5 * largest)


def connection(variant: str, n_streams: int = 4, **changes: Any) -> ConnectionConfig:
    """The resolved connection of a variant, computed by the reference; keywords change settings."""
    own = [name for name in REGISTRY[variant].options if name not in MODEL_FIELDS]
    options = {name: changes.pop(name, getattr(Connections(), name)) for name in own}
    n = 1 if variant == "residual" else n_streams
    return ConnectionConfig(variant, n, options=options, **changes)


def configuration(variant: str = "mhc_lite", seed: int = 0, **training: Any) -> RunConfig:
    """A resolved run configuration; keywords replace training settings."""
    return RunConfig(
        run=f"tiny-tiny-{variant}-s{seed}",
        corpus="tiny",
        condition="base",
        seed=seed,
        model=MODEL,
        connection=connection(variant, implementation="fast"),
        training=replace(TRAINING, **training),
    )


def run_record(config: RunConfig, key: str, code: str = "c0de") -> RunRecord:
    """run.json of a run, as training begins it."""
    attempt = Attempt(
        "2026-01-01T00:00:00+00:00", Provenance(GitState(None, None), {}, {}, "Linux")
    )
    return RunRecord(
        schema=SCHEMA,
        key=key,
        code=code,
        config=config,
        corpus=CorpusRecord(config.corpus, "c", "manifest.json"),
        attempts=[attempt],
        parameters=ParameterCounts(2, 1),
        implementation="fast",
        launch=None,
    )


def run_summary(config: RunConfig, key: str, **changes: Any) -> Summary:
    """summary.json of a run that is completed; keywords change fields."""
    done = Summary(
        schema=SCHEMA,
        run=config.run,
        key=key,
        status="completed",
        steps=config.training.steps,
        diverged_step=None,
        tokens=config.training.steps * config.tokens_per_step,
        train_loss=1.0,
        validation_loss=1.0,
        validation_bits_per_byte=1.0,
        best_validation_loss=1.0,
        seconds=1.0,
        tokens_per_second=1.0,
        attempts=1,
        metrics_sha256="",
        weights_sha256=None,
    )
    return replace(done, **changes)


def write_shards(
    folder: Path, split: Split, ids: npt.ArrayLike, shard_tokens: int
) -> tuple[Shard, ...]:
    """Write tokens as shards of that many; their entries in the manifest."""
    tokens = np.asarray(ids, dtype=np.uint16)
    shards: list[Shard] = []
    for index, first in enumerate(range(0, len(tokens), shard_tokens)):
        path, part = folder / shard_name(split, index), tokens[first : first + shard_tokens]
        path.write_bytes(part.tobytes())
        shards.append(Shard(path.name, len(part), sha256_of(path)))
    return tuple(shards)


def write_corpus(folder: Path, size: int = MODEL.vocab_size, sha256: str = "0" * 64) -> Path:
    """A prepared corpus of random tokens that follow one another more often than by chance.

    Args:
        size: ids of its tokenizer.
        sha256: of its tokenizer.
    """
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)

    def entry(split: Split, count: int) -> SplitEntry:
        ids = np.cumsum(generator.integers(1, 4, size=count)) % size
        return SplitEntry(1, 3 * count, count, write_shards(folder, split, ids, 700))

    tokenizer = TokenizerEntry("bpe", vocab_size=size, n_tokens=size, sha256=sha256, eot_id=0)
    train, validation = entry("train", 2000), entry("validation", 300)
    manifest = Manifest(
        schema=1,
        name="tiny",
        settings={"name": "tiny", "corpus": {}, "tokenizer": {}},
        source=SourceEntry("files", "random"),
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        baselines=Baselines(3.4, 3.0),
        digest=content_digest(tokenizer, {"train": train, "validation": validation}),
    )
    write_manifest(folder, manifest)
    return folder
