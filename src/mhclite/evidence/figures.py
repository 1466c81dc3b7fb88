"""`python -m mhclite figures`: every figure of a study, as PNG and SVG."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from mhclite.errors import UserError
from mhclite.evidence.captions import FIGURES as CAPTIONS
from mhclite.evidence.captions import shown
from mhclite.evidence.figures_claims import forest
from mhclite.evidence.figures_conditions import changes
from mhclite.evidence.figures_cost import loss_against_time, token_efficiency
from mhclite.evidence.figures_depth import composite_gain, identity_distance
from mhclite.evidence.figures_mixing import row_sums, sinkhorn_inputs
from mhclite.evidence.figures_streams import mixing_over_training, stream_similarity
from mhclite.evidence.figures_stress import stress
from mhclite.evidence.figures_summary import loss_vs_depth, throughput
from mhclite.evidence.figures_training import gradient_norm, validation_loss
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.sinkhorn_error import sinkhorn_error
from mhclite.evidence.style import save, style

log = logging.getLogger(__name__)

# File stem -> how it is drawn from (results, confidence), in the order of the report.
FIGURES: dict[str, Callable[[Results, float], Figure]] = {
    "forest": forest,
    "loss_vs_depth": loss_vs_depth,
    "validation_loss": validation_loss,
    "gradient_norm": gradient_norm,
    "throughput": throughput,
    "row_sums": row_sums,
    "sinkhorn_inputs": sinkhorn_inputs,
    "composite_gain": composite_gain,
    "identity_distance": identity_distance,
    "loss_against_time": loss_against_time,
    "token_efficiency": token_efficiency,
    "stream_similarity": stream_similarity,
    "mixing_over_training": mixing_over_training,
    "stress_rates": stress,
    "changes": changes,
    "sinkhorn_error": sinkhorn_error,
}


def draw(results: Results, folder: Path, confidence: float, names: list[str]) -> list[Path]:
    """Write the named figures into `folder`; returns the files."""
    written = []
    for name in names:
        with style():
            written += save(FIGURES[name](results, confidence), folder / name)
        log.info("drew %s", folder / name)
    return written


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite figures`."""
    parser.add_argument(
        "--results", required=True, type=Path, metavar="DIR", help="results/<study>, collected"
    )
    parser.add_argument(
        "--confidence", type=float, help="level of the intervals; left out: the study's"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"of {', '.join(FIGURES)}; left out: all"
    )


def run(args: argparse.Namespace) -> None:
    """Draw the figures into <results>/figures."""
    for name in args.only or []:
        if name not in FIGURES:
            raise UserError(f"--only: no figure {name!r}; there are {', '.join(FIGURES)}")
    results = load_results(args.results)
    names = args.only or list(shown(CAPTIONS, results.settings))
    confidence = results.confidence if args.confidence is None else args.confidence
    if not 0.5 < confidence < 1:
        raise UserError(f"--confidence {confidence}: must lie between 0.5 and 1, e.g. 0.95")
    draw(results, args.results / "figures", confidence, names)
