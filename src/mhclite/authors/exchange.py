"""Checkpoints of the authors' repository: import into a run folder, export from one.

Their `ckpt.pt` (FFTYYY/mhc-lite, after nanoGPT) is a dictionary of `model` (a state dict),
`model_args`, `config`, `optimizer`, `iter_num` and `best_val_loss`. Their tensors are renamed and
transposed by `authors`; nothing is computed anew, so import and export give the same bits back.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhclite.authors import names as authors
from mhclite.data.manifest import load_manifest
from mhclite.errors import UserError
from mhclite.files import read_json, sha256_of, write_json
from mhclite.model import DEFAULTS, GPT
from mhclite.runs.key import code_of, run_key
from mhclite.runs.provenance import provenance
from mhclite.training.checkpoint import save_checkpoint, save_tensors
from mhclite.training.loop import SCHEMA, STEP_FILES
from mhclite.training.optimizer import AdamW

SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
NAMES = {"none": "residual"}  # their `hyper_conn_type` where it is not our name
SHOWN = 5  # names of tensors in an error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TheirCheckpoint:
    """What is read of a ckpt.pt, under our names."""

    model: dict[str, Any]  # sizes, as in a resolved run configuration
    connection: dict[str, Any]
    state: dict[str, Tensor]
    steps: int
    optimizer: dict[str, dict[str, Tensor]] | None  # our name -> exp_avg, exp_avg_sq, step


def _load(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is not a checkpoint that can be read safely: {reason}") from None
    missing = [key for key in ("model", "model_args") if key not in dict(content)]
    if missing:
        raise UserError(
            f"{path} is no checkpoint of the authors' repository: it lacks {missing[0]!r}; "
            "expected are model, model_args, config, optimizer, iter_num"
        )
    return dict(content)


def _connection_of(
    state: dict[str, Tensor], settings: dict[str, Any], path: Path
) -> tuple[str, int]:
    """(variant, n_streams), from what the file says and the shapes of its tensors."""
    stated = settings.get("hyper_conn_type")
    beta = next((t for name, t in state.items() if name.endswith(".static_beta")), None)
    if beta is None:
        if stated not in (None, "none"):
            raise UserError(f"{path} says {stated!r} but has no hyper-connection tensors")
        return "residual", 1
    n = beta.numel()
    alpha = next(t for name, t in state.items() if name.endswith(".static_alpha"))
    if alpha.dim() == 2:
        hc = any(name.endswith(".dynamic_alpha_scale") for name in state)
        found = "hc" if hc else "mhc"
    else:
        logits = alpha.numel() - n
        # With two streams both are the same pair of weights.
        widths = {"mhc_lite": math.factorial(n), "kromhc": 2 * (n.bit_length() - 1)}
        possible = [variant for variant, width in widths.items() if width == logits]
        if not possible:
            raise UserError(
                f"{path}: {logits} residual logits for {n} streams are those of neither mhc_lite "
                f"({math.factorial(n)}) nor kromhc"
            )
        found = str(stated) if stated in possible else possible[0]
    variant = NAMES.get(str(stated), str(stated)) if stated is not None else found
    if variant != found:
        raise UserError(f"{path} says {stated!r}, but its tensors are those of {found}")
    return found, n


def read_checkpoint(path: Path) -> TheirCheckpoint:
    """Read a ckpt.pt of the authors; `UserError` names unknown and missing tensors."""
    content = _load(path)
    settings = {**content.get("config", {}), **content["model_args"]}
    missing = [name for name in SIZES if name not in settings]
    if missing:
        raise UserError(f"{path}: neither model_args nor config says {missing[0]!r}")
    if settings.get("bias"):
        raise UserError(f"{path} has biases (bias = True); the paper's models have none")
    state = {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor
        for name, tensor in content["model"].items()
    }
    variant, n = _connection_of(state, settings, path)
    model = {"name": "imported", **{name: int(settings[name]) for name in SIZES}}
    connection: dict[str, Any] = {"variant": variant, "n_streams": n, **DEFAULTS}
    if variant == "mhc":
        connection["sinkhorn_iterations"] = 20
    expected = _their_shapes(model, connection)
    _check_names(state, expected, path)
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not authors.is_repeated(name):
            ours |= _renamed(name, tensor, variant, n)
    return TheirCheckpoint(
        model,
        connection,
        ours,
        int(content.get("iter_num", 0)),
        _read_optimizer(content.get("optimizer"), state, variant, n, path),
    )


def _renamed(name: str, tensor: Tensor, variant: str, n: int) -> dict[str, Tensor]:
    half = tensor.dtype in (torch.bfloat16, torch.float16)  # numpy has no bfloat16
    array = (tensor.float() if half else tensor).detach().numpy()
    parts = authors.to_ours(name, array, variant, n)
    return {ours: _tensor(part) for ours, part in parts.items()}


def _tensor(array: authors.Array) -> Tensor:
    # numpy makes a scalar a vector when it copies it.
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def _their_shapes(model: dict[str, Any], connection: dict[str, Any]) -> dict[str, torch.Size]:
    """Their names and shapes for a model of these sizes."""
    state = {name: value.numpy() for name, value in GPT(model, connection, 0).state_dict().items()}
    theirs = authors.to_theirs(state, connection["variant"], connection["n_streams"])
    return {name: torch.Size(array.shape) for name, array in theirs.items()}


def _check_names(state: dict[str, Tensor], expected: dict[str, torch.Size], path: Path) -> None:
    """`UserError` for tensors that are unknown, missing or of another shape."""

    def listed(names: list[str]) -> str:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return ", ".join(names[:SHOWN]) + more

    unknown = sorted(state.keys() - expected.keys())
    missing = sorted(
        name for name in expected.keys() - state.keys() if not authors.is_repeated(name)
    )
    if unknown:
        raise UserError(f"{path} has tensors that the authors' code does not: {listed(unknown)}")
    if missing:
        raise UserError(f"{path} lacks tensors of the authors' code: {listed(missing)}")
    for name, tensor in state.items():
        if tensor.shape != expected[name]:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name])}"
            )


def _parameter_order(state: dict[str, Tensor]) -> list[str]:
    """Their parameters in the order of their optimizer: two or more dimensions first."""
    names = [name for name in state if not authors.is_repeated(name)]
    return [name for name in names if state[name].dim() >= 2] + [
        name for name in names if state[name].dim() < 2
    ]


def _read_optimizer(
    saved: Any, state: dict[str, Tensor], variant: str, n: int, path: Path
) -> dict[str, dict[str, Tensor]] | None:
    """AdamW's averages under our names; None where the file has none."""
    if not saved or not saved.get("state"):
        return None
    order = _parameter_order(state)
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    if len(indices) != len(order):
        raise UserError(
            f"{path}: its optimizer knows {len(indices)} parameters, its model has {len(order)}"
        )
    result: dict[str, dict[str, Tensor]] = {}
    for index, name in zip(indices, order, strict=True):
        entry = saved["state"][index]
        if entry["exp_avg"].shape != state[name].shape:
            raise UserError(f"{path}: the optimizer's averages of {name} have another shape")
        for kind in ("exp_avg", "exp_avg_sq"):
            for ours, part in _renamed(name, entry[kind], variant, n).items():
                result.setdefault(ours, {"step": torch.as_tensor(float(entry["step"]))})[kind] = (
                    part
                )
    return result


# --- import ---------------------------------------------------------------------------------


def _record(config: dict[str, Any], key: str, source: Path, **more: Any) -> dict[str, Any]:
    """run.json of an imported run."""
    origin = {"file": str(source), "sha256": sha256_of(source)}
    attempt = {"imported": origin, **provenance()}
    return {
        "schema": SCHEMA,
        "key": key,
        "code": code_of(config),
        "config": config,
        "provenance": attempt,
        "attempts": [attempt],
        "parameters": GPT(config["model"], config["connection"], 0).parameter_counts(),
        **more,
    }


def import_finished(path: Path, folder: Path) -> None:
    """A run folder to evaluate and probe: run.json, weights.pt, summary.json."""
    theirs = read_checkpoint(path)
    config = {
        "run": folder.name,
        "corpus": "imported",
        "condition": "base",
        "seed": 0,
        "model": theirs.model,
        "connection": theirs.connection,
        "training": {"device": "auto"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors(folder / "weights.pt", theirs.state)
    key = sha256_of(path)
    write_json(folder / "run.json", _record(config, key, path))
    write_json(
        folder / "summary.json",
        {
            "schema": SCHEMA,
            "run": folder.name,
            "key": key,
            "status": "completed",
            "steps": theirs.steps,
            "weights_sha256": weights,
        },
    )
    log.info(
        "%s: %s, %d streams, %d steps, imported into %s",
        path,
        theirs.connection["variant"],
        theirs.connection["n_streams"],
        theirs.steps,
        folder,
    )


def import_to_continue(path: Path, folder: Path, config: dict[str, Any], corpus: Path) -> None:
    """A run folder with a checkpoint, from which `train` with the same arguments goes on."""
    theirs = read_checkpoint(path)
    for section, found in (("model", theirs.model), ("connection", theirs.connection)):
        for name, value in found.items():
            wanted = config[section].get(name, value)
            if name not in ("name", *DEFAULTS) and wanted != value:
                raise UserError(
                    f"{path} has {section}.{name} = {value!r}, the run's configuration {wanted!r}"
                )
    if theirs.steps >= config["training"]["steps"]:
        raise UserError(
            f"{path} has done {theirs.steps} steps, the run's configuration ends at "
            f"{config['training']['steps']}: there is nothing to continue; raise training.steps"
        )
    if (folder / "run.json").exists():
        raise UserError(f"{folder} holds a run already; name another folder")
    model = GPT(config["model"], config["connection"], config["seed"])
    model.load_state_dict(theirs.state)
    optimizer = AdamW(model, tuple(config["training"]["betas"]), config["training"]["weight_decay"])
    if theirs.optimizer is None:
        log.warning("%s has no optimizer state: AdamW starts from zero averages", path)
    else:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for parameter in optimizer.exp_avg:
            entry = theirs.optimizer[names[id(parameter)]]
            optimizer.exp_avg[parameter].copy_(entry["exp_avg"])
            optimizer.exp_avg_sq[parameter].copy_(entry["exp_avg_sq"])
            optimizer.updates[parameter].copy_(entry["step"])
    manifest = load_manifest(corpus)
    key = run_key(config, manifest.digest)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        folder / "checkpoints",
        theirs.steps,
        key,
        {
            "model": model.state_dict(),
            "optimizer": optimizer.tensors(),
            "step": theirs.steps,
            "sizes": dict.fromkeys(STEP_FILES, 0),
        },
    )
    data = {
        "name": config["corpus"],
        "digest": manifest.digest,
        "manifest": str(corpus / "manifest.json"),
    }
    write_json(folder / "run.json", _record(config, key, path, corpus=data))
    log.info("step %d of %s is in %s: `train` continues it", theirs.steps, path, folder)


# --- export ---------------------------------------------------------------------------------


def export(folder: Path, path: Path) -> None:
    """Write a finished run's weights as a ckpt.pt that the authors' analysis reads."""
    config = read_json(folder / "run.json", "run")["config"]
    summary = read_json(folder / "summary.json", "summary")
    variant, n = config["connection"]["variant"], config["connection"]["n_streams"]
    if variant not in authors.VARIANTS:
        raise UserError(
            f"{variant} has no counterpart in the authors' code; those that have one are "
            f"{', '.join(authors.VARIANTS)}"
        )
    if summary["status"] != "completed":
        raise UserError(f"{folder} diverged: it has no final weights")
    state = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
    arrays = authors.to_theirs({name: t.numpy() for name, t in state.items()}, variant, n)
    theirs = {v: k for k, v in NAMES.items()}.get(variant, variant)
    model_args = {name: config["model"][name] for name in SIZES} | {
        "bias": False,
        "dropout": 0.0,
        "hyper_conn_type": theirs,
        "hyper_conn_n": n,
    }
    save_tensors(
        path,
        {
            "model": {name: _tensor(array) for name, array in arrays.items()},
            "optimizer": None,
            "model_args": model_args,
            "iter_num": summary["steps"],
            "best_val_loss": summary.get("best_validation_loss"),
            "config": {"hyper_conn_type": theirs, "hyper_conn_n": n},
        },
    )
    log.info("%s written", path)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite exchange`."""
    actions = parser.add_subparsers(dest="action", required=True)
    incoming = actions.add_parser("import", help="a ckpt.pt of the authors into a run folder")
    incoming.add_argument("checkpoint", type=Path, help="their ckpt.pt")
    incoming.add_argument("--out", required=True, type=Path, help="run folder to make")
    incoming.add_argument(
        "--config", help="resolved run configuration (JSON): continue training as this run"
    )
    incoming.add_argument("--corpus", type=Path, help="prepared corpus; with --config")
    outgoing = actions.add_parser("export", help="a finished run as a ckpt.pt of the authors")
    outgoing.add_argument("run", type=Path, help="run folder")
    outgoing.add_argument("--out", required=True, type=Path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Import or export one checkpoint."""
    if args.action == "export":
        export(args.run, args.out)
    elif args.config is None:
        import_finished(args.checkpoint, args.out)
    elif args.corpus is None:
        raise UserError("--config needs --corpus: the prepared corpus to continue on")
    else:
        try:
            config = json.loads(args.config)
        except json.JSONDecodeError as error:
            raise UserError(f"--config is not JSON: {error}") from None
        import_to_continue(args.checkpoint, args.out, config, args.corpus)
