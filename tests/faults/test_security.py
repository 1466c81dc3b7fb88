"""Names, paths and files that somebody chose with bad intent, or with an apostrophe in them."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))
from checkout import ROOT, Checkout

from mhclite.authors import conformance, exchange
from mhclite.errors import UserError
from mhclite.files import sha256_of, write_json
from mhclite.study.load import parse_study
from mhclite.tracking import server as ui
from mhclite.training.checkpoint import load_checkpoint

SMOKE = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
NASTY = ("a b", "a'b", 'a"b', "a\nb", "../up", "/abs", "$(id)", "`id`", "a;b", "-x", "")


class Exploit:
    """Unpickling this makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.one_of(st.sampled_from(NASTY), st.text(max_size=20)), st.integers(0, 2))
@example("ok", 0)
def test_names_are_words_or_refused(name: str, place: int) -> None:
    """Names of studies, corpora and models become folders, words of commands, MLflow filters."""
    study, corpus, model = (name if at == place else f"ok{at}" for at in range(3))
    content = {**SMOKE, "name": study, "conditions": {}}
    content["corpora"] = {corpus: SMOKE["corpora"]["sotu"]}
    content["models"] = {model: SMOKE["models"]["d2"]}
    said = ""
    try:
        parse_study(content)
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
    if not said:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
        assert 0 < len(name) <= 40


@pytest.mark.parametrize("pattern", ["results/**/*.txt", "a/../results/x.txt"])
def test_a_corpus_cannot_be_made_of_results(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "results" / "x.txt").write_text("text")
    (tmp_path / "mine.txt").symlink_to(tmp_path / "results" / "x.txt")
    for files in (pattern, "*.txt"):
        corpora = {"mine": {"source": "files", "files": files}}
        with pytest.raises(UserError, match="a corpus cannot be made of results/"):
            parse_study({**SMOKE, "corpora": corpora})


def test_awkward_names_work_and_secrets_do_not_reach_results(tmp_path: Path) -> None:
    """Through Snakemake and its shell. Blanks, quotes and a dollar sign are in the paths of the
    checkout and of the study file; provenance, logs and configuration of the jobs hold nothing of
    the environment."""
    checkout = Checkout(tmp_path / 'it\'s a $HOME of "mine"')
    checkout.environment |= {
        "MLFLOW_TRACKING_PASSWORD": "s3cret-of-mlflow",
        "HF_TOKEN": "s3cret-of-the-hub",
        "AWS_SECRET_ACCESS_KEY": "s3cret-of-storage",
    }
    study = {**SMOKE, "conditions": {}, "variants": ["residual"], "seeds": [0]}
    (checkout.folder / "my 'study'.yaml").write_text(yaml.safe_dump(study))
    target = "results/smoke/probes.json"
    code, output = checkout.snakemake(target, study="my 'study'.yaml")
    assert code == 0, output
    assert (checkout.folder / target).exists()
    assert (checkout.folder / "results/smoke/runs/sotu-d2-residual-s0/run.json").exists()
    assert "s3cret" not in output
    found = subprocess.run(
        ["grep", "-rl", "s3cret", "results", ".snakemake"],
        cwd=checkout.folder,
        capture_output=True,
        text=True,
    )
    assert found.stdout == ""


# --- files that another might have written -----------------------------------------------------


def test_pickles_are_refused(tmp_path: Path) -> None:
    """As a checkpoint of ours, as the authors', and as a golden file."""
    made, folder = tmp_path / "made", tmp_path / "checkpoints"
    folder.mkdir()
    state = folder / "step_000000001.pt"
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))):
        save({"model": Exploit(made), "model_args": {}, "config": {}}, state)
        meta = {"schema": 1, "step": 1, "key": "k", "sha256": sha256_of(state)}
        write_json(state.with_suffix(".json"), meta)
        with pytest.raises(UserError, match="all checkpoints"):
            load_checkpoint(folder, "k")
        with pytest.raises(UserError):
            exchange.read_checkpoint(state)
    np.savez(tmp_path / "golden.npz", meta=np.array([Exploit(made)], dtype=object))
    with pytest.raises(UserError, match="plain numbers"):
        conformance.read_golden(tmp_path / "golden.npz")
    assert not made.exists()


def test_no_code_unpickles_or_evaluates() -> None:
    """Each load names its safe mode; nothing calls eval, exec, a shell or yaml's full loader."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            place = f"{path.name}:{node.lineno}: {name}"
            assert name not in {"eval", "exec", "os.system", "os.popen", "yaml.load"}, place
            assert not name.startswith("pickle."), place
            assert "shell" not in given, place
            if name == "torch.load":
                assert ast.unparse(given["weights_only"]) == "True", place
            if name == "np.load":
                assert ast.unparse(given["allow_pickle"]) == "False", place


def test_the_mlflow_server_is_for_this_machine(tmp_path: Path) -> None:
    command = ui.server_command(tmp_path / "mlflow.db", 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1"
