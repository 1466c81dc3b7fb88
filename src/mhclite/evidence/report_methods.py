"""The report's methods in words, made from study.json: settings, corpora, statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.findings import claims_of
from mhclite.evidence.results import Results
from mhclite.evidence.table_format import percent_of

FINAL_NORM = {
    "per_stream": "of each stream, before the sum (as in the authors' code)",
    "after_sum": "of the sum of the streams",
    "head": "of a sum of the streams with learned weights (as in DeepSeek V4)",
}

Entry = tuple[str, str]  # a term and its description


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 seed`, `2 seeds`, `10,000 steps`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def layers_of(results: Results, models: Sequence[str]) -> str:
    """`3 and 6 layers`: the depths of model sizes."""
    depths = list(dict.fromkeys(str(results.n_layer(model)) for model in models))
    return f"{listed(depths)} layer{'s' * (depths != ['1'])}"


def tokens_per_run(results: Results, model: str) -> int:
    """Training tokens of one run."""
    training = results.settings["training"]
    block_size = results.settings["models"][model]["block_size"]
    return int(training["steps"] * training["batch_size"] * block_size)


def corpus_text(results: Results, corpus: str) -> str:
    """What a corpus is, how much of it there is, how it was split and cut into tokens."""
    manifest = results.manifest(corpus)
    source, tokenizer = manifest["source"], manifest["tokenizer"]
    description = source["description"].rstrip(".")
    parts = [f"{description[:1].upper()}{description[1:]}."]
    if source.get("repository"):
        parts.append(f"Repository {source['repository']}, revision {source['revision']}.")
    if source.get("license"):
        parts.append(f"License: {source['license']}.")
    for name in ("train", "validation"):
        part = manifest[name]
        use = "Training" if name == "train" else "Validation"
        parts.append(
            f"{use}: {counted(part['documents'], 'document')}, {counted(part['bytes'], 'byte')} "
            f"of text, {counted(part['tokens'], 'token')}."
        )
    split = manifest["split"]
    parts.append(
        f"Documents are assigned by {split['rule']}; validation fraction "
        f"{split['validation_fraction']:g}."
    )
    kind = {"bpe": "byte-level BPE trained on the training part", "gpt2": "GPT-2's BPE"}
    parts.append(
        f"Tokenizer: {kind[tokenizer['kind']]}, {tokenizer['n_tokens']:,} tokens in use, embedding "
        f"of {tokenizer['vocab_size']:,}. Digest of the tokens: {manifest['digest'][:16]}."
    )
    return " ".join(parts)


def training_text(results: Results) -> str:
    """The training loop in words."""
    training = results.settings["training"]
    clip = training["grad_clip"]
    clipping = f"gradients clipped to a norm of {clip:g}" if clip else "no gradient clipping"
    parts = [
        f"Each run takes {counted(training['steps'], 'step')} of AdamW (betas "
        f"{listed([f'{beta:g}' for beta in training['betas']])}, weight decay "
        f"{training['weight_decay']:g}) on {counted(training['batch_size'], 'sequence')} a step, "
        f"with {clipping}.",
        f"The learning rate rises linearly over {counted(training['warmup_steps'], 'step')} and "
        f"falls along a cosine to {training['min_lr_ratio']:g} of its peak.",
        f"Precision {training['precision']}, device {training['device']}, "
        f"{counted(training['processes'], 'process', 'processes')} of "
        f"{counted(training['threads'], 'CPU thread')}.",
        "The variants of one seed see the same batches in the same order and start from the same "
        "backbone.",
        f"Validation loss is taken every {counted(training['evaluation_interval'], 'step')} on "
        f"{counted(training['evaluation_sequences'], 'window')} of held-out text, the same every "
        "time. A run whose loss or gradient norm becomes non-finite ends there, as diverged.",
    ]
    return " ".join(parts)


def connections_text(results: Results) -> str:
    """Options of the residual variants in words."""
    settings = results.settings["connections"]
    parts = []
    if set(results.variants) != {"residual"}:
        but = " but the plain residual" * ("residual" in results.variants)
        parts.append(f"Every variant{but} has {counted(settings['n_streams'], 'stream')}.")
    iterated = [results.label(v) for v in results.variants if VARIANTS[v].iterates]
    if iterated:
        iterations = counted(settings["sinkhorn_iterations"], "Sinkhorn-Knopp iteration")
        parts.append(f"{', '.join(iterated)}: {iterations}.")
    parts.append(
        f"Final LayerNorm {FINAL_NORM[settings['final_norm']]}; weight decay on static logits: "
        f"{settings['decay_logits']}; dtype of the streams: {settings['stream_dtype']}; home "
        f"streams: {settings['home_stream']}."
    )
    return " ".join(parts)


def conditions_text(results: Results) -> str:
    """What each condition changes."""
    parts = []
    for condition in results.settings["conditions"].values():
        changes = [
            f"{section}.{key} = {value}"
            for section in ("connections", "training")
            for key, value in condition[section].items()
        ]
        if condition["learning_rate_factor"] != 1:
            changes.append(f"peak learning rate times {condition['learning_rate_factor']:g}")
        names = listed([results.label(variant) for variant in condition["variants"]])
        title = condition["title"][:1].upper() + condition["title"][1:]
        parts.append(f"{title} ({names}): {', '.join(changes)}.")
    return " ".join(parts)


def _final_loss(results: Results) -> str:
    """What text the final loss is taken on, and what the knock-outs are."""
    tokens = results.settings["probe"].get("evaluation_tokens")
    split = (
        "the whole validation split"
        if tokens is None
        else f"{tokens:,} tokens of the validation split"
    )
    return (
        f"The final loss is measured on the trained model over {split}, by document. On "
        "windows of it parts are taken away: every H_res set to the identity, or to its mean over "
        "tokens, and each stream dropped before the sum; the cost is the rise of the loss."
    )


def measurement_text(results: Results) -> str:
    """Probe, stability rule and throughput in words."""
    settings = results.settings
    stability, timing = settings["stability"], settings["throughput"]
    return (
        f"{_final_loss(results)} H_res is measured on the trained models, token by token, in "
        f"{counted(settings['probe']['sequences'], 'window')} of held-out text, in operator "
        "orientation: row t holds the weights that enter output stream t. A spike is a loss or "
        f"gradient norm more than {stability['spike_sigmas']:g} standard deviations above the mean "
        f"of the {stability['spike_window']} values before it; mean and fluctuation of the "
        f"gradient norm (the standard deviation of its logarithm about a running median) are taken "
        f"over the last {counted(stability['fluctuation_window'], 'step')} after the warm-up. "
        "Throughput is measured with the device to itself: in each of "
        f"{counted(timing['rounds'], 'round')}, after {timing['warmup_rounds']} not counted, every "
        "variant takes one training step in turn."
    )


def statistics_text(results: Results) -> str:
    """How uncertainty is stated."""
    seeds = results.seeds
    level = percent_of(results.confidence)
    text = (
        f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). Intervals are two-sided "
        f"{level} Student t intervals over seeds. Variants are compared by differences "
        "within a seed, which cancel what the seed does to all variants. Diverged runs "
        "are counted and are in no mean that is shown; for a claim a diverged run is the worst "
        "outcome. The p values of the claims are corrected over a confirmatory family and a "
        "secondary one behind it, so that the chance of even one wrong verdict of a difference is "
        f"at most {percent_of(1 - results.confidence)}, and as much for verdicts of equality; "
        "intervals are not corrected. The sign-flip p value beside each test assumes no normality, "
        f"is not corrected, and is {2 / 2 ** len(seeds):.3g} at least with "
        f"{counted(len(seeds), 'seed')}. What a claim requires stands with it, the same in all "
        "studies; one that is not met makes it not reached, which says nothing of the claim. A "
        "comparison of losses requires that the better of the two variants beats the bigram model: "
        "that the other does not is then a finding. Matrices must have moved so far from their "
        f"start that their effect can show{_bars(results)}."
    )
    if len(seeds) == 1:
        text += " With a single seed there is no interval: a difference may be chance."
    return text


def _bars(results: Results) -> str:
    """The distances from the start that claims ask for, lowest and highest."""
    asked = [claim.requires.start_distance for claim in claims_of(results)]
    bars = {bar for bar in asked if bar is not None}
    return f" (by {min(bars):g} or {max(bars):g}, as the claim says)" if len(bars) > 1 else ""


def introduction(results: Results) -> str:
    """What was compared, on what, how often."""
    runs = results.runs
    changed = results.all_runs[~results.all_runs["run"].isin(runs["run"])]
    others = [results.label(variant) for variant in results.variants if variant != "residual"]
    return (
        "The same small GPT is trained with different ways of carrying information past its "
        "layers: the plain residual connection, and hyper-connections, which widen it to several "
        f"streams ({', '.join(others) or 'none in this study'}). The study belongs to a "
        "replication of mHC-lite (arXiv 2601.05732). "
        f"{counted(len(runs), 'training run')} over "
        f"{counted(len(results.corpora), 'corpus', 'corpora')} ({listed(results.corpora)}), "
        f"{counted(len(results.models), 'model size')} "
        f"({listed([results.model_label(model) for model in results.models])}) and "
        f"{counted(len(results.seeds), 'seed')}; {_diverged(runs)} diverged."
        + (
            f" {counted(len(changed), 'further run')} with changed settings; "
            f"{_diverged(changed)} of these diverged."
            if len(changed)
            else ""
        )
    )


def _diverged(runs: pd.DataFrame) -> str:
    """How many diverged, as a word or number."""
    return str(int((runs["status"] == "diverged").sum()) or "none")


def methods(results: Results) -> list[Entry]:
    """Terms and their descriptions, in the order of the report."""
    return [
        *((f"Corpus {corpus}", corpus_text(results, corpus)) for corpus in results.corpora),
        ("Training", training_text(results)),
        ("Residual variants", connections_text(results)),
        *(
            [("Changed settings", conditions_text(results))]
            if results.settings["conditions"]
            else []
        ),
        ("Measurements", measurement_text(results)),
        ("Statistics", statistics_text(results)),
    ]


def model_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of model sizes."""
    headings = [
        *("Model", "Layers", "Heads", "Width", "Context (tokens)"),
        *("Peak learning rate", "Training tokens per run"),
    ]
    rows = []
    for name in results.models:
        model: dict[str, Any] = results.settings["models"][name]
        rows.append(
            [
                name,
                *(f"{model[key]:,}" for key in ("n_layer", "n_head", "n_embd", "block_size")),
                f"{model['learning_rate']:g}",
                f"{tokens_per_run(results, name):,}",
            ]
        )
    return headings, rows
