"""Kills, bad studies, two workflows at once: each through Snakemake, as a user meets them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from checkout import ROOT, Checkout

from mhclite.errors import UserError
from mhclite.files import is_locked, locked, sha256_of
from mhclite.jobs import PREPARED
from mhclite.study.reading import load_study
from mhclite.training.loop import train

# The plainest, one with conditions and several sizes, and a sweep; test_study.py reads all.
STUDIES = [ROOT / f"config/{name}.yaml" for name in ("config", "paper", "tuned-rates")]
RUNS = ("sotu-d2-residual-s0", "sotu-d2-mhc_lite-s0")
TARGETS = [f"results/kill/runs/{run}/summary.json" for run in RUNS]


def write_study(path: Path, **changes: object) -> None:
    study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    study.update(changes)
    path.write_text(yaml.safe_dump(study))


def fingerprints(runs: Path) -> dict[str, str]:
    """SHA-256 of the metrics and final weights of every run."""
    return {
        f"{run}/{name}": sha256_of(runs / run / name)
        for run in RUNS
        for name in ("metrics.jsonl", "weights.pt")
    }


def wait_for_checkpoint(checkout: Checkout, process: subprocess.Popen[str]) -> int:
    """Wait until a run has a checkpoint; returns the process id that trains it."""
    deadline = time.monotonic() + 300
    folder = checkout.folder / "results/kill/runs"
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        for run in RUNS:
            unfinished = not (folder / run / "summary.json").exists()
            # The lock is empty for a moment: it is taken before the number is written.
            if (
                unfinished
                and list((folder / run / "checkpoints").glob("*.json"))
                and (number := (folder / run / "lock").read_text().strip())
            ):
                return int(number)
        time.sleep(0.05)
    raise AssertionError("no checkpoint in five minutes")


@pytest.mark.exhaustive
def test_kills_change_no_bit_of_the_result(tmp_path: Path) -> None:
    """kill -9 of a training process, then of all of Snakemake; the same command goes on."""
    training = {
        **yaml.safe_load((ROOT / "config/smoke.yaml").read_text())["training"],
        **{"steps": 150, "evaluation_interval": 40, "checkpoint_interval": 20},
    }
    changes = {"name": "kill", "variants": ["residual", "mhc_lite"], "seeds": [0]}
    killed = Checkout(tmp_path)
    write_study(tmp_path / "config/kill.yaml", training=training, **changes)

    # A training process dies: Snakemake reports it, and what it had saved stays.
    process = killed.start(*TARGETS, study="config/kill.yaml")
    os.kill(wait_for_checkpoint(killed, process), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output

    # Snakemake itself dies, its jobs go on without it: the same command waits for them.
    process = killed.start(*TARGETS, study="config/kill.yaml")
    wait_for_checkpoint(killed, process)
    process.kill()
    process.communicate(timeout=120)
    code, output = killed.snakemake(*TARGETS, study="config/kill.yaml")
    assert code == 0, output
    runs = tmp_path / "results/kill/runs"
    assert list(runs.glob("*/checkpoints")) == [], "a finished run keeps no checkpoints"

    (manifest,) = (tmp_path / "results/corpora").glob("*/manifest.json")
    for run, config in load_study(tmp_path / "config/kill.yaml").runs().items():
        if run in RUNS:
            train(config, manifest.parent, tmp_path / "undisturbed" / run)
    assert fingerprints(runs) == fingerprints(tmp_path / "undisturbed")


BAD_STUDIES = {
    "unknown key": ({"stepz": 3}, "stepz: unknown key"),
    "heads": (
        {"models": {"m": {"n_layer": 1, "n_head": 5, "n_embd": 32, "block_size": 8,
                          "learning_rate": 0.1}}},
        "n_head = 5 does not divide n_embd = 32",
    ),
    "kromhc with three": ({"connections": {"n_streams": 3}}, "n_streams = 3: kromhc"),
    "permutations": ({"connections": {"n_streams": 8}}, "40,320 permutations"),
    "no such files": (
        {"corpora": {"mine": {"source": "files", "files": "nowhere/*.txt"}}},
        "no file matches 'nowhere/*.txt'",
    ),
    "unknown corpus": ({"corpora": {"mine": {"source": "wikipedia"}}}, "not 'wikipedia'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STUDIES)
def test_a_bad_study_is_refused_with_one_line(name: str, tmp_path: Path) -> None:
    changes, expected = BAD_STUDIES[name]
    write_study(tmp_path / "bad.yaml", **changes)
    with pytest.raises(UserError) as caught:
        load_study(tmp_path / "bad.yaml")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no such files"])
def test_a_bad_study_stops_before_the_dag_with_that_line(name: str, tmp_path: Path) -> None:
    """Whatever is wrong, the workflow says what `parse_study` raises: a schema's complaint, and one
    of what the study names."""
    changes, expected = BAD_STUDIES[name]
    checkout = Checkout(tmp_path)
    write_study(tmp_path / "bad.yaml", **changes)
    code, output = checkout.snakemake(study="bad.yaml")
    lines = [line for line in output.splitlines() if not line.startswith("Using workflow")]
    assert code != 0
    assert len(lines) == 1, output
    assert lines[0].startswith("error: ")
    assert expected in lines[0]


def test_an_empty_study_file_is_not_the_default_study(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    (tmp_path / "empty.yaml").write_text("{}\n")
    code, output = checkout.snakemake("--dry-run", study="empty.yaml")
    assert code != 0
    assert "this key is missing" in output


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_every_study_plans(study: Path, tmp_path: Path) -> None:
    planned = Checkout(tmp_path).planned(study=f"config/{study.name}")
    described = load_study(study)
    if described.sweep:
        arms = len(described.arms())
        assert planned == {"prepare": 1, "sweep": arms, "rates": 1, "all": 1}
        return
    assert planned["train"] == len(described.runs())
    assert planned["prepare"] == len(described.corpora)
    assert planned["probe"] == planned["evidence"] == planned["track"] == 1


def test_snakemake_lint_has_one_complaint() -> None:
    """One environment holds Snakemake and all steps, so no rule names one of its own: what reads a
    study imports most of what the jobs do."""
    checked = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"], cwd=ROOT, capture_output=True, text=True
    )
    complaints = set(re.findall(r"^ +\* (.*?):?$", checked.stdout + checked.stderr, re.MULTILINE))
    assert complaints == {"Specify a conda environment or container for each rule."}


UNKNOWN = {
    "run": ("smoke/runs/sotu-d2-mhc-s7/summary.json", "sotu-d2-mhc-s1"),
    "digest of a corpus": (f"corpora/sotu-12345678/{PREPARED}", "sotu-"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_target_that_the_study_does_not_have(kind: str, tmp_path: Path) -> None:
    """Typed by hand; one line says what there is."""
    target, there = UNKNOWN[kind]
    checkout = Checkout(tmp_path)
    code, output = checkout.snakemake(f"results/{target}")
    assert code != 0
    assert "Traceback" not in output
    assert "InputFunctionException" not in output
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert target.split("/")[1 if "corpora" in target else 2].removesuffix(".json") in line
    assert there in line.split("of its")[1]


def write_importer(folder: Path, checkout: Checkout, more: str = "") -> Checkout:
    """Another workflow that imports this one."""
    importer = Checkout(folder / "importer")
    shutil.rmtree(importer.folder)
    importer.folder.mkdir()
    (importer.folder / "Snakefile").write_text(
        f"module mhclite:\n    snakefile: {str(checkout.folder / 'Snakefile')!r}\n"
        f"    config: config\n{more}"
        "use rule * from mhclite as mhclite_*\n"
        "rule all:\n    default_target: True\n    input: rules.mhclite_all.input\n"
    )
    return importer


def test_imported_as_a_module(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    study = str(checkout.folder / "config/smoke.yaml")
    importer = write_importer(tmp_path, checkout)
    assert importer.planned(study=study)["mhclite_train"] == 16
    code, output = importer.snakemake("--until", "mhclite_prepare", study=study)
    assert code == 0, output
    assert list((importer.folder / "results/corpora").glob("*/manifest.json"))


def test_a_module_keeps_its_place(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "checkout")
    importer = write_importer(tmp_path, checkout, "    prefix: 'sub'\n")
    code, output = importer.snakemake("-n", study=str(checkout.folder / "config/smoke.yaml"))
    assert code != 0
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert "prefix" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_known_before_the_first_job(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    training = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())["training"]
    write_study(tmp_path / "gpu.yaml", training={**training, "device": "cuda"})
    code, output = checkout.snakemake(study="gpu.yaml")
    assert code != 0
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert "torch sees no GPU" in line
    assert not (tmp_path / "results").exists()


def test_two_workflows_in_one_folder(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    lock = tmp_path / ".snakemake/mhclite.lock"
    working = checkout.start("--until", "prepare")
    assert working.stdout is not None
    held = [is_locked(lock) for line in working.stdout if "rule prepare:" in line]
    working.communicate(timeout=300)
    assert working.returncode == 0
    assert held == [True]  # while it works, and not only at its start
    assert not is_locked(lock)
    with locked(lock):
        code, output = checkout.snakemake()
    assert code != 0
    assert "another snakemake is working in" in output
    assert "prepare" not in output.split("another snakemake")[1]


def test_local_files_that_change_are_prepared_again(tmp_path: Path) -> None:
    """Rewritten, one more, and by a name that Snakemake would read as wildcards."""
    checkout = Checkout(tmp_path / "checkout")
    texts = checkout.folder / "texts {v1}"
    texts.mkdir()
    for i in range(30):
        (texts / f"{i}.txt").write_text(f"the union of these states, {i}")
    corpora = {"own": {"source": "files", "files": f"{texts}/*.txt", "validation_fraction": 0.3}}
    study = checkout.folder / "config/own.yaml"
    write_study(study, name="own", corpora=corpora, tokenizer={"kind": "bpe", "vocab_size": 300})
    target = f"results/{load_study(study).corpus_folder('own')}/{PREPARED}"

    def planned() -> dict[str, int]:
        return checkout.planned(target, study="config/own.yaml")

    code, output = checkout.snakemake(target, study="config/own.yaml")
    assert code == 0, output
    (texts / "3.txt").touch()
    assert planned() == {}, "the same text"
    (texts / "3.txt").write_text("another text")
    assert planned() == {"prepare": 1}
    (texts / "3.txt").write_text("the union of these states, 3")
    (texts / "more.txt").write_text("one more")
    assert planned() == {"prepare": 1}


@pytest.mark.exhaustive
def test_nothing_is_left_open_in_development_mode(tmp_path: Path) -> None:
    """Warnings are errors, in the DAG and in each command that it calls: prepare, train, probe."""
    checkout = Checkout(tmp_path)
    checkout.environment |= {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
    settings = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())["training"]
    write_study(
        tmp_path / "config/open.yaml",
        name="open",
        variants=["mhc_lite"],
        seeds=[0],
        conditions={},
        training={**settings, "steps": 10, "evaluation_interval": 10},
    )
    targets = ("results/open/probes.json", "results/open/stability.json")
    code, output = checkout.snakemake(*targets, study="config/open.yaml")
    assert code == 0, output
    logs = [path.read_text() for path in (tmp_path / "results").rglob("*.log")]
    assert len(logs) >= 4
    said = [
        line
        for line in "\n".join([output, *logs]).splitlines()
        # A temporary folder is Snakemake's own.
        if re.search("Warning: |Exception ignored", line) and "snakemake-runtime-cache" not in line
    ]
    assert said == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("arguments", [("check",), ("keys",), ("status",), ("check", "--runs")])
def test_commands_in_development_mode(arguments: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-X", "dev", "-m", "mhclite", arguments[0]]
    command += [str(ROOT / "config/smoke.yaml"), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
