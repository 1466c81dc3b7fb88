"""`python -m benchmarks NAME`."""

from __future__ import annotations

import sys

from mhclite.cli import Entry, Groups, dispatch

BENCHMARKS: Groups = {
    "benchmarks": {
        "step": Entry("benchmarks.step", "what each variant costs in each implementation"),
        "session": Entry(
            "benchmarks.session",
            "on this GPU: are the kernels right, how fast are they and training; then a study",
        ),
        "gradients": Entry("benchmarks.gradients", "what bf16 costs the gradient, over depth"),
        "data": Entry("benchmarks.data", "how fast a corpus is prepared"),
        "pipeline": Entry("benchmarks.pipeline", "what the pipeline costs around training"),
    }
}


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark; returns the exit code."""
    about = "Benchmarks for the developers of mhclite; docs/performance.md, docs/gpu.md."
    argv = sys.argv[1:] if argv is None else argv
    return dispatch("python -m benchmarks", about, BENCHMARKS, argv)


if __name__ == "__main__":
    sys.exit(main())
