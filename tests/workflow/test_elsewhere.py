"""A small twin of config/gpu.yaml: packed here, trained elsewhere in pieces, merged, drawn here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from checkout import ROOT, Checkout

from mhclite.files import read_json

OUT = Path("results/gpu")
STUDY = "config/small.yaml"
REPORT = str(OUT / "report.html")
# Without variables that add to a Python's modules.
BARE = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def small(study: Path) -> None:
    """config/gpu.yaml with a tiny model, few steps, two of its variants and one seed."""
    content = yaml.safe_load((ROOT / "config/gpu.yaml").read_text())
    content["corpora"]["sotu"] |= {"max_documents": 40, "validation_fraction": 0.1}
    content["tokenizer"] = {"kind": "bpe", "vocab_size": 384}
    content["models"]["s"] |= {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32}
    content |= {"variants": ["residual", "mhc"], "seeds": [0]}
    content["training"] |= {"steps": 200, "warmup_steps": 20, "batch_size": 4}
    content["training"] |= {"precision": "fp32", "compile": False, "device": "cpu"}
    content["training"] |= {"evaluation_interval": 100, "evaluation_sequences": 16}
    content["training"] |= {"checkpoint_interval": 20}
    content["throughput"] |= {"rounds": 2, "warmup_rounds": 1}
    content |= {"probe": {"sequences": 4}}
    study.write_text(yaml.safe_dump(content))


def bundle(checkout: Checkout, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m mhclite bundle` of the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "mhclite", "bundle", *arguments],
        cwd=checkout.folder,
        env=checkout.environment | {"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        timeout=200,
    )


def start(python: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`run.py` of a bundle."""
    return subprocess.Popen(
        [python, "run.py", *arguments],
        cwd=folder,
        env=BARE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def interrupt_a_run(process: subprocess.Popen[str], folder: Path) -> str:
    """SIGTERM once a run has a checkpoint; returns that run."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        for path in (folder / OUT / "runs").glob("*/checkpoints/*.json"):
            process.send_signal(signal.SIGTERM)
            return path.parents[1].name
        time.sleep(0.02)
    raise AssertionError("no checkpoint in two minutes")


def needed(*packages: str) -> set[str]:
    """The packages and all that they require."""
    found: set[str] = set()
    pending = list(packages)
    while pending:
        name = pending.pop()
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        if name not in found:
            found.add(name)
            plain = [entry for entry in requires if "extra ==" not in entry]
            pending += [re.split(r"[\s;<>=!~\[(]", entry)[0] for entry in plain]
    return found


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a machine that has torch, numpy and what these two need, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    for name in needed("torch", "numpy"):
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            place = Path(str(distribution.locate_file(top)))
            if place.exists() and not (site / top).exists():
                (site / top).symlink_to(place)
    python = folder / "bin" / "python"
    absent = ["pydantic", "snakemake", "pandas", "yaml", "scipy", "mhclite"]
    script = f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, env=BARE)
    assert done.stdout.strip() == "[]"
    return python


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The pipeline's machine, shared: a test that edits it puts it back."""
    found = Checkout(tmp_path_factory.mktemp("here"), own_source=True)
    small(found.folder / STUDY)
    return found


@pytest.mark.exhaustive
def test_from_packing_to_figures(checkout: Checkout, elsewhere: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    packed = bundle(checkout, "pack", STUDY, "--out", str(first / "small"))
    assert packed.returncode == 0, packed.stderr
    shutil.copytree(first, second)

    # A first allocation ends in the middle of a run.
    process = start(elsewhere, first / "small")
    run = interrupt_a_run(process, first / "small")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "saved" in output

    # A second machine goes on with what the first one had.
    shutil.move(first / "small/results/gpu", second / "small/results/gpu")
    process = start(elsewhere, second / "small")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "nothing is left" in output
    attempts = read_json(second / "small" / OUT / "runs" / run / "run.json")["attempts"]
    assert len(attempts) == 2
    assert attempts[0]["provenance"]["git"] == attempts[1]["provenance"]["git"]

    # Home without the weights.
    back = tmp_path / "back"
    shutil.copytree(second / "small" / OUT, back, ignore=shutil.ignore_patterns("weights.pt"))
    for what in ("2 runs and 3 other files are new", "0 runs and 0 other files are new"):
        merged = bundle(checkout, "merge", str(back), "--study", STUDY)
        assert merged.returncode == 0, merged.stderr
        assert what in merged.stdout

    code, output = checkout.snakemake(REPORT, study=STUDY)
    assert code == 0, output
    assert re.search(r"evidence +1", output)
    assert not re.search(r"(train|throughput) +\d", output)
    assert (checkout.folder / REPORT).is_file()
    runs = checkout.folder / OUT / "runs"
    assert not list(runs.glob("*/weights.pt")), "nothing was trained here"

    # Reruns are as exact as if it had been trained here.
    module = checkout.folder / "src/mhclite/connections/mhc.py"
    before = module.read_text()
    try:
        module.write_text(before + "\nADDED = 1\n")
        assert checkout.planned(REPORT, study=STUDY)["train"] == 1
        # And what is of other code is refused, with one line.
        refused = bundle(checkout, "merge", str(second / "small"), "--study", STUDY)
    finally:
        module.write_text(before)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert "1 of 2 runs" in refused.stderr
    assert "other code" in refused.stderr


@pytest.mark.exhaustive
def test_a_changed_bundle_does_not_start(
    checkout: Checkout, elsewhere: Path, tmp_path: Path
) -> None:
    packed = bundle(checkout, "pack", STUDY, "--out", str(tmp_path / "changed"))
    assert packed.returncode == 0, packed.stderr
    assert "run.py" in packed.stdout
    module = tmp_path / "changed/src/mhclite/model.py"
    module.write_text(module.read_text() + "\nADDED = 1\n")
    output, _ = (process := start(elsewhere, tmp_path / "changed")).communicate(timeout=60)
    assert process.returncode == 2, output
    assert "is not as it was packed" in output
    again = bundle(checkout, "pack", STUDY, "--out", str(tmp_path / "changed"))
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
