"""Where torch.compile and Triton keep what they compiled. Decides no number."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
from pathlib import Path

FOLDER = "compiled"
CACHE = "TORCHINDUCTOR_CACHE_DIR"


def environment(folder: Path) -> dict[str, str]:
    """What jobs find in their environment, so that each takes what another has compiled before.

    Nothing where the path holds a blank or a quote: torch gives it to the C++ compiler as it is.

    Args:
        folder: of a study or a bundle; both compilers write their files so that several processes
            may do it at once.
    """
    compiled = folder.resolve() / FOLDER
    if shlex.quote(str(compiled)) != str(compiled):
        return {}
    return {
        CACHE: str(compiled),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
    }


def one_folder_for_each_processor() -> None:
    """Code for a CPU is compiled for the very processor, and nodes of a cluster differ."""
    folder = Path(os.environ.get(CACHE, ""))
    if folder.name != FOLDER:
        return  # there is none, or it is one already, or the user's own
    os.environ[CACHE] = str(folder / _processor())


def _processor() -> str:
    """A name for the kind of processor at hand."""
    told = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        kinds = ("model name", "flags", "Features", "CPU part")
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        told += "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
    return f"cpu-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
