"""The Sinkhorn-Knopp experiment: how far from 1 the sums are after so many iterations.

Random logits, uniform over a given range (so log(1/nu) is nearly that range), are brought to a
nearly doubly stochastic matrix. One iteration normalises rows, then columns, so the columns are
exact and the rows carry the error: in the papers' figures, transposed, these are the column sums.
The products over depth multiply independent matrices in float64, whatever the matrices were made
in: only the error of having stopped is measured, not that of multiplying.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import torch
from torch import Tensor

from mhclite.arguments import file_path, json_argument, positive_int
from mhclite.connections.matrices import sinkhorn_knopp
from mhclite.errors import UserError
from mhclite.files import write_json
from mhclite.seeding import generator_for

SCHEMA = 1  # of sinkhorn.json
N = 4  # streams
QUANTILES = (0.5, 0.95, 1.0)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SETTINGS = ("iterations", "logit_ranges", "depths", "matrices")

log = logging.getLogger(__name__)


def sinkhorn_knopp_exp(logits: Tensor, iterations: int) -> Tensor:
    """Sinkhorn-Knopp on exp(logits - max) itself, sums held above 1e-12.

    As the authors' analysis does it; in training they work in the log domain (`sinkhorn_knopp`).
    """
    M = (logits - logits.amax((-2, -1), keepdim=True)).exp()
    for _ in range(iterations):
        M = M / M.sum(-1, keepdim=True).clamp_min(1e-12)
        M = M / M.sum(-2, keepdim=True).clamp_min(1e-12)
    return M


DOMAINS = {"log": sinkhorn_knopp, "exp": sinkhorn_knopp_exp}


def deviations(matrices: Tensor) -> dict[str, float]:
    """Quantiles over all matrices and rows of |row sum - 1|, for matrices (..., n, n)."""
    deviation = (matrices.sum(-1) - 1).abs().flatten()
    values = torch.quantile(deviation, torch.tensor(QUANTILES, dtype=deviation.dtype))
    return dict(zip(("median", "p95", "max"), values.tolist(), strict=True))


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry a logit range, precision, domain and number of iterations.

    `single`: deviations of the matrices; `product`: depth -> those of products of that many.
    """
    count, deepest = settings["matrices"], max(settings["depths"])
    rows = []
    for spread in settings["logit_ranges"]:
        generator = generator_for(0, "sinkhorn")
        shape = (deepest, count, N, N)
        logits = spread * (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5)
        for precision, dtype in DTYPES.items():
            for domain, normalise in DOMAINS.items():
                for iterations in settings["iterations"]:
                    matrices = normalise(logits.to(dtype), iterations).double()
                    product = torch.eye(N, dtype=torch.float64).expand(count, N, N)
                    products = {}
                    for depth, H_res in enumerate(matrices, start=1):
                        product = H_res @ product
                        if depth in settings["depths"]:
                            products[str(depth)] = deviations(product)
                    rows.append(
                        {
                            "logit_range": spread,
                            "precision": precision,
                            "domain": domain,
                            "iterations": iterations,
                            "single": deviations(matrices),
                            "product": products,
                        }
                    )
        log.info("logit range %g measured", spread)
    return rows


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite sinkhorn`."""
    parser.add_argument(
        "--settings", required=True, help=f"JSON with {', '.join(SETTINGS)}, as in study.Sinkhorn"
    )
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads")
    parser.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Measure and write the file."""
    settings = json_argument(args.settings, "--settings")
    if set(settings) != set(SETTINGS):
        raise UserError(f"--settings needs the keys {', '.join(SETTINGS)}, not {sorted(settings)}")
    torch.set_num_threads(args.threads)
    write_json(
        args.out,
        {
            "schema": SCHEMA,
            "settings": settings,
            "n_streams": N,
            "rows": measure(settings),
        },
    )
    log.info("%s written", args.out)
