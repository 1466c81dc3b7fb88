"""Import of the authors' checkpoints into a run folder, export from one; see docs/exchange.md."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from mhclite.arguments import run_config_argument
from mhclite.authors import names
from mhclite.authors.checkpoint import SIZES, VARIANT_OF, read_checkpoint, tensor_of
from mhclite.data.shards import load_manifest
from mhclite.errors import UserError
from mhclite.files import read_json, sha256_of, write_json
from mhclite.model import DEFAULTS, GPT
from mhclite.runs.key import code_of, run_key
from mhclite.runs.provenance import provenance
from mhclite.training.checkpoint import save_checkpoint, save_tensors
from mhclite.training.loop import SCHEMA, STEP_FILES
from mhclite.training.optimizer import AdamW

log = logging.getLogger(__name__)


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
    """Make a run folder to evaluate and probe: run.json, weights.pt, summary.json."""
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
    """Make a run folder with a checkpoint, which `train` continues with the same arguments."""
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
            f"{path} has done {theirs.steps} steps and the run's configuration ends at "
            f"{config['training']['steps']}: there is nothing to continue; raise training.steps"
        )
    if (folder / "run.json").exists():
        raise UserError(f"{folder} already holds a run; name another folder")
    model = GPT(config["model"], config["connection"], config["seed"])
    model.load_state_dict(theirs.state)
    optimizer = AdamW(model, tuple(config["training"]["betas"]), config["training"]["weight_decay"])
    if theirs.optimizer is None:
        log.warning("%s has no optimizer state: AdamW starts from zero averages", path)
    else:
        name_of = {id(parameter): name for name, parameter in model.named_parameters()}
        for parameter in optimizer.exp_avg:
            entry = theirs.optimizer[name_of[id(parameter)]]
            optimizer.exp_avg[parameter].copy_(entry["exp_avg"])
            optimizer.exp_avg_sq[parameter].copy_(entry["exp_avg_sq"])
            optimizer.updates[parameter].copy_(entry["step"])
    manifest = load_manifest(corpus)
    key = run_key(config, manifest["digest"])
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
        "digest": manifest["digest"],
        "manifest": str(corpus / "manifest.json"),
    }
    write_json(folder / "run.json", _record(config, key, path, corpus=data))
    log.info("step %d of %s is in %s: `train` continues it", theirs.steps, path, folder)


def export(folder: Path, path: Path) -> None:
    """Write a finished run's weights as a ckpt.pt that the authors' analysis reads."""
    config = read_json(folder / "run.json", "run")["config"]
    summary = read_json(folder / "summary.json", "summary")
    variant, n = config["connection"]["variant"], config["connection"]["n_streams"]
    if variant not in names.VARIANTS:
        raise UserError(
            f"{variant} has no counterpart in the authors' code; those that have one are "
            f"{', '.join(names.VARIANTS)}"
        )
    if summary["status"] != "completed":
        raise UserError(f"{folder} diverged: it has no final weights")
    state = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
    arrays = names.to_theirs({name: t.numpy() for name, t in state.items()}, variant, n)
    theirs = {ours: theirs for theirs, ours in VARIANT_OF.items()}.get(variant, variant)
    model_args = {name: config["model"][name] for name in SIZES} | {
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
    incoming.add_argument("--out", required=True, type=Path, help="run folder to write")
    incoming.add_argument(
        "--config", help="resolved run configuration, JSON or @FILE: continue training as this run"
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
        config = run_config_argument(args.config)
        import_to_continue(args.checkpoint, args.out, config, args.corpus)
