"""What a study of this size can say: its settings beside the paper's, and the words of the report.

The paper's settings are those of the authors' code (github.com/FFTYYY/mhc-lite, commit ea19775), as
config/paper.yaml has them; its parameters are counted from the plain residual of these sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mhclite.evidence.findings import claims_of
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.report_methods import Entry, tokens_per_run
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE
from mhclite.evidence.table_format import significant

PAPER_MODELS = {  # parameters, layers, width, peak learning rate
    "S": (45_160_960, 6, 512, 1.0e-3),
    "M": (124_373_760, 12, 768, 6.0e-4),
    "L": (354_599_936, 24, 1024, 3.0e-4),
}
PAPER_STEPS, PAPER_WARMUP = 10_000, 200
PAPER_BATCH, PAPER_CONTEXT = 128, 1024
PAPER_VOCABULARY = 50_304
PAPER_PRECISION, PAPER_CLIP, PAPER_SEEDS = "bf16", 1.0, 1

GLOSSARY: tuple[Entry, ...] = (
    ("Stream", "one of the copies of a token's state that run past the layers side by side"),
    ("H_res", "the matrix that mixes the streams in each sub-layer (attention or MLP)"),
    (
        "Doubly stochastic",
        "no entry is negative, and every row and column sums to 1: mixing then neither amplifies "
        "nor loses the mean of the streams",
    ),
    (
        "Sinkhorn-Knopp",
        "rows and columns are normalised in turn; after a finite number of turns one of the two "
        "is only nearly right",
    ),
    (
        "log(1/ν)",
        "how uneven an input of Sinkhorn-Knopp is: ν is its smallest entry over its largest; above "
        "about 30 a fixed number of iterations may not balance it",
    ),
    ("H_res = I", "the identity in place of the mixing matrix: streams are not mixed"),
    (
        "Composite gain",
        "the largest absolute row sum of the product of all H_res: how much a stream can grow on "
        "its way through the model",
    ),
    (
        "Sums off",
        "how far row and column sums are from 1, the largest over tokens, of a single H_res or of "
        "the product over depth",
    ),
    (
        "Distance from the start",
        "how far H_res has moved in training: Frobenius norm of the difference to the matrix it "
        "began with, mean over tokens and sub-layers",
    ),
    (
        "Final norm per stream, after the sum",
        "where the last LayerNorm stands: on each stream before they are summed, as in the "
        "authors' code, or on the sum, as the plain residual has it",
    ),
    (
        "Operator orientation",
        "row t of H_res holds the weights with which the streams enter stream t",
    ),
    ("Home stream", "the stream from which a sub-layer reads, and to which it writes, at first"),
    ("Fluctuation", "how much the gradient norm varies from step to step, on a logarithmic scale"),
    (
        "Nats per token",
        "the loss: mean of minus the logarithm of the probability given to the next token",
    ),
    (
        "±, [a, b]",
        "a Student t interval over seeds: the same runs, repeated with other random numbers",
    ),
    (
        "Supported, contradicted",
        "the mean lies on the claim's side, or on the other, with a corrected p value that is "
        "small enough: see Statistics",
    ),
    (
        "Practically equal",
        "the difference is shown to be smaller than the smallest that matters "
        f"({METRICS['validation_loss'].equal:g} nats of loss); a claim that one is no worse has a "
        "margin of its own",
    ),
    ("Inconclusive", "the study can neither tell a difference nor exclude one"),
    (
        "Not reached",
        "the study falls short of what the question needs: its numbers are given, and are no "
        "answer to it",
    ),
    ("Not tested", "the study lacks a variant, a setting or a measurement that the claim is about"),
    ("By construction", "follows from the formula; it is shown whether the code keeps to it"),
    (
        "Main claims, confirmatory",
        "what the paper rests on: p values are corrected among them first, and for the others "
        "behind them",
    ),
    (
        "For, against, equal, open",
        "what one model size shows by itself, without correction for the number of claims; the "
        "verdict is corrected",
    ),
)


@dataclass(frozen=True)
class Setting:
    """A setting here and in the paper."""

    name: str
    here: str
    paper: str
    meaning: str


def _range(values: Sequence[float], digits: int = 2) -> str:
    """The different values, from the smallest to the largest."""
    texts = list(dict.fromkeys(_number(value, digits) for value in sorted(values)))
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def _number(value: float, digits: int) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million")):
        if value >= size:
            return f"{significant(value / size, 3)}{unit}"
    return f"{value:,}" if isinstance(value, int) else significant(value, digits)


def parameters_of(results: Results, model: str) -> float:
    """Parameters of the plain residual, or of the smallest variant where it is not there."""
    runs = results.runs[results.runs["model"] == model]
    own = runs[runs["variant"] == BASELINE]
    return int((runs if own.empty else own)["parameters"].min())


def _fewest_tokens(results: Results) -> str:
    """What the claims ask for, where they do."""
    asked = [claim.requires.tokens_per_parameter for claim in claims_of(results)]
    least = min((number for number in asked if number is not None), default=None)
    return "" if least is None else f"; below {least:g} claims on losses are not reached"


def settings(results: Results) -> list[Setting]:
    """The settings that decide what can be asked, beside the paper's."""
    training = results.settings["training"]
    models = [results.settings["models"][name] for name in results.models]
    parameters = [parameters_of(results, name) for name in results.models]
    tokens = [tokens_per_run(results, name) for name in results.models]
    batches = [training["batch_size"] * model["block_size"] for model in models]
    theirs, paper_layers, _, paper_rates = zip(*PAPER_MODELS.values(), strict=True)
    paper_tokens = PAPER_STEPS * PAPER_BATCH * PAPER_CONTEXT
    layers = [model["n_layer"] for model in models]
    clip = training["grad_clip"]
    return [
        Setting(
            "Parameters",
            _range(parameters),
            _range(theirs),
            "a difference of loss need not have the same size, or sign, at another size",
        ),
        Setting(
            "Layers",
            ", ".join(map(str, layers)),
            ", ".join(map(str, paper_layers)),
            "gain and errors of the sums of a product grow with its factors: "
            + (
                "as deep as the paper's, they can be compared"
                if max(layers) >= max(paper_layers)
                else "they are smaller here than at the paper's 24 layers"
            ),
        ),
        Setting(
            "Steps of training",
            f"{training['steps']:,}",
            f"{PAPER_STEPS:,}",
            "mixing matrices leave their start step by step, whatever the number of tokens",
        ),
        Setting(
            "Tokens a step",
            _range(batches),
            f"{PAPER_BATCH * PAPER_CONTEXT:,}",
            "small batches make gradients noisy, which hides differences of their fluctuation",
        ),
        Setting(
            "Tokens per parameter",
            _range([t / p for t, p in zip(tokens, parameters, strict=True)]),
            _range([paper_tokens / count for count in theirs]),
            "with few tokens a parameter models have hardly learned" + _fewest_tokens(results),
        ),
        Setting(
            "Share of warm-up",
            f"{100 * training['warmup_steps'] / training['steps']:.3g} %",
            f"{100 * PAPER_WARMUP / PAPER_STEPS:.3g} %",
            "a long warm-up hides the instability of the first steps",
        ),
        Setting(
            "Peak learning rate",
            _range([model["learning_rate"] for model in models], 1),
            _range(paper_rates, 1),
            "one rate for all variants, as theirs: a variant that likes another looks worse",
        ),
        Setting(
            "Context (tokens)",
            _range([model["block_size"] for model in models]),
            f"{PAPER_CONTEXT:,}",
            "nothing that needs longer contexts is learned, or tested",
        ),
        Setting(
            "Vocabulary",
            f"{results.settings['tokenizer']['vocab_size']:,}",
            f"{PAPER_VOCABULARY:,}",
            "losses of different vocabularies cannot be compared; bits per byte can",
        ),
        Setting(
            "Precision",
            training["precision"],
            PAPER_PRECISION,
            "bf16 rounds the mixed streams, and not the plain residual's: with fp32 that "
            "disadvantage is not there",
        ),
        Setting(
            "Gradients clipped at",
            f"{clip:g}" if clip else "not clipped",
            f"{PAPER_CLIP:g}",
            "clipping hides the growth of gradients that the papers call instability",
        ),
        Setting(
            "Seeds",
            str(len(results.seeds)),
            str(PAPER_SEEDS),
            "one seed cannot tell a difference from chance",
        ),
    ]
