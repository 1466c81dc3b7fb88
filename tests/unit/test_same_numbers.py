"""The numbers of training, bit for bit: those of the commit that the stored digests were made with.

A failure means that training computes something else than before, if only in the last bit. Where
that is not meant, it is a bug. Where it is meant (another formula, another order of sums), every
stored result of every study is of other numbers: say so in CHANGELOG.md, run

    python tests/unit/test_same_numbers.py

and commit the new digests with the change that made them necessary.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIGESTS = ROOT / "tests" / "golden" / "metrics-digests.json"

# The same bits on every x86 machine: torch's plain kernels, one code path of MKL and oneDNN, no
# fused multiply-add in the C library's exp and log, sums in one order.
SAME_BITS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4",
    "OMP_NUM_THREADS": "1",
}


def train_all(folder: Path) -> dict[str, dict[str, str]]:
    """Run -> implementation -> SHA-256 of its numbers, for config/smoke.yaml's first seed."""
    script = Path(__file__).with_name("train_smoke.py")
    done = subprocess.run(
        [sys.executable, str(script), str(ROOT / "config/smoke.yaml"), str(folder)],
        env={**os.environ, **SAME_BITS},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the digests are of x86 processors"
)
def test_training_computes_the_stored_bits(tmp_path: Path) -> None:
    expected = json.loads(DIGESTS.read_text())["sha256"]
    found = train_all(tmp_path)
    assert found.keys() == expected.keys(), "config/smoke.yaml has other runs: see the docstring"
    different = {run for run in expected if found[run] != expected[run]}
    assert not different, f"other numbers than before, see the docstring: {sorted(different)}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        stored = {
            "about": "SHA-256 of the numbers in metrics.jsonl of config/smoke.yaml's runs of seed "
            "0, by implementation; made by tests/unit/test_same_numbers.py, which says when to "
            "make them again",
            "sha256": train_all(Path(scratch)),
        }
    DIGESTS.write_text(json.dumps(stored, indent=1) + "\n")
