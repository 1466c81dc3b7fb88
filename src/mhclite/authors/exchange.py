"""`python -m mhclite exchange`: checkpoints of the authors' repository (FFTYYY/mhc-lite, nanoGPT).

Import into a run folder, export from one; docs/exchange.md. Their `ckpt.pt` is a dictionary of
`model` (a state dict), `model_args`, `config`, `optimizer`, `iter_num` and `best_val_loss`. Its
tensors are renamed and transposed by `names`, never computed anew, so import and export give the
same bits back.
"""

from __future__ import annotations

import argparse
import logging
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhclite.arguments import file_path, folder_path
from mhclite.authors import names
from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.errors import UserError
from mhclite.files import sha256_of, write_json
from mhclite.measure.trained import IMPORTED, ImportedModel, read_trained
from mhclite.measure.trained import SCHEMA as IMPORTED_SCHEMA
from mhclite.model import GPT
from mhclite.records import build, to_json
from mhclite.runs.folder import WEIGHTS
from mhclite.training.checkpoint import save_tensors

SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
VARIANT_OF = {"none": "residual"}  # their `hyper_conn_type` where it is not our name
EXPECTED = (
    "expected a checkpoint of the authors' repository: a dictionary of model, model_args, config, "
    "optimizer, iter_num"
)
SHOWN = 5  # names of tensors in an error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TheirCheckpoint:
    """What a ckpt.pt holds, under our names."""

    model: ModelConfig
    connection: ConnectionConfig
    state: dict[str, Tensor]
    steps: int


def _load(path: Path) -> dict[str, Any]:
    """The file's content: a dictionary with tensors under `model` and settings beside them."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if zipfile.is_zipfile(path):  # older files are none; torch compares no checksum
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # whatever the damage leads torch to
        reason = " ".join(str(error).split())[:120]
        if isinstance(error, pickle.UnpicklingError):  # torch says how to run the file's code
            reason = "it holds more than tensors, numbers and text, or is no file of torch.save"
        raise UserError(f"{path} is not a checkpoint that can be read safely: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, {EXPECTED}")
    # None is how some programs write what they do not have.
    found = {**content, "config": content.get("config") or {}}
    for key in ("model", "model_args", "config"):
        if not isinstance(found.get(key), dict):
            raise UserError(f"{path} lacks {key!r}, or it is no dictionary, {EXPECTED}")
    for name, tensor in found["model"].items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: model[{name!r:.60}] is no tensor, {EXPECTED}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{path}: {name} has NaN or infinity: the model had diverged")
    return found


def _whole(value: Any, what: str, path: Path, least: int) -> int:
    """A setting that is a whole number of at least `least`."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if type(number) is not int or number < least:
        raise UserError(
            f"{path}: {what} is {value!r:.60}, expected a whole number, {least} or more"
        )
    return number


def _connection_of(
    state: dict[str, Tensor], settings: dict[str, Any], path: Path
) -> tuple[str, int]:
    """(variant, n_streams), from what the file states and the shapes of its tensors."""
    stated = settings.get("hyper_conn_type")
    beta = next((t for name, t in state.items() if name.endswith(".static_beta")), None)
    if beta is None:
        if stated not in (None, "none"):
            raise UserError(f"{path} says {stated!r} but has no hyper-connection tensors")
        return "residual", 1
    n = beta.numel()
    alpha = next((t for name, t in state.items() if name.endswith(".static_alpha")), None)
    if alpha is None:
        raise UserError(f"{path} lacks tensors of the authors' code: static_alpha")
    if alpha.dim() == 2:
        hc = any(name.endswith(".dynamic_alpha_scale") for name in state)
        found = "hc" if hc else "mhc"
    else:
        logits = alpha.numel() - n
        # With two streams both have two logits, with the same meaning: what is stated decides.
        widths = {"mhc_lite": math.factorial(n), "kromhc": 2 * (n.bit_length() - 1)}
        possible = [variant for variant, width in widths.items() if width == logits]
        if not possible:
            raise UserError(
                f"{path} has {logits} residual logits for {n} streams, which fits neither mhc_lite "
                f"({math.factorial(n)}) nor kromhc"
            )
        found = str(stated) if stated in possible else possible[0]
    variant = VARIANT_OF.get(str(stated), str(stated)) if stated is not None else found
    if variant != found:
        raise UserError(f"{path} says {stated!r}, but its tensors are those of {found}")
    return found, n


def read_checkpoint(path: Path) -> TheirCheckpoint:
    """Read a ckpt.pt of the authors; `UserError` names unknown and missing tensors."""
    content = _load(path)
    settings = {**content["config"], **content["model_args"]}
    missing = [name for name in SIZES if name not in settings]
    if missing:
        raise UserError(f"{path}: neither model_args nor config says {missing[0]!r}")
    if settings.get("bias"):
        raise UserError(f"{path} has biases (bias = True); the paper's models have none")
    state = {names.without_wrappers(name): tensor for name, tensor in content["model"].items()}
    variant, n = _connection_of(state, settings, path)
    sizes = {name: _whole(settings[name], name, path, 1) for name in SIZES}
    if sizes["n_embd"] % sizes["n_head"]:
        raise UserError(f"{path}: n_head = {sizes['n_head']} does not divide n_embd")
    # Before a model of these sizes is made.
    for table, first in (("wte", "vocab_size"), ("wpe", "block_size")):
        name, shape = f"transformer.{table}.weight", (sizes[first], sizes["n_embd"])
        if name in state and state[name].shape != shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(state[name].shape)}, expected {shape}"
            )
    # The learning rate plays no part in a model whose training has ended.
    model = build(ModelConfig, {"name": "imported", "learning_rate": 0.0, **sizes})
    options = {"sinkhorn_iterations": 20} if variant == "mhc" else {}
    connection = ConnectionConfig(variant, n, options=options)
    expected = _their_shapes(model, connection)
    _check_names(state, expected, path)
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not names.is_repeated(name):
            half = tensor.dtype in (torch.bfloat16, torch.float16)  # numpy has no bfloat16
            array = (tensor.float() if half else tensor).detach().numpy()
            parts = names.to_ours(name, array, variant, n)
            ours |= {own: tensor_of(part) for own, part in parts.items()}
    steps = _whole(content.get("iter_num") or 0, "iter_num", path, 0)
    return TheirCheckpoint(model, connection, ours, steps)


def tensor_of(array: names.Array) -> Tensor:
    """A tensor with the array's values and shape."""
    # `ascontiguousarray` makes a vector of a scalar, hence the reshape.
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def _their_shapes(model: ModelConfig, connection: ConnectionConfig) -> dict[str, torch.Size]:
    """Their names and shapes for a model of these sizes."""
    state = {name: value.numpy() for name, value in GPT(model, connection, 0).state_dict().items()}
    theirs = names.to_theirs(state, connection.variant, connection.n_streams)
    return {name: torch.Size(array.shape) for name, array in theirs.items()}


def _check_names(state: dict[str, Tensor], expected: dict[str, torch.Size], path: Path) -> None:
    """`UserError` for tensors that are unknown, missing or of another shape."""
    missing = {name for name in expected.keys() - state.keys() if not names.is_repeated(name)}
    unknown = state.keys() - expected.keys()
    if missing or unknown:
        what = "has tensors unknown to" if unknown else "lacks tensors of"
        listed = ", ".join(sorted(unknown or missing)[:SHOWN])
        raise UserError(f"{path} {what} the authors' code, the first: {listed}")
    for name, tensor in state.items():
        if tensor.shape != expected[name]:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name])}"
            )


def import_checkpoint(path: Path, folder: Path) -> None:
    """Make a folder to evaluate and probe: the weights, and where they are from."""
    theirs = read_checkpoint(path)
    folder.mkdir(parents=True, exist_ok=True)
    imported = ImportedModel(
        schema=IMPORTED_SCHEMA,
        source=str(path),
        source_sha256=sha256_of(path),
        steps=theirs.steps,
        model=theirs.model,
        connection=theirs.connection,
        weights_sha256=save_tensors(folder / WEIGHTS, theirs.state),
    )
    write_json(folder / IMPORTED, to_json(imported))
    variant, n = theirs.connection.variant, theirs.connection.n_streams
    log.info("%s: %s, %d streams, %d steps, in %s", path, variant, n, theirs.steps, folder)


def export(folder: Path, path: Path) -> None:
    """Write a finished run's weights as a ckpt.pt that the authors' analysis reads."""
    trained = read_trained(folder)
    variant, n = trained.connection.variant, trained.connection.n_streams
    model, options = trained.model, trained.connection.options
    foreign = {
        f"the variant {variant} (theirs are {', '.join(names.VARIANTS)})": variant
        not in names.VARIANTS,
        "final_norm = 'head'": trained.connection.final_norm == "head",
        "qk_norm or a widened MLP": model.qk_norm or model.mlp_width is not None,
        "permutations = 'cyclic'": options.get("permutations") == "cyclic",
    }
    for what in (name for name, here in foreign.items() if here):
        raise UserError(f"{folder} has {what}, which the authors' code does not have")
    if not trained.has_weights:
        raise UserError(f"{folder} diverged: it has no final weights")
    state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    arrays = names.to_theirs({name: t.numpy() for name, t in state.items()}, variant, n)
    theirs = {ours: theirs for theirs, ours in VARIANT_OF.items()}.get(variant, variant)
    model_args = {name: getattr(trained.model, name) for name in SIZES} | {
        "bias": False,
        "dropout": 0.0,
        "hyper_conn_type": theirs,
        "hyper_conn_n": n,
    }
    save_tensors(
        path,
        {
            "model": {name: tensor_of(array) for name, array in arrays.items()},
            "optimizer": None,
            "model_args": model_args,
            "iter_num": trained.steps,
            "best_val_loss": trained.best_validation_loss,
            "config": {"hyper_conn_type": theirs, "hyper_conn_n": n},
        },
    )
    log.info("%s written", path)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite exchange`."""
    actions = parser.add_subparsers(dest="action", required=True)
    incoming = actions.add_parser("import", help="a ckpt.pt of the authors into a run folder")
    incoming.add_argument("checkpoint", type=file_path, help="their ckpt.pt")
    incoming.add_argument("--out", required=True, type=folder_path, help="run folder to write")
    outgoing = actions.add_parser("export", help="a finished run as a ckpt.pt of the authors")
    outgoing.add_argument("run", type=folder_path, help="run folder")
    outgoing.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Import or export one checkpoint."""
    if args.action == "export":
        export(args.run, args.out)
    else:
        import_checkpoint(args.checkpoint, args.out)
