"""Import of the authors' checkpoints into a run folder, export from one; see docs/exchange.md."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from mhclite.arguments import file_path, folder_path
from mhclite.authors import names
from mhclite.authors.checkpoint import (
    SIZES,
    VARIANT_OF,
    TheirCheckpoint,
    read_checkpoint,
    tensor_of,
)
from mhclite.config import RunConfig
from mhclite.data.manifest import load_manifest
from mhclite.errors import UserError
from mhclite.files import sha256_of, write_json
from mhclite.measure.trained import IMPORTED, ImportedModel, read_trained
from mhclite.measure.trained import SCHEMA as IMPORTED_SCHEMA
from mhclite.model import GPT
from mhclite.records import to_json
from mhclite.runs.folder import CHECKPOINTS, STEP_FILES, WEIGHTS, CorpusRecord, Origin, RunFolder
from mhclite.runs.key import run_key
from mhclite.training.checkpoint import save_checkpoint, save_tensors
from mhclite.training.loop import new_record
from mhclite.training.optimizer import AdamW
from mhclite.training.train import run_config

log = logging.getLogger(__name__)


def import_finished(path: Path, folder: Path) -> None:
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
    log.info(
        "%s: %s, %d streams, %d steps, imported into %s",
        path,
        theirs.connection.variant,
        theirs.connection.n_streams,
        theirs.steps,
        folder,
    )


def _check_same(path: Path, theirs: TheirCheckpoint, config: RunConfig) -> None:
    """Refuse a checkpoint of another model than the run's."""
    found = {
        f"model.{name}": (getattr(theirs.model, name), getattr(config.model, name))
        for name in SIZES
    }
    for name in ("variant", "n_streams"):
        both = (theirs.connection, config.connection)
        found[f"connection.{name}"] = (getattr(both[0], name), getattr(both[1], name))
    for name, value in theirs.connection.options.items():
        found[f"connection.{name}"] = (value, config.connection.options.get(name, value))
    if config.connection.final_norm == "head":  # they normalise each stream
        found["connection.final_norm"] = (theirs.connection.final_norm, "head")
    for where, (value, wanted) in found.items():
        if wanted != value:
            raise UserError(f"{path} has {where} = {value!r}, the run's configuration {wanted!r}")


def import_to_continue(path: Path, out: Path, config: RunConfig, corpus: Path) -> None:
    """Make a run folder with a checkpoint, which `train` continues with the same arguments."""
    theirs = read_checkpoint(path)
    _check_same(path, theirs, config)
    if theirs.steps >= config.training.steps:
        raise UserError(
            f"{path} has done {theirs.steps} steps and the run's configuration ends at "
            f"{config.training.steps}: there is nothing to continue; raise training.steps"
        )
    folder = RunFolder(out)
    if folder.begun_key() is not None:
        raise UserError(f"{out} already holds a run; name another folder")
    model = GPT(config.model, config.connection, config.seed)
    model.load_state_dict(theirs.state)
    optimizer = AdamW(model, config.training.betas, config.training.weight_decay)
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
    key = run_key(config, manifest.digest)
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        folder / CHECKPOINTS,
        theirs.steps,
        key,
        {
            "model": model.state_dict(),
            "optimizer": optimizer.tensors(),
            "step": theirs.steps,
            "sizes": dict.fromkeys(STEP_FILES, 0),
        },
    )
    source = CorpusRecord(config.corpus, manifest.digest, str(corpus / "manifest.json"))
    origin = Origin(str(path), sha256_of(path))
    folder.begin(new_record(config, model, key, source, [], origin))
    log.info("step %d of %s is in %s: `train` continues it", theirs.steps, path, out)


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
    incoming.add_argument(
        "--config", help="resolved run configuration, JSON or @FILE: continue training as this run"
    )
    incoming.add_argument("--corpus", type=folder_path, help="prepared corpus; with --config")
    outgoing = actions.add_parser("export", help="a finished run as a ckpt.pt of the authors")
    outgoing.add_argument("run", type=folder_path, help="run folder")
    outgoing.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Import or export one checkpoint."""
    if args.action == "export":
        export(args.run, args.out)
    elif args.config is None:
        import_finished(args.checkpoint, args.out)
    elif args.corpus is None:
        raise UserError("--config needs --corpus: the prepared corpus to continue on")
    else:
        config = run_config(args.config)
        import_to_continue(args.checkpoint, args.out, config, args.corpus)
