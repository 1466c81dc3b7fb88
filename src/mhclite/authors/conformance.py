"""Comparison with golden vectors made by the authors' own modules, in float64.

There are three kinds of golden file (tests/golden/README.md): `connection`, the outputs and
gradients of one sub-layer's connection, `head`, those of the learned read after the last one, and
`trajectory`, a whole small training run. They are compared with the formulas (`reference`), to
which tests hold the other implementations.
"""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhclite.arguments import file_path
from mhclite.authors import names
from mhclite.authors.exchange import SIZES
from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.connections import connection_class
from mhclite.connections.head import Head
from mhclite.connections.registry import VARIANTS, check_streams
from mhclite.errors import UserError
from mhclite.model import GPT
from mhclite.training.optimizer import AdamW, learning_rate

# Largest relative error that counts as agreement. A trajectory accumulates rounding over its steps.
TOLERANCE = {"connection": 1e-9, "head": 1e-9, "trajectory": 1e-6}

# Errors are relative to the tensor's own largest entry, or to this share of the largest entry among
# all tensors compared with it, whichever is more: some true gradients are 0 (all streams are equal
# at entry), so that their values are nothing but rounding.
RELATIVE_FLOOR = 1e-6

# A file with larger numbers is damaged; without these bounds it would compute for hours.
LARGEST = {
    "n_streams": 64,
    "n_embd": 16384,
    "n_layer": 512,
    "block_size": 65536,
    "vocab_size": 262_144,
    "sinkhorn_iterations": 10_000,
    "rank": 16384,
    "steps": 100_000,
    "norm_eps": 1,
    "hc_eps": 1,
}

OTHER_NAMES = {"gate_rank": "rank"}  # what a file's `meta` calls an argument by

Arrays = dict[str, Any]


def read_golden(path: Path) -> tuple[dict[str, Any], Arrays]:
    """(meta, arrays) of a golden file; `UserError` if it is damaged or something else."""
    try:
        # Opened here because numpy would leave a truncated archive open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"golden file {path} does not exist") from None
    except Exception as error:  # whatever the damage leads numpy to
        reason = str(error).split(".")[0]
        raise UserError(f"{path} is not a readable .npz file of plain numbers: {reason}") from None
    try:
        meta = json.loads(str(arrays.pop("meta")))
        assert meta["kind"] in TOLERANCE
        assert meta["variant"] in VARIANTS
        check_streams(meta["variant"], meta["n_streams"])
        for name, largest in LARGEST.items():
            assert 0 <= meta.get(name, 0) <= largest, f"{name} is not between 0 and {largest}"
    except (KeyError, TypeError, AssertionError, ValueError) as error:
        raise UserError(
            f"{path} is not a golden file: its `meta` needs kind ({' or '.join(TOLERANCE)}), a "
            f"known variant and a possible n_streams ({error!r})"
        ) from None
    return meta, arrays


def relative_errors(pairs: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """Largest |ours - theirs| of each pair over the largest |theirs|, with `RELATIVE_FLOOR`."""
    magnitudes = {name: float(np.abs(theirs).max(initial=0)) for name, (_, theirs) in pairs.items()}
    floor = RELATIVE_FLOOR * max(magnitudes.values(), default=0.0)
    errors = {}
    for name, (ours, theirs) in pairs.items():
        ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
        theirs = np.asarray(theirs)
        if theirs.ndim == 0 and ours.size == 1:  # a scale, which is (1) here
            ours = ours.reshape(())
        if ours.shape != theirs.shape:
            raise UserError(f"{name} has shape {theirs.shape} in the file, {ours.shape} here")
        difference = float(np.abs(ours - theirs).max(initial=0))
        scale = max(magnitudes[name], floor)
        # Not `difference / scale <= tolerance` alone: NaN must count as disagreement.
        error = difference / scale if scale > 0 else difference
        errors[name] = error if np.isfinite(error) else float("inf")
    return errors


def compared(
    arrays: Arrays, outputs: dict[str, Any], gradients: dict[str, Any]
) -> dict[str, float]:
    """Relative errors of outputs and gradients, each kind on its own scale."""
    errors: dict[str, float] = {}
    for kind, ours in (("output", outputs), ("grad", gradients)):
        named = {f"{kind}.{name}": value for name, value in ours.items()}
        errors |= relative_errors({name: (value, arrays[name]) for name, value in named.items()})
    return errors


def _tensor(array: Any, **options: Any) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise UserError(f"it holds numbers of type {array.dtype}, expected real numbers")
    return torch.tensor(array, dtype=torch.float64, **options)


def _state(arrays: Arrays) -> dict[str, Tensor]:
    """The parameters that a file holds."""
    return {name[6:]: _tensor(a) for name, a in arrays.items() if name.startswith("param.")}


def stated(meta: dict[str, Any], made: type[torch.nn.Module]) -> dict[str, Any]:
    """What the file states of a class's arguments, apart from its size."""
    known = inspect.signature(made).parameters.keys() - {"n_streams", "n_embd", "home_stream"}
    named = {name: OTHER_NAMES.get(name, name) for name in known}
    return {name: meta[other] for name, other in named.items() if other in meta}


def options_of(meta: dict[str, Any]) -> dict[str, Any]:
    """The variant's options as the file states them; by default the usual 20 iterations."""
    usual = {"sinkhorn_iterations": 20} if VARIANTS[meta["variant"]].iterates else {}
    return usual | stated(meta, connection_class(meta["variant"]))


def connection_errors(meta: dict[str, Any], arrays: Arrays) -> dict[str, float]:
    """Relative errors of one connection's outputs and gradients."""
    made = connection_class(meta["variant"])
    connection = made(meta["n_streams"], meta["n_embd"], 0, **options_of(meta)).double()
    connection.load_state_dict(_state(arrays))
    x, y = (_tensor(arrays[f"input.{name}"], requires_grad=True) for name in "xy")
    read: list[Tensor] = []

    def branch(h: Tensor) -> Tensor:
        read.append(h)
        return y

    out = connection(x, branch)
    objective = (read[0] * _tensor(arrays["input.grad_h"])).sum()
    (objective + (out * _tensor(arrays["input.grad_out"])).sum()).backward()
    found = connection.coefficients(x)._asdict()
    # A file holds neither an H_pre by channel nor the H_res of streams that are never mixed.
    wanted = ["H_pre"] * (found["H_pre"].dim() == 3) + ["H_post"]
    wanted += ["H_res"] * (VARIANTS[meta["variant"]].mixes != "never")
    ours = {"h": read[0], "out": out, **{name: found[name] for name in wanted}}
    gradients = {"x": x.grad, "y": y.grad}
    gradients |= {name: p.grad for name, p in connection.named_parameters()}
    return compared(arrays, ours, gradients)


def head_errors(meta: dict[str, Any], arrays: Arrays) -> dict[str, float]:
    """Relative errors of the learned read's output and gradients."""
    head = Head(meta["n_streams"], meta["n_embd"], **stated(meta, Head)).double()
    head.load_state_dict(_state(arrays))
    x = _tensor(arrays["input.x"], requires_grad=True)
    h = head(x)
    (h * _tensor(arrays["input.grad_h"])).sum().backward()
    gradients = {"x": x.grad} | {name: p.grad for name, p in head.named_parameters()}
    return compared(arrays, {"h": h}, gradients)


def golden_model(meta: dict[str, Any], arrays: Arrays) -> GPT:
    """Our GPT with the initial weights of a trajectory file."""
    variant, n = meta["variant"], meta["n_streams"]
    sizes = {name: meta[name] for name in SIZES}
    size = ModelConfig(name="golden", learning_rate=meta["learning_rate"], **sizes)
    model = GPT(size, ConnectionConfig(variant, n, options=options_of(meta)), seed=0).double()
    state: dict[str, torch.Tensor] = {}
    for name, array in arrays.items():
        if name.startswith("state.") and not names.is_repeated(name):
            parts = names.to_ours(name.removeprefix("state."), array, variant, n)
            state |= {ours: _tensor(part) for ours, part in parts.items()}
    model.load_state_dict(state)
    return model


def trajectory_errors(meta: dict[str, Any], arrays: Arrays) -> dict[str, float]:
    """Relative errors of a training run: losses, gradient norms, learning rates, logits."""
    model = golden_model(meta, arrays)
    tokens = torch.tensor(arrays["tokens"].astype(np.int64))  # (steps, accumulation, B, T + 1)
    first = tokens[0, 0]

    loss_initial = model.loss(first)
    loss_initial.backward()
    squares = {
        name: float(p.grad.square().sum())
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    norms = json.loads(str(arrays["grad_norm_names"]))
    pairs: dict[str, tuple[Any, Any]] = {}
    for name, theirs in norms.items():
        parts = names.parts_of(name)
        pairs[f"grad_norm.{name}"] = (sum(squares[part] for part in parts) ** 0.5, theirs)
    errors = relative_errors(pairs)
    logits = model(first[:, :-1])
    model.zero_grad(set_to_none=True)

    optimizer = AdamW(model, tuple(meta["betas"]), meta["weight_decay"])
    losses, grad_norms, rates = [], [], []
    for step, batches in enumerate(tokens):
        total = 0.0
        for batch in batches:
            loss = model.loss(batch) / len(batches)
            loss.backward()
            total += loss.item()
        rate = learning_rate(
            step, meta["learning_rate"], meta["min_lr"], meta["warmup_steps"], meta["steps"]
        )
        losses.append(total)
        rates.append(rate)
        grad_norms.append(optimizer.update(rate, meta["grad_clip"]).all.item())
    ours = {
        "loss_initial": loss_initial,
        "loss_final": model.loss(first),
        "losses": losses,
        "grad_norms": grad_norms,
        "learning_rates": rates,
        "logits": logits,
    }
    # Each on its own scale: a learning rate is small and exact.
    for name, value in ours.items():
        errors |= relative_errors({name: (value, arrays[name])})
    return errors


COMPARE = {
    "connection": connection_errors,
    "head": head_errors,
    "trajectory": trajectory_errors,
}


def check_file(path: Path) -> tuple[str, dict[str, float]]:
    """(kind, relative error of everything compared) for a golden file."""
    meta, arrays = read_golden(path)
    try:
        return meta["kind"], COMPARE[meta["kind"]](meta, arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: the file does not fit its own `meta`: {reason}") from None


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite conformance`."""
    parser.add_argument("file", nargs="+", type=file_path, help="golden file (.npz)")


def run(args: argparse.Namespace) -> int:
    """Compare every file; exit code 1 if any disagrees."""
    from tabulate import tabulate

    all_agree = True
    for path in args.file:
        kind, errors = check_file(path)
        tolerance = TOLERANCE[kind]
        rows = [(name, f"{error:.1e}") for name, error in errors.items()]
        print(f"\n{path} ({kind})")
        print(tabulate(rows, headers=("quantity", "largest relative error")))
        agrees = max(errors.values()) <= tolerance
        print(f"{'agrees' if agrees else 'DISAGREES'} within {tolerance:g}")
        all_agree &= agrees
    return 0 if all_agree else 1
