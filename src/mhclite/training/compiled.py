"""torch.compile: a model's loss through it."""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mhclite.training.compiler_caches import one_folder_for_each_processor

if TYPE_CHECKING:  # the workflow and bundles read this file, and have no torch
    from torch import Tensor

    from mhclite.model import GPT

log = logging.getLogger(__name__)


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
    if device == "cpu":
        one_folder_for_each_processor()
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
