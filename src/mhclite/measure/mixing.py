"""What H_res does in a trained model, on held-out text.

Everything is per token and never averaged over tokens before the statistic is taken, but for what
is called a mean. H_res is in operator orientation (row t: the weights that enter output stream t):
the *column sums* of the papers' figures are the *row sums* here. Products over depth are taken in
float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mhclite.connections.base import Connection
from mhclite.measure.files import (
    Deviation,
    Geometry,
    Mixing,
    ProductSums,
    SingleSums,
    SinkhornInput,
)
from mhclite.model import GPT

QUANTILE_LEVELS: list[float] = [0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1]
# log(1/nu) of the Sinkhorn inputs: 20 iterations do not mend spreads above about 30 (1/nu = 1e13).
LOG_INVERSE_NU_EDGES: list[float] = [*range(0, 81), float("inf")]
LOG_INVERSE_NU_LIMIT = 30
CHUNK_TOKENS = 2048  # at a time, in whole sequences

FloatArray = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]


def chunks(windows: Tokens) -> Iterator[Tokens]:
    """The rows (sequences, length) in order, some at a time."""
    size = max(1, CHUNK_TOKENS // windows.shape[1])
    for first in range(0, len(windows), size):
        yield windows[first : first + size]


class Gathered:
    """One kind of value, (tokens, ...) per sub-layer, chunk by chunk."""

    def __init__(self, n_sublayers: int) -> None:
        self.layers: list[list[FloatArray]] = [[] for _ in range(n_sublayers)]

    def add(self, layer: int, values: FloatArray) -> None:
        """Values of some tokens."""
        self.layers[layer].append(values)

    def of(self, layer: int) -> FloatArray:
        """All values of a sub-layer, (tokens, ...)."""
        return np.concatenate(self.layers[layer])

    def all(self) -> FloatArray:
        """Those of all sub-layers together, flat."""
        return np.concatenate([chunk.ravel() for layer in self.layers for chunk in layer])

    def means(self) -> list[float]:
        """Mean per sub-layer."""
        return [float(self.of(layer).mean()) for layer in range(len(self.layers))]

    def maxima(self) -> list[float]:
        """Largest value per sub-layer."""
        return [float(self.of(layer).max()) for layer in range(len(self.layers))]

    def quantiles(self) -> list[list[float]]:
        """Quantiles per sub-layer."""
        return [quantiles(self.of(layer)) for layer in range(len(self.layers))]


def quantiles(values: FloatArray) -> list[float]:
    """At `QUANTILE_LEVELS`."""
    found: list[float] = np.quantile(values, QUANTILE_LEVELS).tolist()
    return found


def deviation(row_sums: FloatArray) -> Deviation:
    """Of row sums from 1."""
    distance = np.abs(row_sums - 1)
    return Deviation(float(distance.mean()), float(np.quantile(distance, 0.99)))


def orthogonality(H: FloatArray) -> FloatArray:
    """Frobenius norm of H^T H - I for matrices (tokens, n, n): (tokens,)."""
    gram = H.swapaxes(-2, -1) @ H
    norm: FloatArray = np.linalg.norm(gram - np.eye(H.shape[-1]), axis=(-2, -1))
    return norm


def effective_rank(x: Tensor) -> FloatArray:
    """exp of the entropy of the singular values over their sum (Roy and Vetterli 2007).

    Args:
        x: (B, T, n, C): of each token's streams.

    Returns:
        (B * T,), from 1 (all streams are multiples of one) to n.
    """
    streams = x.flatten(0, 1).double()
    squares = torch.linalg.eigvalsh(streams @ streams.mT).clamp_min(0)
    share = squares.sqrt() / squares.sqrt().sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp().cpu().numpy()


class MixingStatistics:
    """Gathers H_res of every sub-layer, chunk by chunk of tokens."""

    def __init__(self, n_sublayers: int) -> None:
        self.single_rows = Gathered(n_sublayers)
        self.single_columns = Gathered(n_sublayers)
        self.product_rows = Gathered(n_sublayers)
        self.product_columns = Gathered(n_sublayers)
        self.gain_forward = Gathered(n_sublayers)
        self.gain_backward = Gathered(n_sublayers)
        self.identity_distance = Gathered(n_sublayers)
        self.start_distance = Gathered(n_sublayers)
        self.orthogonality = Gathered(n_sublayers)
        self.product_orthogonality = Gathered(n_sublayers)
        self.singular_values = Gathered(n_sublayers)
        self.effective_rank = Gathered(n_sublayers)
        self.matrices = Gathered(n_sublayers)
        self.products = Gathered(1)  # over the whole depth

    def add(self, matrices: list[FloatArray], start: list[FloatArray]) -> None:
        """H_res of all sub-layers in order for some tokens, (tokens, n, n) each.

        Args:
            matrices: of the trained model.
            start: of the same connections before training, for the same streams.
        """
        identity = np.eye(matrices[0].shape[-1])
        product = np.broadcast_to(identity, matrices[0].shape)
        for layer, (H, untrained) in enumerate(zip(matrices, start, strict=True)):
            product = H @ product
            self.single_rows.add(layer, H.sum(-1))
            self.single_columns.add(layer, H.sum(-2))
            self.product_rows.add(layer, product.sum(-1))
            self.product_columns.add(layer, product.sum(-2))
            self.gain_forward.add(layer, np.abs(product).sum(-1).max(-1))
            self.gain_backward.add(layer, np.abs(product).sum(-2).max(-1))
            self.identity_distance.add(layer, np.linalg.norm(H - identity, axis=(-2, -1)))
            self.start_distance.add(layer, np.linalg.norm(H - untrained, axis=(-2, -1)))
            self.orthogonality.add(layer, orthogonality(H))
            self.product_orthogonality.add(layer, orthogonality(product))
            singular: FloatArray = np.linalg.svd(product, compute_uv=False).astype(np.float64)
            self.singular_values.add(layer, singular)
            self.matrices.add(layer, H)
        self.products.add(0, product)

    def single(self) -> SingleSums:
        """Sums of single matrices."""
        rows, columns = self.single_rows, self.single_columns
        return SingleSums(
            row_sum=rows.quantiles(),
            column_sum=columns.quantiles(),
            row_sum_all=quantiles(rows.all()),
            column_sum_all=quantiles(columns.all()),
            max_deviation=float(np.abs(rows.all() - 1).max()),
        )

    def product(self) -> ProductSums:
        """Sums and gains of the products."""
        return ProductSums(
            row_sum=self.product_rows.quantiles(),
            column_sum=self.product_columns.quantiles(),
            max_deviation=float(np.abs(self.product_rows.of(-1) - 1).max()),
            gain_forward=self.gain_forward.means(),
            gain_backward=self.gain_backward.means(),
            gain_forward_max=self.gain_forward.maxima(),
            gain_backward_max=self.gain_backward.maxima(),
        )

    def geometry(self, log_inverse_nu: FloatArray | None) -> Geometry:
        """All else."""
        values = range(len(self.singular_values.layers))
        return Geometry(
            single_deviation=deviation(self.single_rows.all()),
            product_deviation=deviation(self.product_rows.of(-1)),
            orthogonality=self.orthogonality.means(),
            product_orthogonality=self.product_orthogonality.means(),
            singular_values=[self.singular_values.of(layer).mean(0).tolist() for layer in values],
            effective_rank=self.effective_rank.means(),
            start_distance=self.start_distance.means(),
            mean_matrix=[self.matrices.of(layer).mean(0).tolist() for layer in values],
            mean_product=self.products.of(0).mean(0).tolist(),
            log_inverse_nu=None if log_inverse_nu is None else quantiles(log_inverse_nu),
        )


def log_inverse_nu(logits: FloatArray) -> FloatArray:
    """log(1/nu) of Sinkhorn inputs exp(logits), nu their smallest over their largest entry.

    Args:
        logits: (tokens, n, n).

    Returns:
        (tokens,), at least 0.
    """
    spread: FloatArray = logits.max((-2, -1)) - logits.min((-2, -1))
    return spread


def per_token(H: Tensor) -> FloatArray:
    """(B, T, n, n) -> (B * T, n, n) in float64."""
    return H.flatten(0, 1).double().cpu().numpy()


@torch.no_grad()
def mixing(model: GPT, start: list[Connection], windows: Tokens, device: torch.device) -> Mixing:
    """Mixing statistics of a model on token windows.

    Args:
        model: in evaluation mode on `device`.
        start: its connections before training, on `device`.
        windows: (sequences, T) token ids.
        device: where to compute.
    """
    connections = list(model.connections())
    statistics = MixingStatistics(len(connections))
    spreads: list[FloatArray] = []
    for chunk in chunks(windows):
        x = model.embed(torch.from_numpy(chunk).to(device))
        matrices, untrained = [], []
        for layer, sublayer in enumerate(model.sublayers):
            connection = connections[layer]
            matrices.append(per_token(connection.coefficients(x).H_res))
            untrained.append(per_token(start[layer].coefficients(x).H_res))
            logits = connection.sinkhorn_input(x)
            if logits is not None:
                spreads.append(log_inverse_nu(per_token(logits)))
            x = sublayer(x)
            statistics.effective_rank.add(layer, effective_rank(x))
        statistics.add(matrices, untrained)
    spread = np.concatenate(spreads) if spreads else None
    return Mixing(
        sequences=len(windows),
        tokens=windows.size,
        n_sublayers=len(connections),
        quantile_levels=QUANTILE_LEVELS,
        single=statistics.single(),
        product=statistics.product(),
        identity_distance=statistics.identity_distance.means(),
        sinkhorn_input=None if spread is None else sinkhorn_input(spread),
        geometry=statistics.geometry(spread),
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
