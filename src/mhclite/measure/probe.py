"""The mixing probe: H_res of a trained run on held-out text.

Everything is per token and never averaged over tokens before the statistic is taken. H_res is in
operator orientation (row t: the weights that enter output stream t): the *column sums* of the
papers' figures are the *row sums* here. The model runs in float32 whatever it was trained in;
products over depth are taken in float64.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mhclite.arguments import file_path, folder_path, positive_int
from mhclite.files import write_json
from mhclite.measure.files import SCHEMA, Mixing, Probe, ProductSums, SingleSums, SinkhornInput
from mhclite.measure.trained import (
    add_text_arguments,
    held_out,
    load_trained,
    read_trained,
    windows_of,
)
from mhclite.model import GPT
from mhclite.records import to_json

QUANTILE_LEVELS: list[float] = [0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1]
# log(1/nu) of the Sinkhorn inputs: 20 iterations do not mend spreads above about 30 (1/nu = 1e13).
LOG_INVERSE_NU_EDGES: list[float] = [*range(0, 81), float("inf")]
LOG_INVERSE_NU_LIMIT = 30
CHUNK = 8  # sequences at a time

FloatArray = npt.NDArray[np.float64]

log = logging.getLogger(__name__)


class MixingStatistics:
    """Gathers H_res of every sub-layer, chunk by chunk of tokens."""

    def __init__(self, n_sublayers: int) -> None:
        self.single_rows: list[list[FloatArray]] = [[] for _ in range(n_sublayers)]
        self.single_columns: list[list[FloatArray]] = [[] for _ in range(n_sublayers)]
        self.product_rows: list[list[FloatArray]] = [[] for _ in range(n_sublayers)]
        self.product_columns: list[list[FloatArray]] = [[] for _ in range(n_sublayers)]
        self.gain_forward: list[list[FloatArray]] = [[] for _ in range(n_sublayers)]
        self.gain_backward: list[list[FloatArray]] = [[] for _ in range(n_sublayers)]
        self.distance: list[list[FloatArray]] = [[] for _ in range(n_sublayers)]

    def add(self, matrices: list[FloatArray]) -> None:
        """H_res of all sub-layers in order for some tokens, (tokens, n, n) each."""
        identity = np.eye(matrices[0].shape[-1])
        product = np.broadcast_to(identity, matrices[0].shape)
        for layer, H in enumerate(matrices):
            product = H @ product
            self.single_rows[layer].append(H.sum(-1))
            self.single_columns[layer].append(H.sum(-2))
            self.product_rows[layer].append(product.sum(-1))
            self.product_columns[layer].append(product.sum(-2))
            self.gain_forward[layer].append(np.abs(product).sum(-1).max(-1))
            self.gain_backward[layer].append(np.abs(product).sum(-2).max(-1))
            self.distance[layer].append(np.linalg.norm(H - identity, axis=(-2, -1)))

    def sums(self) -> tuple[SingleSums, ProductSums]:
        """What was gathered, as it stands in a probe file."""

        def quantiles(chunks: list[FloatArray]) -> list[float]:
            values: list[float] = np.quantile(np.concatenate(chunks), QUANTILE_LEVELS).tolist()
            return values

        def deviation(layers: list[list[FloatArray]]) -> float:
            return float(max(np.abs(chunk - 1).max() for layer in layers for chunk in layer))

        def flat(layers: list[list[FloatArray]]) -> list[FloatArray]:
            return [chunk.ravel() for layer in layers for chunk in layer]

        def maxima(layers: list[list[FloatArray]]) -> list[float]:
            return [float(max(chunk.max() for chunk in layer)) for layer in layers]

        single = SingleSums(
            row_sum=[quantiles(layer) for layer in self.single_rows],
            column_sum=[quantiles(layer) for layer in self.single_columns],
            row_sum_all=quantiles(flat(self.single_rows)),
            column_sum_all=quantiles(flat(self.single_columns)),
            max_deviation=deviation(self.single_rows),
        )
        product = ProductSums(
            row_sum=[quantiles(layer) for layer in self.product_rows],
            column_sum=[quantiles(layer) for layer in self.product_columns],
            max_deviation=deviation(self.product_rows[-1:]),
            gain_forward=means(self.gain_forward),
            gain_backward=means(self.gain_backward),
            gain_forward_max=maxima(self.gain_forward),
            gain_backward_max=maxima(self.gain_backward),
        )
        return single, product


def means(layers: list[list[FloatArray]]) -> list[float]:
    """Mean over the tokens of all chunks, one per sub-layer."""
    return [float(np.concatenate(layer).mean()) for layer in layers]


def log_inverse_nu(logits: FloatArray) -> FloatArray:
    """log(1/nu) of Sinkhorn inputs exp(logits), nu their smallest over their largest entry.

    Args:
        logits: (tokens, n, n).

    Returns:
        (tokens,), at least 0.
    """
    spread: FloatArray = logits.max((-2, -1)) - logits.min((-2, -1))
    return spread


@torch.no_grad()
def probe(model: GPT, windows: npt.NDArray[np.int64], device: torch.device) -> Mixing:
    """Mixing statistics of a model on token windows.

    Args:
        model: in evaluation mode on `device`.
        windows: (sequences, T) token ids.
        device: where to compute.
    """
    connections = list(model.connections())
    statistics = MixingStatistics(len(connections))
    spreads: list[FloatArray] = []
    for first in range(0, len(windows), CHUNK):
        x = model.embed(torch.from_numpy(windows[first : first + CHUNK]).to(device))
        matrices = []
        for connection, sublayer in zip(connections, model.sublayers):
            H_res = connection.coefficients(x).H_res
            matrices.append(H_res.flatten(0, 1).double().cpu().numpy())
            logits = connection.sinkhorn_input(x)
            if logits is not None:
                spreads.append(log_inverse_nu(logits.flatten(0, 1).double().cpu().numpy()))
            x = sublayer(x)
        statistics.add(matrices)
    single, product = statistics.sums()
    return Mixing(
        sequences=len(windows),
        tokens=windows.size,
        n_sublayers=len(connections),
        quantile_levels=QUANTILE_LEVELS,
        single=single,
        product=product,
        identity_distance=means(statistics.distance),
        sinkhorn_input=sinkhorn_input(np.concatenate(spreads)) if spreads else None,
    )


def sinkhorn_input(log_inverse_nu: FloatArray) -> SinkhornInput:
    """Histogram of log(1/nu), (matrices,)."""
    counts, _ = np.histogram(log_inverse_nu, LOG_INVERSE_NU_EDGES)
    return SinkhornInput(
        bin_edges=LOG_INVERSE_NU_EDGES[:-1],
        counts=counts.tolist(),
        share_above_30=float((log_inverse_nu > LOG_INVERSE_NU_LIMIT).mean()),
        max=float(log_inverse_nu.max()),
    )


def probe_run(folder: Path, text: Path, sequences: int) -> Probe:
    """Probe a finished run; runs without anything to probe say why in `skipped`.

    Args:
        folder: run folder.
        text: folder of a prepared corpus, or a file of raw tokens.
        sequences: windows of the validation split, or of the file.
    """
    trained = read_trained(folder)
    skipped, mixing = None, None
    if not trained.has_weights:
        skipped = "the run diverged: it has no final weights"
    elif trained.connection.n_streams == 1:
        skipped = "one stream: there is nothing to mix"
    else:
        model, device = load_trained(trained)
        split = held_out(text, trained.model.vocab_size)
        mixing = probe(model, windows_of(split, sequences, trained.model.block_size), device)
    variant, n = trained.connection.variant, trained.connection.n_streams
    return Probe(SCHEMA, folder.name, variant, n, skipped, mixing)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite probe`."""
    parser.add_argument("--run", required=True, type=folder_path, help="run folder")
    add_text_arguments(parser)
    parser.add_argument("--sequences", required=True, type=positive_int, help="validation windows")
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads")
    parser.add_argument("--out", required=True, type=file_path, help="probe file to write")


def run(args: argparse.Namespace) -> None:
    """Probe the run and write the file."""
    torch.set_num_threads(args.threads)
    result = probe_run(args.run, args.corpus or args.tokens, args.sequences)
    write_json(args.out, to_json(result))
    log.info("%s: %s", args.out, result.skipped or "H_res measured")
