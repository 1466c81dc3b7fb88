"""What each figure and table shows, said once for both reports.

`python -m mhclite.evidence.captions workflow/report` writes the captions of Snakemake's report;
`render` gives the same text to report.html. Both fill in the study's numbers from its settings, of
which Snakemake knows only those that the study file names: the rest are the defaults of
`mhclite.study.settings`.

The texts are plain sentences: reStructuredText without any markup.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, StrictUndefined

from mhclite.files import write_text
from mhclite.study.settings import Sinkhorn, Study


def _setting(group: str, name: str) -> str:
    """A setting of the study file as Jinja2, with its default."""
    default = getattr(Study.model_fields[group].default, name)
    return f'snakemake.config.get("{group}", {{}}).get("{name}", {json.dumps(default)})'


# Variable of the texts below -> its value as Jinja2. `snakemake.config` is the study file.
_SEEDS = 'snakemake.config["seeds"] | length'
_VARIABLES = {
    "study": 'snakemake.config["name"]',
    "variants": 'snakemake.config["variants"] | length',
    "seeds": f'{_SEEDS} ~ " seed" ~ ("s" if {_SEEDS} != 1 else "")',
    "level": f'"%.6g" | format(100 * {_setting("statistics", "confidence")})',
    "window": _setting("stability", "fluctuation_window"),
    "rounds": _setting("throughput", "rounds"),
    "implementation": _setting("connections", "implementation"),
    "matrices": f'snakemake.config["sinkhorn"].get("matrices", {Sinkhorn().matrices})',
}


CLAIMS, LOSS, STABILITY, MIXING, COST, CHANGES = (
    "0 Claims",
    "1 Loss",
    "2 Stability",
    "3 Mixing matrices",
    "4 Cost",
    "5 Changed settings",
)


@dataclass(frozen=True)
class Caption:
    """A figure's or table's title, its caption, and for a figure what is drawn (alt text)."""

    title: str
    text: str
    alt: str = ""
    heading: str = ""  # in Snakemake's report
    needs: str = ""  # of `NEEDS`: without it there is nothing to show


# What a study (`Study.model_dump`) must have for some figures and tables.
NEEDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "": lambda study: True,
    "sinkhorn": lambda study: bool(study["sinkhorn"]),
    "conditions": lambda study: bool(study["conditions"]),
    "rates": lambda study: any(
        condition["learning_rate_factor"] != 1 for condition in study["conditions"].values()
    ),
    "streams": lambda study: any(
        "n_streams" in condition["connections"] for condition in study["conditions"].values()
    ),
}


def shown(captions: dict[str, Caption], study: dict[str, Any]) -> dict[str, Caption]:
    """The captions of what a study (`Study.model_dump`) has to show."""
    return {name: caption for name, caption in captions.items() if NEEDS[caption.needs](study)}


FIGURES = {
    "forest": Caption(
        "Paired differences of final losses, with verdicts",
        "Each row is a claim that compares final validation losses: the first variant's minus the "
        "second's of the same seed. Marker and bar: mean with its {{ level }} % Student t interval "
        "over {{ seeds }}; faint points: each seed; dotted: the margin of a claim of no worse. "
        "Filled markers and black verdicts: decided, after Holm's correction over all claims; "
        "hollow and grey: inconclusive. Source: runs.csv.",
        "Rows of points with horizontal error bars around a line at zero, a panel for each depth.",
        heading=CLAIMS,
    ),
    "loss_vs_depth": Caption(
        "Final validation loss against depth",
        "Validation loss at the end of training, by depth. Left: the loss itself, with one faint "
        "point a seed ({{ seeds }}), their mean, and the {{ level }} % Student t interval of that "
        "mean. Right: the loss minus that of the plain residual of the same seed (same batches, "
        "same initial backbone), with the t interval of the paired difference; below 0 is better. "
        "Runs that diverged have no final loss and are left out. Source: runs.csv.",
        "Points with error bars, a group for each depth, a colour and marker for each variant; on "
        "the right the same as differences around a line at zero, which is the plain residual.",
        heading=LOSS,
    ),
    "validation_loss": Caption(
        "Validation loss over training",
        "Top: loss on held-out text; the dotted lines are counting models of the same text. "
        "Bottom: the loss minus that of the plain residual of the same seed at the same step, from "
        "a quarter of training on. Bold: mean over the completed runs of {{ seeds }}; thin: each "
        "seed; a cross is the last evaluation before a run diverged. No interval is drawn: that of "
        "the last step is in the figure of final loss against depth. Source: curves.csv.",
        "Falling curves that almost coincide; below them the differences to the plain residual, "
        "one colour and line style for each variant.",
        heading=LOSS,
    ),
    "gradient_norm": Caption(
        "Gradient norm and its fluctuation",
        "Gradient norm before clipping over the last {{ window }} steps. Left: its mean in that "
        "window with a band of one standard deviation within the window, as in the paper's Figure "
        "2; the band is not an interval over seeds. Right: that standard deviation alone, the "
        "fluctuation. Bold: mean over the completed runs of {{ seeds }}; thin: each seed; a cross "
        "is where a run diverged. Source: curves.csv.",
        "Curves with bands on a logarithmic axis, one colour and line style for each variant; "
        "beside them the width of the bands as curves of their own.",
        heading=STABILITY,
    ),
    "throughput": Caption(
        "Training throughput",
        "Training tokens per second, measured alone on the device. Bar: median of {{ rounds }} "
        "timed rounds; whiskers: first and third quartile; dots: the rounds. In each round every "
        "variant takes one training step; the number at a bar is the throughput relative to the "
        "plain residual in the same round (median). The variants are computed by the "
        "{{ implementation }} implementation; a long dash across a bar is another one, timed in "
        "the same rounds. Source: the files in throughput/.",
        "Horizontal bars, one for each variant, a panel for each depth.",
        heading=COST,
    ),
    "row_sums": Caption(
        "Row sums of the mixing matrices",
        "How far the row sums of H_res lie from 1, per token of held-out text: all single matrices "
        "(left), and their product over the whole depth (right). Operator orientation: a row holds "
        "the weights that enter one output stream, so these are the column sums of the paper's "
        "Figure 3. The axis is logarithmic to both sides, and linear in the grey band. Box, median "
        "and whiskers are medians over {{ seeds }} of each seed's quantiles; the dots are the "
        "extremes over all seeds. Source: the files in probes/.",
        "Horizontal box plots around a line at exactly one, a row for each variant.",
        heading=MIXING,
    ),
    "sinkhorn_inputs": Caption(
        "Inputs of the Sinkhorn-Knopp iterations",
        "log(1/ν) of the matrices that mHC gives to the Sinkhorn-Knopp iterations on held-out "
        "text, where ν is a matrix's smallest entry over its largest: all tokens and sub-layers of "
        "{{ seeds }} together, as in the paper's Figure 4. The dashed line at 30 (1/ν of about "
        "1e13) is the paper's threshold, beyond which 20 iterations leave a gap. Source: the files "
        "in probes/.",
        "Histogram with a dashed line at 30; the share above it is written beside the line.",
        heading=MIXING,
    ),
    "composite_gain": Caption(
        "Composite gain over depth",
        "Gain of the product of the first H_res matrices: the largest absolute row sum (left, "
        "signals going forward) and column sum (right, gradients going back) of the product, mean "
        "over the tokens of held-out text. Operator orientation. 1 keeps the size of a signal. "
        "Bold: mean over {{ seeds }}; thin: each seed. Source: the files in probes/.",
        "Curves over the number of matrices multiplied on a logarithmic axis, with a line at one.",
        heading=STABILITY,
    ),
    "identity_distance": Caption(
        "Distance of the mixing matrices from identity",
        "Frobenius norm of H_res minus the identity in each sub-layer of the trained models, mean "
        "over the tokens of held-out text; 0 means that the streams are not mixed. Sub-layers "
        "alternate between attention and MLP, from the input to the output. Bold: mean over "
        "{{ seeds }}; thin: each seed. Source: the files in probes/.",
        "Curves over the sub-layers on a logarithmic axis, one colour and line style a variant.",
        heading=MIXING,
    ),
    "loss_against_time": Caption(
        "Validation loss against training time",
        "What a user pays: validation loss (mean over the completed runs of {{ seeds }}) against "
        "the time that so many tokens take at the measured median throughput; the marker is the "
        "end of training. The throughput was measured alone on the device, with each variant "
        "computed by the {{ implementation }} implementation: another one moves its curve along "
        "the axis. Source: curves.csv and throughput/.",
        "Falling curves over seconds, one colour and line style for each variant; those of costly "
        "variants reach further right.",
        heading=COST,
    ),
    "token_efficiency": Caption(
        "Tokens to reach the plain residual's final loss",
        "Share of the training tokens after which a run's validation loss is first as low as that "
        "of the plain residual of the same seed at the end, interpolated between evaluations. "
        "Marker and bar: mean with its {{ level }} % Student t interval over {{ seeds }}; faint "
        "points: each seed. The learning rate falls to its minimum only at the end, so a run that "
        "had been planned shorter would need fewer. Source: curves.csv.",
        "Points with horizontal error bars, a row for each variant, and a line at 100 percent.",
        heading=LOSS,
    ),
    "stream_similarity": Caption(
        "Similarity of the streams over training",
        "Mean cosine between the residual streams after each sub-layer, over training, on held-out "
        "text, for the deepest model; mean over the completed runs of {{ seeds }}. At 1 the "
        "streams are copies of each other. Source: the files mixing.jsonl of the runs.",
        "A panel for each variant with one line for each sub-layer, coloured by depth.",
        heading=MIXING,
    ),
    "mixing_over_training": Caption(
        "Distance of the mixing matrices from identity over training",
        "Frobenius norm of H_res minus the identity in each sub-layer, over training, mean over "
        "tokens of held-out text, for the deepest model; mean over the completed runs of "
        "{{ seeds }}. Variants whose H_res is exactly the identity are left out. Source: the files "
        "mixing.jsonl of the runs.",
        "A panel for each variant with one line for each sub-layer on a logarithmic axis.",
        heading=MIXING,
    ),
    "stress_rates": Caption(
        "Final loss against the learning rate",
        "Final validation loss at multiples of the study's learning rate: lines are means over "
        "{{ seeds }}, points are runs, crosses are runs that failed (they diverged, or ended far "
        "above the run of the same seed at the study's own rate). The dotted line is the unigram "
        "model; runs far above it are drawn at the upper end. Source: runs.csv.",
        "Rising curves over the learning rate, one colour, marker and line style for each variant.",
        heading=STABILITY,
        needs="rates",
    ),
    "changes": Caption(
        "What each change of settings does",
        "Final validation loss with one setting changed minus that without the change, of the same "
        "variant and seed. Marker and bar: mean with its {{ level }} % Student t interval over "
        "{{ seeds }}; faint points: each seed. Where one change moves the variants differently, a "
        "difference between variants is partly the setting. Source: runs.csv.",
        "Points with horizontal error bars around a line at zero, a group for each change, a "
        "colour and marker for each variant.",
        heading=CHANGES,
        needs="conditions",
    ),
    "sinkhorn_error": Caption(
        "Error of the Sinkhorn-Knopp iterations",
        "How far the sums on the inexact side lie from 1 after Sinkhorn-Knopp in float32 and the "
        "log domain, for {{ matrices }} random 4 by 4 matrices of each depth, whose logits are "
        "uniform over a range. Left: single matrices, against "
        "iterations. Right: products of independent matrices after 20 iterations each. Solid: "
        "median, dotted: largest; the axis ends at float32's rounding. Source: sinkhorn.json.",
        "Falling curves on logarithmic axes, one colour for each logit range; on the right curves "
        "that rise with the number of matrices.",
        heading=MIXING,
        needs="sinkhorn",
    ),
}

TABLES = {
    "claims": Caption(
        "What this study says of each claim",
        "Verdict for every claim of config/claims.yaml over {{ seeds }}: supported, contradicted "
        "or inconclusive, with effect, {{ level }} % Student t interval, Holm-corrected and "
        "sign-flip p values. Source: runs.csv, the files in probes/ and throughput/.",
        heading=CLAIMS,
    ),
    "paper": Caption(
        "The papers' own figures beside ours",
        "Figures that the papers are known to give, with how they are known, and what this study "
        "measures for the same quantity over {{ seeds }}. Source: config/claims.yaml and runs.csv.",
        heading=CLAIMS,
    ),
    "results": Caption(
        "Validation loss at the end of training",
        "Final validation loss and bits per byte by corpus, depth and variant: mean over the "
        "completed runs of {{ seeds }} with the half-width of the {{ level }} % Student t "
        "interval, and the difference to the plain residual paired by seed. Unigram and bigram "
        "are counting models of the same text. Source: runs.csv.",
        heading=LOSS,
    ),
    "stability": Caption(
        "Stability of training and of the mixing over depth",
        "Spikes of loss and gradient norm, diverged runs, the gradient norm over the last "
        "{{ window }} steps, and what H_res (operator orientation) does on held-out text, over "
        "{{ seeds }}. Source: runs.csv.",
        heading=STABILITY,
    ),
    "parameters": Caption(
        "Parameters, arithmetic and speed",
        "Parameters, FLOPs per token, throughput, step time relative to the plain residual (with "
        "the study's implementation and with others) and peak memory of every variant; medians and "
        "quartiles over {{ rounds }} timed rounds. "
        "Source: the files in throughput/.",
        heading=COST,
    ),
    "conditions": Caption(
        "What each change of settings does",
        "Final validation loss with one setting changed, against the same variant and seed "
        "without the change, and the differences between variants before and after it; mean over "
        "{{ seeds }} with the half-width of the {{ level }} % Student t interval. Source: "
        "runs.csv.",
        heading=CHANGES,
        needs="conditions",
    ),
    "stress": Caption(
        "Learning rates that hold and that fail",
        "For each variant and depth the largest multiple of the learning rate that holds over "
        "{{ seeds }}, failures and spikes at each, and when runs fail. Source: runs.csv and the "
        "files metrics.jsonl of the runs.",
        heading=STABILITY,
        needs="rates",
    ),
    "warnings": Caption(
        "What warned before a failure",
        "Signals before the failure of a run: how often, how early, and how often in vain, over "
        "{{ seeds }}. Source: stability.json and the files metrics.jsonl and mixing.jsonl.",
        heading=STABILITY,
        needs="rates",
    ),
    "streams": Caption(
        "Numbers of streams",
        "Final validation loss, parameters, memory and speed of the variants with other numbers of "
        "streams; loss over {{ seeds }} with the half-width of the {{ level }} % Student t "
        "interval. Source: runs.csv and throughput/.",
        heading=CHANGES,
        needs="streams",
    ),
    "sinkhorn": Caption(
        "What Sinkhorn-Knopp leaves after so many iterations",
        "Median and largest deviation of the inexact sums from 1 by logit range, iterations, "
        "precision and domain, single and multiplied. Source: sinkhorn.json.",
        heading=MIXING,
        needs="sinkhorn",
    ),
    "sinkhorn_example": Caption(
        "The paper's 3 × 3 example",
        "Column sums of the example of arXiv 2601.05732 after so many iterations. Source: "
        "sinkhorn.json.",
        heading=MIXING,
        needs="sinkhorn",
    ),
}

REPORT = Caption(
    "The whole study on one page",
    "Results, figures with captions, methods, hardware, versions, and how to make each number "
    "again. The page is one file that needs neither network nor the other files.",
)

STUDY = Caption(
    "The study",
    "A replication of mHC-lite (arXiv 2601.05732). The study {{ study }} trains a small GPT with "
    "each of {{ variants }} kinds of residual connection, {{ seeds }} a kind, corpus and depth, "
    "and compares loss, stability, mixing matrices and cost. The first entry, the whole study on "
    "one page, is the report to read; the others are its figures and tables one by one.",
)

# Caption by file name, without .rst, of Snakemake's report. `study` is the description on its
# front page.
ALL = {**FIGURES, **TABLES, "report": REPORT, "study": STUDY}


def template(caption: Caption) -> str:
    """The caption as Snakemake reads it: Jinja2 that gives reStructuredText."""
    used = [name for name in _VARIABLES if f"{{{{ {name} }}}}" in caption.text]
    head = "".join(f"{{%- set {name} = {_VARIABLES[name]} -%}}\n" for name in used)
    return f"{head}{textwrap.fill(caption.text, 99, break_on_hyphens=False)}\n"


def render(caption: Caption, settings: dict[str, Any]) -> str:
    """The caption with a study's numbers, as one line of plain text."""
    environment = Environment(undefined=StrictUndefined)
    text = environment.from_string(template(caption)).render(
        snakemake=SimpleNamespace(config=settings)
    )
    return " ".join(text.split())


def files() -> dict[str, str]:
    """File name -> content, of the captions of Snakemake's report."""
    return {f"{name}.rst": template(caption) for name, caption in ALL.items()}


if __name__ == "__main__":
    for name, content in files().items():
        write_text(Path(sys.argv[1]) / name, content)
