"""What H_res does in a trained model, on held-out text, and what the loss depends on.

Everything is per token and never averaged over tokens before the statistic is taken, but for what
is called a mean. H_res is in operator orientation (row t: the weights that enter output stream t):
the *column sums* of the papers' figures are the *row sums* here. The product over depth is taken in
float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mhclite.connections.base import Coefficients, Connection
from mhclite.data.batches import Tokens
from mhclite.measure.measured import (
    Cost,
    Deviation,
    Geometry,
    Mixing,
    ProductSums,
    SingleSums,
    SinkhornInput,
    Use,
)
from mhclite.model import GPT, SubLayer

QUANTILE_LEVELS: list[float] = [0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1]
# log(1/nu) of the Sinkhorn inputs: 20 iterations do not mend spreads above about 30 (1/nu = 1e13).
LOG_INVERSE_NU_LIMIT = 30
CHUNK_TOKENS = 2048  # at a time, in whole sequences

FloatArray = npt.NDArray[np.float64]


def chunks(windows: Tokens) -> Iterator[Tokens]:
    """The rows (sequences, length) in order, some at a time."""
    size = max(1, CHUNK_TOKENS // windows.shape[1])
    for first in range(0, len(windows), size):
        yield windows[first : first + size]


class Gathered:
    """Values of tokens by name and sub-layer, chunk by chunk."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int, list[FloatArray]]] = {}

    def add(self, layer: int, **values: FloatArray) -> None:
        """Values of some tokens by name, (tokens, ...)."""
        for name, found in values.items():
            self._found.setdefault(name, {}).setdefault(layer, []).append(found)

    def _by_layer(self, name: str) -> list[FloatArray]:
        return [np.concatenate(chunks) for _, chunks in sorted(self._found.get(name, {}).items())]

    def all(self, name: str) -> FloatArray:
        """Those of all sub-layers together, flat."""
        return np.concatenate([values.ravel() for values in self._by_layer(name)])

    def quantiles(self, name: str) -> list[float]:
        """Of those of all sub-layers together, at `QUANTILE_LEVELS`."""
        found: list[float] = np.quantile(self.all(name), QUANTILE_LEVELS).tolist()
        return found

    def deviation(self, name: str) -> Deviation:
        """How far row sums are from 1."""
        return Deviation(float(np.quantile(np.abs(self.all(name) - 1), 0.99)))

    def means(self, name: str) -> list[float]:
        """Mean per sub-layer."""
        return [float(values.mean()) for values in self._by_layer(name)]

    def token_means(self, name: str) -> list[Any]:
        """Mean over tokens per sub-layer, of the shape of one token's value."""
        return [values.mean(0).tolist() for values in self._by_layer(name)]

    def sinkhorn_input(self) -> SinkhornInput | None:
        """None for variants that give Sinkhorn-Knopp nothing."""
        if "log_inverse_nu" not in self._found:
            return None
        found = self.all("log_inverse_nu")
        return SinkhornInput(float((found > LOG_INVERSE_NU_LIMIT).mean()), float(found.max()))


def size(matrices: FloatArray) -> FloatArray:
    """Frobenius norm of each of (tokens, n, n)."""
    norm: FloatArray = np.linalg.norm(matrices, axis=(-2, -1))
    return norm


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
    identity = np.eye(model.n_streams)
    gathered = Gathered()
    for chunk in chunks(windows):
        x = model.embed(torch.from_numpy(chunk).to(device))
        product = identity
        layers = zip(connections, start, model.sublayers, strict=True)
        for layer, (connection, before, sublayer) in enumerate(layers):
            H = per_token(connection.coefficients(x).H_res)
            product = H @ product
            gathered.add(
                layer,
                matrix=H,
                rows=H.sum(-1),
                columns=H.sum(-2),
                from_identity=size(H - identity),
                from_start=size(H - per_token(before.coefficients(x).H_res)),
                orthogonality=size(H.swapaxes(-2, -1) @ H - identity),
            )
            logits = connection.sinkhorn_input(x)
            if logits is not None:  # of exp(logits); nu: the smallest over the largest entry
                given = per_token(logits)
                spread = given.max((-2, -1)) - given.min((-2, -1))
                gathered.add(layer, log_inverse_nu=spread)
            x = sublayer(x)
        singular_values = np.linalg.svd(product, compute_uv=False).astype(np.float64)
        gathered.add(
            len(connections) - 1,
            product_rows=product.sum(-1),
            product_columns=product.sum(-2),
            gain_forward=np.abs(product).sum(-1).max(-1),
            gain_backward=np.abs(product).sum(-2).max(-1),
            singular_values=singular_values,
        )
    return Mixing(
        quantile_levels=QUANTILE_LEVELS,
        single=SingleSums(gathered.quantiles("rows"), gathered.quantiles("columns")),
        product=ProductSums(
            row_sum=[gathered.quantiles("product_rows")],
            column_sum=[gathered.quantiles("product_columns")],
            gain_forward=gathered.means("gain_forward"),
            gain_backward=gathered.means("gain_backward"),
        ),
        identity_distance=gathered.means("from_identity"),
        sinkhorn_input=gathered.sinkhorn_input(),
        geometry=Geometry(
            single_deviation=gathered.deviation("rows"),
            product_deviation=gathered.deviation("product_rows"),
            orthogonality=gathered.means("orthogonality"),
            singular_values=gathered.token_means("singular_values"),
            start_distance=gathered.means("from_start"),
            mean_matrix=gathered.token_means("matrix"),
        ),
    )


# --- what the loss depends on -------------------------------------------------------------------


@contextmanager
def mixed_by(sublayer: SubLayer, matrix: Tensor) -> Iterator[None]:
    """The sub-layer with one H_res (n, n) for all tokens.

    What is changed is the `coefficients` of its connection, which its reference implementation
    reads; the connections themselves know nothing of it.
    """
    connection, implementation = sublayer.connection, sublayer.implementation
    own = connection.coefficients

    def changed(x: Tensor) -> Coefficients:
        found = own(x)
        return found._replace(H_res=matrix.to(found.H_res).expand_as(found.H_res))

    # A module's own attributes come before the methods of its class.
    vars(connection)["coefficients"] = changed
    sublayer.implementation = "reference"
    try:
        yield
    finally:
        del vars(connection)["coefficients"]
        sublayer.implementation = implementation


def window_losses(logits: Tensor, targets: Tensor) -> FloatArray:
    """Mean cross-entropy of each window in nats per token: (B, T, V), (B, T) -> (B,)."""
    losses = F.cross_entropy(logits.mT, targets, reduction="none").double()
    return losses.mean(-1).cpu().numpy()


@torch.no_grad()
def knockouts(model: GPT, found: Mixing, windows: Tokens, device: torch.device) -> Use:
    """What it costs to change H_res in all sub-layers at once, a pass each.

    - *H_res = I*: streams are read and written as before, and never mixed.
    - *H_res = its mean over tokens*, of the probe's windows: what a static matrix keeps.

    The change of the loss is taken window by window, so its standard error is that of a paired
    difference.

    Args:
        model: in evaluation mode on `device`.
        found: its H_res on the probe's windows.
        windows: of the validation split, (count, T + 1) token ids.
        device: where to compute.
    """
    sublayers = [sublayer for sublayer in model.sublayers if isinstance(sublayer, SubLayer)]
    identity = torch.eye(model.n_streams, device=device)
    means = [torch.tensor(matrix, device=device) for matrix in found.geometry.mean_matrix]
    # Where H_res is I for every token already, no change is one: no pass, and no cost.
    mixing = [layer for layer, distance in enumerate(found.identity_distance) if distance != 0]
    changes = {"nothing": dict[int, Tensor]()}
    if mixing:
        changes["identity"] = dict.fromkeys(mixing, identity)
        changes["token_mean"] = {layer: means[layer] for layer in mixing}
    losses: dict[str, list[FloatArray]] = {what: [] for what in changes}
    for chunk in chunks(windows):
        tokens = torch.from_numpy(chunk).to(device)
        for what, matrices in changes.items():
            with ExitStack() as stack:
                for layer, matrix in matrices.items():
                    stack.enter_context(mixed_by(sublayers[layer], matrix))
                x = model.embed(tokens[:, :-1])
                for sublayer in sublayers:
                    x = sublayer(x)
            logits = F.linear(model.final_read(x), model.wte.weight)
            losses[what].append(window_losses(logits, tokens[:, 1:]))

    nothing = np.concatenate(losses["nothing"])

    def cost(what: str) -> Cost:
        return cost_of(np.concatenate(losses.get(what, losses["nothing"])) - nothing)

    return Use(identity=cost("identity"), token_mean=cost("token_mean"))


def cost_of(differences: FloatArray) -> Cost:
    """Mean of a change of the loss over windows (windows,), and its standard error."""
    count = len(differences)
    error = float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return Cost(float(differences.mean()), error)
