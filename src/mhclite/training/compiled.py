"""torch.compile: a model's loss through it, and where it and Triton keep what they compile."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the workflow and bundles read this file, and have no torch
    from torch import Tensor

    from mhclite.model import GPT

FOLDER = "compiled"
CACHE = "TORCHINDUCTOR_CACHE_DIR"

log = logging.getLogger(__name__)


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


def no_compiler(device: str) -> str | None:
    """Why nothing can be compiled here for this kind of device; None if it can."""
    if device != "cpu":
        return None  # Triton brings its own
    name = os.environ.get("CXX", "").strip() or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(shlex.split(name)[0]):
        return None
    return f"there is no C++ compiler {name!r} on this machine (CXX names another)"


def compiled_loss(model: GPT) -> Callable[[Tensor], Tensor]:
    """`model.loss` through torch.compile, as one graph; compiled at the first call.

    Where a CPU has no C++ compiler it is `model.loss` itself, after a line that says so.
    """
    import torch

    device = model.wte.weight.device.type
    if (obstacle := no_compiler(device)) is not None:
        log.warning("training.compile: %s: computed without, which takes longer", obstacle)
        return model.loss
    if device == "cpu" and CACHE in os.environ:
        _one_folder_for_each_processor()
    for autocast in (False, True):  # before it is traced
        model.choice(autocast)
    # Else it is traced under the forward pass's autocast, and takes products of float32 numbers in
    # bf16 (coefficients). Eagerly the backward pass is called outside of autocast. By its name,
    # since importing it in a statement would bind `torch` again, and costs seconds at the top.
    functorch: Any = importlib.import_module("torch._functorch.config")
    functorch.backward_pass_autocast = "off"
    # One graph for each model: several of them share the code in a measurement.
    torch._dynamo.config.recompile_limit = 64
    loss: Callable[[Tensor], Tensor] = torch.compile(model.loss, fullgraph=True, dynamic=False)
    return loss


def _one_folder_for_each_processor() -> None:
    """Code for a CPU is compiled for the very processor, and nodes of a cluster differ."""
    folder = Path(os.environ[CACHE])
    if folder.name != FOLDER:
        return  # it is one already, or the user's own
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
