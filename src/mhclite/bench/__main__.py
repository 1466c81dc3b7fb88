"""`python -m mhclite.bench NAME`: the project's own benchmarks, of no use to a study."""

from __future__ import annotations

import sys

from mhclite.cli import Groups, Step, dispatch

BENCHMARKS: Groups = {
    "benchmarks": {
        "implementations": Step(
            "mhclite.bench.implementations", "what each variant costs in each implementation"
        ),
        "model": Step("mhclite.bench.model", "what the fused kernels would take on an H100"),
        "gradients": Step("mhclite.bench.gradients", "what bf16 costs the gradient, over depth"),
        "data": Step("mhclite.bench.data", "how fast a corpus is prepared and read"),
        "pipeline": Step("mhclite.bench.pipeline", "what the pipeline costs around training"),
    }
}


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark; returns the exit code."""
    about = "Benchmarks for the developers of mhclite; docs/performance.md and docs/data.md."
    argv = sys.argv[1:] if argv is None else argv
    return dispatch("python -m mhclite.bench", about, BENCHMARKS, argv)


if __name__ == "__main__":
    sys.exit(main())
