"""Bad studies, two workflows at once: each through Snakemake, as a user meets them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from checkout import ROOT, Checkout

from mhclite.files import is_locked, locked
from mhclite.jobs import PREPARED
from mhclite.study.load import load_study


def write_study(path: Path, **changes: object) -> None:
    study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    study.update(changes)
    path.write_text(yaml.safe_dump(study))


SMOKE = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
# What is changed in the study, what is asked for, what the one line says.
REFUSED: dict[str, tuple[dict[str, object] | None, str, str]] = {
    # Not the default study:
    "empty": (None, "", "this key is missing"),
    "a run": ({}, "results/smoke/runs/sotu-d2-mhc-s7/summary.json", "its.*sotu-d2-mhc-s1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_before_the_dag_is_one_line(kind: str, tmp_path: Path) -> None:
    """Mistakes in the study (test_study.py has more), and targets that it does not have."""
    changes, target, said = REFUSED[kind]
    checkout = Checkout(tmp_path)
    content = {} if changes is None else SMOKE | changes
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(content))
    code, output = checkout.snakemake(*[target] * bool(target), study="odd.yaml")
    assert code != 0
    assert "Traceback" not in output
    assert "InputFunctionException" not in output
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert re.search(said, line)
    assert target or not (tmp_path / "results").exists()


def test_imported_as_a_module(tmp_path: Path) -> None:
    """By another workflow, in whose folder the results are; under a prefix it does not work."""
    checkout, importer = (Checkout(tmp_path / name) for name in ("checkout", "importer"))
    study = str(checkout.folder / "config/smoke.yaml")
    shutil.rmtree(importer.folder)
    importer.folder.mkdir()
    text = (
        f"module mhclite:\n    snakefile: {str(checkout.folder / 'Snakefile')!r}\n"
        "    config: config\n"
        "use rule * from mhclite as mhclite_*\n"
        "rule all:\n    default_target: True\n    input: rules.mhclite_all.input\n"
    )
    (importer.folder / "Snakefile").write_text(text)
    code, output = importer.snakemake("--until", "mhclite_prepare", study=study)
    assert code == 0, output
    (corpus,) = (importer.folder / "results/corpora").glob("*/manifest.json")
    assert corpus.parent.name == load_study(Path(study)).corpus_folder("sotu").split("/")[1]
    text = text.replace("config: config\n", "config: config\n    prefix: 'sub'\n")
    (importer.folder / "Snakefile").write_text(text)
    code, output = importer.snakemake("-n", study=study)
    assert code != 0
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert "prefix" in line


def test_two_workflows_in_one_folder(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    lock = tmp_path / ".snakemake/mhclite.lock"
    working = checkout.start("--until", "prepare", "--verbose")  # Snakemake's words, as it begins
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
    """One more, in a folder whose name Snakemake would read as wildcards. Rewritten ones:
    tests/unit/data/test_files_on_disk.py."""
    checkout = Checkout(tmp_path / "checkout")
    texts = checkout.folder / "texts {v1}"
    texts.mkdir()
    for i in range(30):
        (texts / f"{i}.txt").write_text(f"the union of these states, {i}")
    corpora = {"own": {"source": "files", "files": f"{texts}/*.txt", "validation_fraction": 0.3}}
    study = checkout.folder / "config/own.yaml"
    write_study(study, name="own", corpora=corpora, tokenizer={"kind": "bpe", "vocab_size": 300})
    target = f"results/{load_study(study).corpus_folder('own')}/{PREPARED}"

    code, output = checkout.snakemake(target, study="config/own.yaml")
    assert code == 0, output
    (texts / "more.txt").write_text("one more")
    assert checkout.planned(target, study="config/own.yaml") == {"prepare": 1}
