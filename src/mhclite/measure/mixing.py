"""What H_res does in a trained model, on held-out text.

Everything is per token and never averaged over tokens before the statistic is taken, but for what
is called a mean. H_res is in operator orientation (row t: the weights that enter output stream t):
the *column sums* of the papers' figures are the *row sums* here. Products over depth are taken in
float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    """Values of tokens by name and sub-layer, chunk by chunk."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int, list[FloatArray]]] = {}

    def add(self, name: str, layer: int, values: FloatArray) -> None:
        """Values of some tokens, (tokens, ...)."""
        self._found.setdefault(name, {}).setdefault(layer, []).append(values)

    def by_layer(self, name: str) -> list[FloatArray]:
        """All values of each sub-layer, (tokens, ...)."""
        return [np.concatenate(chunks) for _, chunks in sorted(self._found[name].items())]

    def all(self, name: str) -> FloatArray:
        """Those of all sub-layers together, flat."""
        return np.concatenate([values.ravel() for values in self.by_layer(name)])

    def means(self, name: str) -> list[float]:
        """Mean per sub-layer."""
        return [float(values.mean()) for values in self.by_layer(name)]

    def token_means(self, name: str) -> list[Any]:
        """Mean over tokens per sub-layer, of the shape of one token's value."""
        return [values.mean(0).tolist() for values in self.by_layer(name)]


def quantiles(values: FloatArray) -> list[float]:
    """At `QUANTILE_LEVELS`."""
    found: list[float] = np.quantile(values, QUANTILE_LEVELS).tolist()
    return found


def deviation(row_sums: FloatArray) -> Deviation:
    """Of row sums from 1."""
    distance = np.abs(row_sums - 1)
    return Deviation(float(np.quantile(distance, 0.99)))


def size(matrices: FloatArray) -> FloatArray:
    """Frobenius norm of each of (tokens, n, n)."""
    norm: FloatArray = np.linalg.norm(matrices, axis=(-2, -1))
    return norm


def orthogonality(H: FloatArray) -> FloatArray:
    """Frobenius norm of H^T H - I for matrices (tokens, n, n): (tokens,)."""
    return size(H.swapaxes(-2, -1) @ H - np.eye(H.shape[-1]))


def gather(gathered: Gathered, matrices: list[FloatArray], start: list[FloatArray]) -> None:
    """Add what H_res of all sub-layers in order does for some tokens, (tokens, n, n) each.

    Args:
        matrices: of the trained model.
        start: of the same connections before training, for the same streams.
    """
    identity = np.eye(matrices[0].shape[-1])
    product = np.broadcast_to(identity, matrices[0].shape)
    for layer, (H, untrained) in enumerate(zip(matrices, start, strict=True)):
        product = H @ product
        for name, values in {
            "matrix": H,
            "rows": H.sum(-1),
            "columns": H.sum(-2),
            "product rows": product.sum(-1),
            "product columns": product.sum(-2),
            "gain forward": np.abs(product).sum(-1).max(-1),
            "gain backward": np.abs(product).sum(-2).max(-1),
            "from identity": size(H - identity),
            "from start": size(H - untrained),
            "orthogonality": orthogonality(H),
            "product orthogonality": orthogonality(product),
            "singular values": np.linalg.svd(product, compute_uv=False),
        }.items():
            gathered.add(name, layer, values)


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
    gathered = Gathered()
    spreads: list[FloatArray] = []
    for chunk in chunks(windows):
        x = model.embed(torch.from_numpy(chunk).to(device))
        matrices, untrained = [], []
        for connection, before, sublayer in zip(connections, start, model.sublayers, strict=True):
            matrices.append(per_token(connection.coefficients(x).H_res))
            untrained.append(per_token(before.coefficients(x).H_res))
            logits = connection.sinkhorn_input(x)
            if logits is not None:
                spreads.append(log_inverse_nu(per_token(logits)))
            x = sublayer(x)
        gather(gathered, matrices, untrained)
    product_rows, product_columns = (
        gathered.by_layer(f"product {side}") for side in ("rows", "columns")
    )
    return Mixing(
        sequences=len(windows),
        tokens=windows.size,
        n_sublayers=len(connections),
        quantile_levels=QUANTILE_LEVELS,
        single=SingleSums(quantiles(gathered.all("rows")), quantiles(gathered.all("columns"))),
        product=ProductSums(
            row_sum=[quantiles(values) for values in product_rows],
            column_sum=[quantiles(values) for values in product_columns],
            gain_forward=gathered.means("gain forward"),
            gain_backward=gathered.means("gain backward"),
        ),
        identity_distance=gathered.means("from identity"),
        sinkhorn_input=sinkhorn_input(np.concatenate(spreads)) if spreads else None,
        geometry=Geometry(
            single_deviation=deviation(gathered.all("rows")),
            product_deviation=deviation(product_rows[-1]),
            orthogonality=gathered.means("orthogonality"),
            product_orthogonality=gathered.means("product orthogonality"),
            singular_values=gathered.token_means("singular values"),
            start_distance=gathered.means("from start"),
            mean_matrix=gathered.token_means("matrix"),
        ),
    )


def sinkhorn_input(log_inverse_nu: FloatArray) -> SinkhornInput:
    """Of log(1/nu), (matrices,)."""
    return SinkhornInput(
        share_above_30=float((log_inverse_nu > LOG_INVERSE_NU_LIMIT).mean()),
        max=float(log_inverse_nu.max()),
    )
