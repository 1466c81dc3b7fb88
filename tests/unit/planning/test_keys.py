"""What the start of the DAG finds out by itself: what is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import write_corpus

from mhclite.data.manifest import load_manifest
from mhclite.files import write_json
from mhclite.jobs import PREPARED
from mhclite.planning.keys import lost_files
from mhclite.study.load import parse_study
from mhclite.study.settings import Study

SMOKE: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[3] / "config/smoke.yaml").read_text()
) | {"variants": ["residual", "mhc"], "conditions": {}}
RUN = "sotu-d2-mhc-s1"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Where the study is finished."""
    study = parse_study(SMOKE)
    corpus = tmp_path / study.corpus_folder("sotu")
    write_corpus(corpus)
    shutil.copy(corpus / "manifest.json", corpus / PREPARED)
    for run in study.runs():
        folder = tmp_path / "smoke/runs" / run
        folder.mkdir(parents=True)
        for name in ("summary.json", "run.json", "metrics.jsonl", "mixing.jsonl", "weights.pt"):
            (folder / name).touch()
        write_json(tmp_path / f"smoke/probes/{run}.json", {})
    write_json(tmp_path / "smoke/probes.json", {})
    return tmp_path


def shard_of(results: Path, study: Study) -> Path:
    folder = results / study.corpus_folder("sotu")
    return folder / load_manifest(folder).validation.shards[-1].file


LOST: dict[str, tuple[Callable[[Path, Study], Path], str]] = {
    "record": (lambda results, study: results / f"smoke/runs/{RUN}/run.json", "summary.json"),
    "metrics": (lambda results, study: results / f"smoke/runs/{RUN}/metrics.jsonl", "summary.json"),
    "mixing": (lambda results, study: results / f"smoke/runs/{RUN}/mixing.jsonl", "summary.json"),
    "probe": (lambda results, study: results / f"smoke/probes/{RUN}.json", "probes.json"),
    "manifest": (
        lambda results, study: results / study.corpus_folder("sotu") / "manifest.json",
        PREPARED,
    ),
    "shard": (shard_of, PREPARED),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_is_gone_and_no_rule_declares(kind: str, results: Path) -> None:
    study = parse_study(SMOKE)
    assert lost_files(study, results) == {}
    place, made_with = LOST[kind]
    path = place(results, study)
    path.unlink()
    ((found, declared),) = lost_files(study, results).items()
    assert found == str(path)
    assert Path(declared).name == made_with
    assert Path(declared).is_file()


@pytest.mark.parametrize("kind", ["weights", "a run that is not finished", "a corpus that is not"])
def test_what_is_not_missed(kind: str, results: Path) -> None:
    study = parse_study(SMOKE)
    if kind == "weights":
        (results / f"smoke/runs/{RUN}/weights.pt").unlink()
    elif kind == "a run that is not finished":  # and so has no probe
        shutil.rmtree(results / f"smoke/runs/{RUN}")
        (results / f"smoke/probes/{RUN}.json").unlink()
    else:
        shutil.rmtree(results / study.corpus_folder("sotu"))
    assert lost_files(study, results) == {}
