"""A complete synthetic results folder, as the steps before `collect` write it.

Every number is a pure function of (corpus, model, variant, seed), so that a test can say what a
table must contain: `final_loss`, `gain`, `row_sum_deviation`. `build_results` writes the files and
then runs the real `stability` and `collect`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mhclite.config import RunConfig
from mhclite.connections.registry import VARIANTS
from mhclite.data.manifest import SPLITS, SplitEntry, TokenizerEntry, content_digest
from mhclite.evidence.claims import load_claims
from mhclite.evidence.collect import collect
from mhclite.files import digest_of, sha256_of, write_json
from mhclite.measure.critical import search
from mhclite.measure.files import (
    CRITICAL_SCHEMA,
    PROBE_SCHEMA,
    THROUGHPUT_SCHEMA,
    Critical,
    CriticalSettings,
    StabilitySettings,
    Try,
)
from mhclite.measure.stability import judge_all
from mhclite.records import build, to_json
from mhclite.runs.folder import SCHEMA as FOLDER_SCHEMA
from mhclite.study.reading import Resolved, parse_study, resolve
from mhclite.study.settings import Study

CLAIMS = Path(__file__).parents[3] / "config" / "claims.yaml"
ALL_VARIANTS = ("residual", "identity", "hc", "mhc", "mhc_lite", "kromhc", "jpmhc")
STEPS = 60
EVALUATION_INTERVAL = 20
GRAD_NORM_SPIKE = 40  # step of HC's one spike in every run
DIVERGED = "sotu-d4-hc-s1"  # diverges at step DIVERGED_STEP
DIVERGED_STEP = 45
UNIGRAM, BIGRAM = 5.25, 4.5
BYTES_PER_TOKEN = 3.0
PROVENANCE = {
    "git": {"commit": "f" * 40, "dirty": False},
    "versions": {"python": "3.11.0", "torch": "2.13.0"},
    "hardware": {"cpu": "Synthetic CPU", "cores": 2, "memory_gib": 8.0},
    "platform": "Synthetic",
}
QUANTILE_LEVELS = [0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1]

# Advantage over the residual in nats per token.
ADVANTAGE = {
    "residual": 0.0,
    "identity": 0.01,
    "hc": 0.03,
    "mhc": 0.04,
    "mhc_lite": 0.05,
    "kromhc": 0.035,
    "jpmhc": 0.02,
}

# Octaves above the learning rate up to which a variant learns, on average over seeds.
CRITICAL = {
    "residual": 3.0,
    "identity": 3.0,
    "hc": 1.6,
    "mhc": 4.3,
    "mhc_lite": 4.3,
    "kromhc": 4.3,
    "jpmhc": 9.0,
}


def make_study(
    corpora: Sequence[str] = ("sotu",),
    models: dict[str, int] | None = None,
    variants: Sequence[str] = ALL_VARIANTS,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = STEPS,
    **more: Any,
) -> Study:
    """A small valid study; `models` maps names to depths, `more` are further sections."""
    return parse_study(
        {
            "name": "synthetic",
            "corpora": {name: {"source": "embedded"} for name in corpora},
            "tokenizer": {"kind": "bpe", "vocab_size": 1024},
            "models": {
                name: {
                    "n_layer": depth,
                    "n_head": 4,
                    "n_embd": 64,
                    "block_size": 64,
                    "learning_rate": 1e-3,
                }
                for name, depth in (models or {"d2": 2, "d4": 4}).items()
            },
            "variants": list(variants),
            "seeds": list(seeds),
            "training": {
                "steps": steps,
                "batch_size": 16,
                "warmup_steps": 10,
                "evaluation_interval": EVALUATION_INTERVAL,
                "evaluation_sequences": 32,
                "checkpoint_interval": 50,
            },
            "stability": {"spike_window": 16, "spike_sigmas": 6.0, "fluctuation_window": 20},
            **more,
        }
    )


def noise(*parts: Any) -> float:
    """A number in [-1, 1) that depends on `parts` only."""
    return int(digest_of(list(parts))[:8], 16) / 2**31 - 1


def final_loss(corpus: str, n_layer: int, variant: str, seed: int) -> float:
    """Last validation loss of a run, nats per token: depth, variant, seed, and a rest."""
    return (
        3.6
        - 0.1 * math.log2(n_layer)
        - ADVANTAGE.get(variant, 0.015)
        + 0.03 * noise(corpus, seed)  # shared by the variants of a seed
        + 0.004 * noise(corpus, n_layer, variant, seed)
    )


def condition_effect(condition: str, variant: str, seed: int) -> float:
    """What a condition adds to the final loss: by variant, and a little by seed."""
    if condition == "base":
        return 0.0
    return 0.05 * noise(condition, variant) + 0.001 * noise(condition, variant, seed)


def bits_per_byte(loss: float) -> float:
    """Bits per byte of a loss on the synthetic corpora."""
    return loss / BYTES_PER_TOKEN / math.log(2)


def row_sum_deviation(variant: str, product: bool) -> float:
    """Largest |row sum - 1| of a run's probe."""
    single = {"hc": 0.8, "mhc": 0.03}.get(variant, 2e-7)
    return single * (10 if product else 1)


def gain(variant: str, sublayer: int) -> float:
    """Composite forward gain after sub-layer `sublayer` (from 1); backward is 1.1 times this."""
    return {"hc": 1.3, "mhc": 1.005}.get(variant, 1.0) ** sublayer


def metrics_of(run: dict[str, Any], diverged: bool) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of one run."""
    corpus, seed = run["corpus"], run["seed"]
    model, variant = run["model"], run["connection"]["variant"]
    training = run["training"]
    end = final_loss(corpus, model["n_layer"], variant, seed)
    end += condition_effect(run["condition"], variant, seed)
    start = math.log(model["vocab_size"])
    steps = training["steps"]

    def validation(step: int) -> dict[str, float]:
        # Exponential decay that reaches `end` exactly on the last step.
        progress = (1 - math.exp(-4 * step / steps)) / (1 - math.exp(-4))
        loss = start + (end - start) * progress
        bits = bits_per_byte(loss)
        return {
            "validation_loss": loss,
            "validation_bits_per_byte": bits,
            "attention_logit": 1.0 + progress,
        }

    lines: list[dict[str, Any]] = [{"step": 0, **validation(0)}]
    for step in range(1, steps + 1):
        grad_norm = 1.0 + 0.1 * noise("grad", run["run"], step)
        if variant == "hc" and step == GRAD_NORM_SPIKE:
            grad_norm = 30.0
        line = {
            "step": step,
            "loss": validation(step)["validation_loss"] + 0.05 * noise("loss", run["run"], step),
            "grad_norm": grad_norm,
        }
        if diverged and step == DIVERGED_STEP:
            lines.append({**line, "loss": None, "grad_norm": None})
            break
        if step % training["evaluation_interval"] == 0 or step == steps:
            line |= validation(step)
        lines.append(line)
    return lines


def summary_of(run: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """summary.json of one run."""
    diverged = metrics[-1]["loss"] is None
    evaluated = [line for line in metrics if "validation_loss" in line]
    losses = [line["loss"] for line in metrics[1:] if line["loss"] is not None]
    return {
        "schema": FOLDER_SCHEMA,
        "run": run["run"],
        "key": digest_of(run),
        "status": "diverged" if diverged else "completed",
        "steps": metrics[-1]["step"],
        "diverged_step": metrics[-1]["step"] if diverged else None,
        "tokens": metrics[-1]["step"] * run["training"]["batch_size"] * run["model"]["block_size"],
        "train_loss": None if diverged else float(np.mean(losses[-50:])),
        "validation_loss": None if diverged else evaluated[-1]["validation_loss"],
        "validation_bits_per_byte": (
            None if diverged else evaluated[-1]["validation_bits_per_byte"]
        ),
        "best_validation_loss": min(line["validation_loss"] for line in evaluated),
        "seconds": 12.5,
        "tokens_per_second": 40_000.0 + 1000 * noise("speed", run["run"]),
        "attempts": 1,
        "weights_sha256": None if diverged else digest_of(run["run"]),
    }


def parameters_of(n_layer: int, variant: str) -> dict[str, int]:
    """Parameters of the whole model and of its residual connections."""
    place = list(VARIANTS).index(variant)
    connection = n_layer * 1000 * (1 + place) if place else 0
    return {"total": 100_000 * n_layer + connection, "connection": connection}


def probe_of(run: dict[str, Any], diverged: bool) -> dict[str, Any]:
    """probes/<run>.json of one run."""
    variant, sublayers = run["connection"]["variant"], 2 * run["model"]["n_layer"]
    head = {
        "schema": PROBE_SCHEMA,
        "run": run["run"],
        "key": digest_of(run),
        "made_of": digest_of(run["run"]),
        "variant": variant,
        "n_streams": run["connection"]["n_streams"],
        "skipped": None,
        **dict.fromkeys(("evaluation", "mixing", "use")),
    }
    if diverged:
        return {**head, "skipped": "the run diverged: it has no final weights"}
    loss = final_loss(run["corpus"], run["model"]["n_layer"], variant, run["seed"])
    loss += condition_effect(run["condition"], variant, run["seed"])
    head["evaluation"] = {"loss": loss, "tokens": 1000}
    if variant == "residual":
        return head

    def sums(width: float) -> list[float]:
        return [1 + width * (2 * level - 1) for level in QUANTILE_LEVELS]

    single, product = (row_sum_deviation(variant, product=kind) for kind in (False, True))
    growing = [single + (product - single) * i / (sublayers - 1) for i in range(sublayers)]
    forward = [gain(variant, layer + 1) for layer in range(sublayers)]
    sinkhorn = None
    if variant in ("mhc", "mhc_v4"):
        sinkhorn = {
            "bin_edges": [0, 10, 20, 30, 40],  # left edges: the last bin is open
            "counts": [100, 300, 250, 40, 10],
            "share_above_30": 50 / 700,
            "max": 43.5,
        }
    mixing = {
        "sequences": 64,
        "tokens": 64 * run["model"]["block_size"],
        "n_sublayers": sublayers,
        "quantile_levels": QUANTILE_LEVELS,
        "single": {
            "row_sum_all": sums(single),
            "column_sum_all": sums(single / 2),
        },
        "product": {
            "row_sum": [sums(width) for width in growing],
            "column_sum": [sums(width / 2) for width in growing],
            "gain_forward": forward,
            "gain_backward": [1.1 * value for value in forward],
        },
        "identity_distance": [0.1 * (layer + 1) for layer in range(sublayers)],
        "sinkhorn_input": sinkhorn,
        "geometry": {
            "single_deviation": {"mean": single / 4, "quantile_99": single / 2},
            "product_deviation": {"mean": product / 4, "quantile_99": product / 2},
            "orthogonality": [single] * sublayers,
            "product_orthogonality": growing,
            "singular_values": [
                [value, 1.0, 0.9, 0.9 - 0.8 * layer / sublayers]
                for layer, value in enumerate(forward)
            ],
            "start_distance": [0.05 * (layer + 1) for layer in range(sublayers)],
            "mean_matrix": [np.eye(4).tolist()] * sublayers,
        },
    }
    return {**head, "mixing": mixing, "use": use_of(run["run"], loss, variant, sublayers)}


def knockout(variant: str, run: str) -> float:
    """What a run loses in nats per token if every H_res is the identity."""
    least = {"identity": 0.0, "hc": 0.5, "mhc": 0.01}.get(variant, 0.001)
    return least * (1 + 0.2 * noise("use", run))


def use_of(run: str, loss: float, variant: str, sublayers: int) -> dict[str, Any]:
    """The part `use` of a probe."""
    whole = knockout(variant, run)

    def cost(mean: float) -> dict[str, float]:
        return {"mean": mean, "error": 0.0004}

    return {
        "windows": 32,
        "loss": loss,
        "identity": cost(whole),
        "token_mean": cost(whole / 10),
        "identity_by_sublayer": [cost(whole * layer / sublayers) for layer in range(sublayers)],
        "stream_dropped": [cost(0.3), cost(0.1), cost(0.0), cost(-0.001)],
    }


def critical_of(study: Study, config: RunConfig) -> Critical:
    """critical/<run>.json of one run: `CRITICAL` says from which octave on it fails."""
    section = study.critical_rate
    assert section is not None
    settings = build(CriticalSettings, section.model_dump())
    threshold = CRITICAL.get(config.connection.variant, 4.0) + 0.2 * noise("critical", config.seed)
    bar = UNIGRAM - section.below_unigram

    def make(factor: float) -> Try:
        octave = math.log2(factor)
        failed = octave > threshold
        loss = bar + 0.1 * (octave - threshold)
        return Try(factor, failed, None if octave > 5.9 else loss, 60)

    return Critical(CRITICAL_SCHEMA, config.run, bar, settings, search(settings, make))


def throughput_of(study: Study, model: str) -> dict[str, Any]:
    """throughput/<model>.json of one model size."""
    settings = study.models[model]
    variants = {}
    for position, (name, connection) in enumerate(study.measured_connections(model).items()):
        slower = 1 + 0.25 * position
        parameters = parameters_of(settings.n_layer, connection.variant)
        median = 40_000 / slower
        variants[name] = {
            "step_seconds": [0.025 * slower * (1 + 0.01 * r) for r in range(9)],
            "ratio": [slower * (1 + 0.001 * r) for r in range(9)],
            "tokens_per_second": {"median": median, "q1": 0.98 * median, "q3": 1.01 * median},
            "ratio_quartiles": {"median": slower, "q1": 0.99 * slower, "q3": 1.02 * slower},
            "peak_memory_bytes": 2**27 + position * 2**20,
            "flops_per_token": 1.2e6 * slower,
            "parameters": parameters["total"],
            "extra_parameters": parameters["connection"],
        }
    return {
        "schema": THROUGHPUT_SCHEMA,
        "model": model,
        "device": "cpu",
        "hardware": {"cpu": "Synthetic CPU", "cores": 2, "memory_gib": 8.0},
        "threads": 1,
        "precision": "fp32",
        "batch_size": 16,
        "block_size": settings.block_size,
        "rounds": 9,
        "warmup_rounds": 3,
        "compile": False,
        "implementation": "fast",
        "variants": variants,
        "deterministic": False,
        "did_not_fit": [],
        "others": {
            "reference": {
                name: {
                    "ratio": row["ratio"],
                    "peak_memory_bytes": row["peak_memory_bytes"],
                    "step_seconds": [2 * s for s in row["step_seconds"]],
                    "tokens_per_second": {k: v / 2 for k, v in row["tokens_per_second"].items()},
                    "ratio_quartiles": {k: v * 2 for k, v in row["ratio_quartiles"].items()},
                }
                for name, row in variants.items()
                if not name.startswith("residual")
            }
        },
    }


def manifest_of(study: Study, corpus: str) -> dict[str, Any]:
    """manifest.json of one prepared corpus."""
    part = {"documents": 100, "bytes": 3_000_000, "tokens": 1_000_000}
    assert part["bytes"] / part["tokens"] == BYTES_PER_TOKEN
    shard = {"tokens": 1_000_000, "sha256": digest_of(corpus)}
    manifest = {
        "schema": 1,
        "name": corpus,
        "settings": study.corpus_settings(corpus),
        "source": {
            "kind": "embedded",
            "description": "Synthetic text",
            "repository": None,
            "revision": None,
            "files": [{"path": "text.jsonl", "sha256": digest_of("text"), "bytes": 12}],
            "license": "public domain",
        },
        "tokenizer": {
            "kind": "bpe",
            "vocab_size": 1024,
            "n_tokens": 1024,
            "sha256": digest_of("tokenizer"),
            "eot_id": 0,
        },
        "split": {"rule": "sha256 of the text", "validation_fraction": 0.05},
        "train": {**part, "shards": [{"file": "train-00000.bin", **shard}]},
        "validation": {**part, "shards": [{"file": "validation-00000.bin", **shard}]},
        "baselines": {"unigram": UNIGRAM, "bigram": BIGRAM},
        "bigram_tokens": 1_000_000,
    }
    digest = content_digest(
        build(TokenizerEntry, manifest["tokenizer"]),
        {split: build(SplitEntry, manifest[split]) for split in SPLITS},
    )
    return {**manifest, "digest": digest}


def write_run(folder: Path, run: dict[str, Any], diverged: bool, corpus_digest: str) -> None:
    """A finished run folder."""
    metrics = metrics_of(run, diverged)
    n_layer, variant = run["model"]["n_layer"], run["connection"]["variant"]
    write_json(
        folder / "run.json",
        {
            "schema": FOLDER_SCHEMA,
            "key": digest_of(run),
            "config": run,
            "corpus": {
                "name": run["corpus"],
                "digest": corpus_digest,
                "manifest": f"results/corpora/{run['corpus']}/manifest.json",
            },
            "code": "0123456789abcdef",
            "attempts": [{"started": "2026-01-01T00:00:00+00:00", "provenance": PROVENANCE}],
            "parameters": parameters_of(n_layer, variant),
            "implementation": "fast",
            "launch": None,
        },
    )
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(
        folder / "timing.jsonl",
        [
            {"step": line["step"], "seconds": 0.025, "wall": 1.7e9 + line["step"]}
            for line in metrics[1:]
        ],
    )
    sublayers = 2 * n_layer if variant != "residual" else 0
    write_lines(
        folder / "mixing.jsonl",
        [
            {
                "step": line["step"],
                "identity_distance": [
                    0.0 if variant == "identity" else 0.01 * (layer + 1) * (1 + line["step"])
                    for layer in range(sublayers)
                ],
                "stream_similarity": [1 - 0.05 * layer for layer in range(sublayers)],
                "gain_forward": gain(variant, sublayers),
                "gain_backward": 1.1 * gain(variant, sublayers),
            }
            for line in metrics
            if "validation_loss" in line and sublayers
        ],
    )
    seal(folder, summary_of(run, metrics))


def seal(folder: Path, summary: dict[str, Any]) -> None:
    """Write the summary, with the digest of metrics.jsonl as it is now."""
    digest = sha256_of(folder / "metrics.jsonl")
    write_json(folder / "summary.json", summary | {"metrics_sha256": digest})


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """A file of one JSON object per line."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def resolved_of(study: Study, results: Path) -> Resolved:
    """What `collect` is given."""
    corpora = {name: str(results / study.corpus_folder(name)) for name in study.corpora}
    return replace(resolve(study, load_claims(CLAIMS)), corpora=corpora)


def run_stability(study: Study, folder: Path) -> None:
    """The real `stability` step over all runs of the study."""
    settings = StabilitySettings(**study.stability.model_dump())
    judge_all(folder / "runs", list(study.runs()), settings, folder / "stability.json")


def build_results(
    results: Path,
    study: Study | None = None,
    diverged: Sequence[str] = (DIVERGED,),
    collected: bool = True,
) -> Path:
    """Write results/<study>, complete; returns that folder.

    `collected=False` leaves out what `stability` and `collect` write.
    """
    study = study or make_study()
    folder = results / study.name
    runs = {name: config.to_json() for name, config in study.runs().items()}
    for corpus in study.corpora:
        manifest = manifest_of(study, corpus)
        write_json(results / study.corpus_folder(corpus) / "manifest.json", manifest)
    for name, run in runs.items():
        manifest = manifest_of(study, run["corpus"])
        write_run(folder / "runs" / name, run, name in diverged, manifest["digest"])
        write_json(folder / "probes" / f"{name}.json", probe_of(run, name in diverged))
    for name, config in study.runs().items() if study.critical_rate else ():
        write_json(folder / "critical" / f"{name}.json", to_json(critical_of(study, config)))
    for model in study.models:
        write_json(folder / "throughput" / f"{model}.json", throughput_of(study, model))
    if collected:
        run_stability(study, folder)
        collect(resolved_of(study, results), folder)
    return folder
