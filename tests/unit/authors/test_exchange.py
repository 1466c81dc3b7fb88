"""Checkpoints of the authors' repository: there and back, and what is refused."""

from __future__ import annotations

import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import configuration, write_corpus

from mhclite.authors.conformance import golden_model, read_golden
from mhclite.authors.exchange import read_checkpoint
from mhclite.cli import main
from mhclite.data.tokens import TokenSplit
from mhclite.errors import UserError
from mhclite.files import read_json
from mhclite.measure.trained import evaluation, load_trained, read_trained
from mhclite.training.loop import train

GOLDEN = Path(__file__).parents[2] / "golden"
TRAJECTORIES = sorted(GOLDEN.glob("trajectory_*.npz"))


def their_state(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    meta, arrays = read_golden(path)
    state = {k[6:]: torch.tensor(v) for k, v in arrays.items() if k.startswith("state.")}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return meta, state


def write_ckpt(path: Path, golden: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A ckpt.pt as their training script writes it, of the golden initial weights."""
    meta, state = their_state(golden)
    kind = {"residual": "none"}.get(meta["variant"], meta["variant"])
    sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    content = {
        "model": state,
        "optimizer": None,
        "model_args": {**{k: meta[k] for k in sizes}, "bias": False, "dropout": 0.0},
        "iter_num": 7,
        "best_val_loss": 3.0,
        "config": {"hyper_conn_type": kind, "hyper_conn_n": meta["n_streams"]},
        **changes,
    }
    torch.save(content, path)
    return meta, content


@pytest.mark.parametrize("golden", TRAJECTORIES, ids=lambda p: p.stem)
@pytest.mark.parametrize("stated", [True, False])
def test_import_and_export_give_the_same_bits(tmp_path: Path, golden: Path, stated: bool) -> None:
    ckpt = tmp_path / "ckpt.pt"
    meta, content = write_ckpt(ckpt, golden, **({} if stated else {"config": {}}))
    folder = tmp_path / "runs" / "theirs"
    assert main(["exchange", "import", str(ckpt), "--out", str(folder)]) == 0
    record = read_json(folder / "imported.json")
    assert record["connection"]["variant"] == meta["variant"]
    assert record["steps"] == 7
    assert main(["exchange", "export", str(folder), "--out", str(tmp_path / "back.pt")]) == 0
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back["model"].keys() == content["model"].keys()
    for name, tensor in content["model"].items():
        assert back["model"][name].shape == tensor.shape, name
        assert torch.equal(back["model"][name], tensor), name
    assert back["model_args"]["n_layer"] == meta["n_layer"]


@pytest.mark.parametrize("golden", TRAJECTORIES, ids=lambda p: p.stem)
def test_an_imported_model_computes_their_loss(tmp_path: Path, golden: Path) -> None:
    meta, arrays = read_golden(golden)
    write_ckpt(tmp_path / "ckpt.pt", golden, config={})
    folder = tmp_path / "theirs"
    main(["exchange", "import", str(tmp_path / "ckpt.pt"), "--out", str(folder)])
    tokens = arrays["tokens"][0, 0]  # (B, T + 1)
    (tmp_path / "val.bin").write_bytes(tokens[0].astype("<u2").tobytes())
    model, device = load_trained(read_trained(folder))
    found = evaluation(model, TokenSplit([tmp_path / "val.bin"]), None, device)
    reference = golden_model(meta, arrays).loss(torch.tensor(tokens[:1].astype(np.int64)))
    assert found.loss == pytest.approx(reference.item(), rel=1e-5)
    if meta["variant"] != "residual":
        probe = ["probe", "--runs", str(folder.parent), "--run", folder.name, "--sequences", "1"]
        corpus = write_corpus(tmp_path / "corpus", meta["vocab_size"])
        assert main([*probe, "--corpus", str(corpus), "--out", str(tmp_path / "probes")]) == 0
        mixing = read_json(tmp_path / "probes" / f"{folder.name}.json")["mixing"]
        assert len(mixing["identity_distance"]) == 2 * meta["n_layer"]


def test_unknown_and_missing_tensors_are_named(tmp_path: Path) -> None:
    golden = GOLDEN / "trajectory_mhc.npz"
    path = tmp_path / "ckpt.pt"
    _, state = their_state(golden)
    write_ckpt(path, golden, model={**state, "transformer.h.0.extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"transformer\.h\.0\.extra"):
        read_checkpoint(path)
    gone = "transformer.h.1.hc_mlp.static_beta"
    write_ckpt(path, golden, model={k: v for k, v in state.items() if k != gone})
    with pytest.raises(UserError, match=r"lacks.*static_beta"):
        read_checkpoint(path)
    wide = {**state, "transformer.ln_f.weight": torch.ones(17)}
    write_ckpt(path, golden, model=wide)
    with pytest.raises(UserError, match=r"ln_f\.weight has shape \(17,\), expected \(16,\)"):
        read_checkpoint(path)


def test_prefixes_of_wrapped_models_are_dropped(tmp_path: Path) -> None:
    """Of compiled and distributed ones; `config` may be None."""
    golden = GOLDEN / "trajectory_residual.npz"
    _, state = their_state(golden)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    write_ckpt(tmp_path / "plain.pt", golden)
    write_ckpt(tmp_path / "other.pt", golden, model=wrapped, config=None, iter_num=None)
    plain, found = (read_checkpoint(tmp_path / f"{name}.pt") for name in ("plain", "other"))
    assert found.state.keys() == plain.state.keys()
    assert found.steps == 0


@pytest.mark.parametrize(
    ("place", "name", "value", "message"),
    [
        (None, "model", [1], "lacks 'model', or it is no dictionary"),
        (None, "iter_num", "many", "iter_num is 'many', expected a whole number"),
        ("model_args", "n_head", 3, "n_head = 3 does not divide"),
        ("model_args", "vocab_size", 10**12, r"wte\.weight has shape"),
        ("model", "transformer.ln_f.weight", torch.full((16,), math.nan), "has NaN"),
    ],
)
def test_odd_checkpoints_are_one_line(
    tmp_path: Path, place: str | None, name: str, value: Any, message: str
) -> None:
    path = tmp_path / "ckpt.pt"
    _, content = write_ckpt(path, GOLDEN / "trajectory_mhc.npz")
    (content[place] if place else content)[name] = value
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_tensor_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    write_ckpt(path, GOLDEN / "trajectory_mhc.npz")
    with zipfile.ZipFile(path) as archive:  # each tensor is a file of its own
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    data[largest.header_offset + largest.file_size // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match="checksum"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("variant", "settings", "said"),
    [
        ("jpmhc", {}, "the variant jpmhc"),
        ("mhc", {"final_norm": "head"}, "final_norm = 'head'"),
    ],
)
def test_what_has_no_counterpart_is_not_exported(
    variant: str,
    settings: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configuration(variant, steps=3)
    config = replace(config, connection=replace(config.connection, **settings))
    train(config, write_corpus(tmp_path / "corpus"), tmp_path / "run")
    assert main(["exchange", "export", str(tmp_path / "run"), "--out", str(tmp_path / "c.pt")]) == 2
    assert said in capsys.readouterr().err
