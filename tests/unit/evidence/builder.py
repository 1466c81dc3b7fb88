"""A complete synthetic results folder, as the steps before `collect` write it.

Every number is a pure function of (corpus, model, variant, seed), so that a test can say what a
table must contain: `final_loss`, `gain`, `row_sum_deviation`. `build_results` writes the files and
then runs the real `stability` and `collect`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny import run_record, run_summary

from mhclite.config import RunConfig
from mhclite.connections.registry import VARIANTS
from mhclite.data import manifest as text
from mhclite.evidence.claims import load_claims
from mhclite.evidence.collect import collect, tidy
from mhclite.evidence.results import Results
from mhclite.files import digest_of, sha256_of, write_json
from mhclite.measure import measured
from mhclite.measure.critical import search
from mhclite.measure.stability import judge_all
from mhclite.records import build, to_json
from mhclite.runs.folder import Attempt, CorpusRecord, ParameterCounts
from mhclite.runs.provenance import GitState, Provenance
from mhclite.study.load import Resolved, parse_study, resolve
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
HARDWARE = {"cpu": "Synthetic CPU", "cores": 2, "memory_gib": 8.0}
VERSIONS = {"python": "3.11.0", "torch": "2.13.0"}
QUANTILE_LEVELS = [0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1]

# Advantage over the residual in nats per token.
ADVANTAGE = dict(zip(ALL_VARIANTS, (0.0, 0.01, 0.03, 0.04, 0.05, 0.035, 0.02), strict=True))
# Octaves above the learning rate up to which a variant learns, on average over seeds.
CRITICAL = dict(zip(ALL_VARIANTS, (3.0, 3.0, 1.6, 4.3, 4.3, 4.3, 9.0), strict=True))
SIZE = {"n_head": 4, "n_embd": 64, "block_size": 64, "learning_rate": 1e-3}


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
                name: {"n_layer": n, **SIZE} for name, n in (models or {"d2": 2, "d4": 4}).items()
            },
            "variants": list(variants),
            "seeds": list(seeds),
            "training": {
                "steps": steps,
                "batch_size": 16,
                "warmup_steps": 10,
                "evaluation_sequences": 32,
                "evaluation_interval": EVALUATION_INTERVAL,
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
    start, steps = math.log(model["vocab_size"]), training["steps"]

    def validation(step: int) -> dict[str, float]:
        # Exponential decay that reaches `end` exactly on the last step.
        progress = (1 - math.exp(-4 * step / steps)) / (1 - math.exp(-4))
        loss = start + (end - start) * progress
        return {
            "validation_loss": loss,
            "validation_bits_per_byte": bits_per_byte(loss),
            "attention_logit": 1.0 + progress,
        }

    lines: list[dict[str, Any]] = [{"step": 0, **validation(0)}]
    for step in range(1, steps + 1):
        spiked = variant == "hc" and step == GRAD_NORM_SPIKE
        grad_norm = 30.0 if spiked else 1.0 + 0.1 * noise("grad", run["run"], step)
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


def parameters_of(n_layer: int, variant: str) -> ParameterCounts:
    """Parameters of the whole model and of its residual connections."""
    place = list(VARIANTS).index(variant)
    connection = n_layer * 1000 * (1 + place) if place else 0
    return ParameterCounts(100_000 * n_layer + connection, connection)


def knockout(variant: str, run: str) -> float:
    """What a run loses in nats per token if every H_res is the identity."""
    least = {"identity": 0.0, "hc": 0.5, "mhc": 0.01}.get(variant, 0.001)
    return least * (1 + 0.2 * noise("use", run))


def probe_of(config: RunConfig, diverged: bool) -> measured.Probe:
    """probes/<run>.json of one run."""
    run, variant, sublayers = config.run, config.connection.variant, 2 * config.model.n_layer
    probe = measured.Probe(
        schema=measured.PROBE_SCHEMA,
        run=run,
        key=digest_of(config.to_json()),
        made_of=digest_of(run),
        skipped="the run diverged: it has no final weights" if diverged else None,
        evaluation=None,
        mixing=None,
        use=None,
    )
    if diverged:
        return probe
    loss = final_loss(config.corpus, config.model.n_layer, variant, config.seed)
    loss += condition_effect(config.condition, variant, config.seed)
    probe = replace(probe, evaluation=measured.Evaluation(loss, 1000))
    if variant == "residual":
        return probe

    def sums(width: float) -> list[float]:
        return [1 + width * (2 * level - 1) for level in QUANTILE_LEVELS]

    single, product = (row_sum_deviation(variant, product=kind) for kind in (False, True))
    growing = [single + (product - single) * i / (sublayers - 1) for i in range(sublayers)]
    forward = [gain(variant, layer + 1) for layer in range(sublayers)]
    inputs = measured.SinkhornInput(50 / 700, 43.5)
    mixing = measured.Mixing(
        quantile_levels=QUANTILE_LEVELS,
        single=measured.SingleSums(sums(single), sums(single / 2)),
        product=measured.ProductSums(
            row_sum=[sums(width) for width in growing],
            column_sum=[sums(width / 2) for width in growing],
            gain_forward=forward,
            gain_backward=[1.1 * value for value in forward],
        ),
        identity_distance=[0.1 * (layer + 1) for layer in range(sublayers)],
        sinkhorn_input=inputs if variant in ("mhc", "mhc_v4") else None,
        geometry=measured.Geometry(
            single_deviation=measured.Deviation(single / 2),
            product_deviation=measured.Deviation(product / 2),
            orthogonality=[single] * sublayers,
            singular_values=[
                [value, 1.0, 0.9, 0.9 - 0.8 * layer / sublayers]
                for layer, value in enumerate(forward)
            ],
            start_distance=[0.05 * (layer + 1) for layer in range(sublayers)],
            mean_matrix=[np.eye(4).tolist()] * sublayers,
        ),
    )
    whole = knockout(variant, run)
    use = measured.Use(measured.Cost(whole, 0.0004), measured.Cost(whole / 10, 0.0004))
    return replace(probe, mixing=mixing, use=use)


def critical_of(study: Study, config: RunConfig) -> measured.Critical:
    """critical/<run>.json of one run: `CRITICAL` says from which octave on it fails."""
    section = study.critical_rate
    assert section is not None
    settings = build(measured.CriticalSettings, section.model_dump())
    threshold = CRITICAL.get(config.connection.variant, 4.0) + 0.2 * noise("critical", config.seed)
    bar = UNIGRAM - section.below_unigram

    def make(factor: float) -> measured.Try:
        octave = math.log2(factor)
        failed = octave > threshold
        loss = bar + 0.1 * (octave - threshold)
        return measured.Try(factor, failed, None if octave > 5.9 else loss, 60)

    return measured.Critical(
        measured.CRITICAL_SCHEMA, config.run, bar, settings, search(settings, make)
    )


def throughput_of(study: Study, model: str) -> measured.Throughput:
    """throughput/<model>.json of one model size: each connection a quarter slower than the last."""
    settings = study.models[model]

    def quartiles(middle: float) -> measured.Quartiles:
        return measured.Quartiles(middle, 0.98 * middle, 1.02 * middle)

    variants, reference = {}, {}
    for at, (name, connection) in enumerate(study.measured_connections(model).items()):
        slower, memory = 1 + 0.25 * at, 2**27 + at * 2**20
        ratio = [slower * (1 + 0.001 * r) for r in range(9)]
        counts = parameters_of(settings.n_layer, connection.variant)
        known = (quartiles(40_000 / slower), quartiles(slower), memory)
        own = ([0.025 * x for x in ratio], ratio, *known)
        flops = 1.2e6 * slower
        variants[name] = measured.Measured(*own, flops, counts.total, counts.connection)
        if not name.startswith("residual"):
            double = (quartiles(20_000 / slower), quartiles(2 * slower), memory)
            reference[name] = measured.Timing([0.05 * x for x in ratio], ratio, *double)
    return measured.Throughput(
        schema=measured.THROUGHPUT_SCHEMA,
        model=model,
        device="cpu",
        hardware=HARDWARE,
        threads=1,
        precision="fp32",
        compile=False,
        batch_size=16,
        block_size=settings.block_size,
        rounds=9,
        warmup_rounds=3,
        implementation="fast",
        variants=variants,
        others={"reference": reference},
        deterministic=False,
        did_not_fit=[],
    )


def manifest_of(study: Study, corpus: str) -> text.Manifest:
    """manifest.json of one prepared corpus."""
    shard = text.Shard("train-00000.bin", 1_000_000, digest_of(corpus))
    split = text.SplitEntry(100, int(BYTES_PER_TOKEN) * shard.tokens, shard.tokens, (shard,))
    tokenizer = text.TokenizerEntry(
        "bpe", vocab_size=1024, n_tokens=1024, sha256=digest_of("tokenizer"), eot_id=0
    )
    return text.Manifest(
        schema=1,
        name=corpus,
        settings=study.corpus_settings(corpus),
        source=text.SourceEntry("embedded", "Synthetic text", license="public domain"),
        tokenizer=tokenizer,
        train=split,
        validation=split,
        baselines=text.Baselines(UNIGRAM, BIGRAM),
        digest=text.content_digest(tokenizer, {"train": split, "validation": split}),
    )


def write_run(folder: Path, config: RunConfig, diverged: bool, corpus_digest: str) -> None:
    """A finished run folder."""
    run = config.to_json()
    metrics, key = metrics_of(run, diverged), digest_of(run)
    n_layer, variant = config.model.n_layer, config.connection.variant
    provenance = Provenance(GitState("f" * 40, False), VERSIONS, HARDWARE, "Synthetic")
    record = replace(
        run_record(config, key),
        corpus=CorpusRecord(config.corpus, corpus_digest, "manifest.json"),
        attempts=[Attempt("2026-01-01T00:00:00+00:00", provenance)],
        parameters=parameters_of(n_layer, variant),
    )
    write_json(folder / "run.json", to_json(record))
    write_lines(folder / "metrics.jsonl", metrics)
    timing = [
        {"step": line["step"], "seconds": 0.025, "wall": 1.7e9 + line["step"]}
        for line in metrics[1:]
    ]
    write_lines(folder / "timing.jsonl", timing)
    evaluated = [line for line in metrics if "validation_loss" in line]
    layers = range(1, 1 + 2 * n_layer) if variant != "residual" else range(0)
    moved = 0.0 if variant == "identity" else 0.01
    mixing = [
        {
            "step": line["step"],
            "identity_distance": [moved * layer * (1 + line["step"]) for layer in layers],
            "stream_similarity": [1 - 0.05 * layer for layer in layers],
            "gain_forward": gain(variant, len(layers)),
            "gain_backward": 1.1 * gain(variant, len(layers)),
        }
        for line in (evaluated if layers else ())
    ]
    write_lines(folder / "mixing.jsonl", mixing)
    losses = [line["loss"] for line in metrics[1:] if line["loss"] is not None]
    end = metrics[-1]["step"]
    ended: dict[str, Any] = {
        "train_loss": float(np.mean(losses[-50:])),
        "validation_loss": evaluated[-1]["validation_loss"],
        "validation_bits_per_byte": evaluated[-1]["validation_bits_per_byte"],
        "weights_sha256": digest_of(config.run),
    }
    if diverged:
        ended = dict.fromkeys(ended) | {"status": "diverged", "diverged_step": end}
    summary = run_summary(
        config,
        key,
        steps=end,
        tokens=end * config.tokens_per_step,
        best_validation_loss=min(line["validation_loss"] for line in evaluated),
        seconds=12.5,
        tokens_per_second=40_000.0 + 1000 * noise("speed", config.run),
        **ended,
    )
    seal(folder, to_json(summary))


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
    settings = measured.StabilitySettings(**study.stability.model_dump())
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
    manifests = {corpus: manifest_of(study, corpus) for corpus in study.corpora}
    for corpus, manifest in manifests.items():
        text.write_manifest(results / study.corpus_folder(corpus), manifest)
    for name, config in study.runs().items():
        lost, probe = name in diverged, folder / "probes" / f"{name}.json"
        write_run(folder / "runs" / name, config, lost, manifests[config.corpus].digest)
        write_json(probe, to_json(probe_of(config, lost)))
        if study.critical_rate:
            write_json(folder / "critical" / f"{name}.json", to_json(critical_of(study, config)))
    for model in study.models:
        throughput = to_json(throughput_of(study, model))
        write_json(folder / "throughput" / f"{model}.json", throughput)
    if collected:
        run_stability(study, folder)
        collect(resolved_of(study, results), folder)
    return folder


# --- a study that is otherwise --------------------------------------------------------------


def with_columns(
    results: Results, columns: Mapping[str, Any] | None = None, **more: Any
) -> Results:
    """The study with columns of runs.csv set: to a number, or to what a function makes of a row."""
    runs = results.all_runs.copy()
    for name, value in {**(columns or {}), **more}.items():
        runs[name] = [value(row) for row in runs.to_dict("records")] if callable(value) else value
    return replace(results, all_runs=runs, values=tidy(runs))


def with_settings(results: Results, **settings: Any) -> Results:
    """The results as those of a study file with other sections."""
    study = results.settings | settings
    return replace(results, study={**results.study, "study": study})
