"""What the compiler makes of the fused kernels for sm_90, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.exhaustive
@pytest.mark.slow
def test_nothing_spills() -> None:
    """And of a multiprocessor's shared memory, 227 KiB, each takes at most the half."""
    # In a process of its own: kernels that are interpreted here stay so.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).parent / "compile_kernels.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert len(kernels) == 16
    for name, needs in kernels.items():
        assert needs["stack"] == 0, (name, needs)
        assert needs["shared"] <= 227 * 1024 // 2, (name, needs)
