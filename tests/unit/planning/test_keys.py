"""What the start of the DAG finds out by itself: what is gone, what it would replace."""

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
from mhclite.planning.keys import lost_files, replaced
from mhclite.records import to_json
from mhclite.study.reading import parse_study, resolve
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
    write_json(tmp_path / "smoke/resolved.json", to_json(resolve(study, [])))
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


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, ""),
        ({"seeds": [0, 1, 2]}, ""),
        ({"variants": ["residual", "mhc", "mhc_lite"]}, ""),
        ({"training": {**SMOKE["training"], "checkpoint_interval": 7}}, ""),
        ({"tracking": {"uri": "http://127.0.0.1:5000"}}, ""),
        ({"name": "another", "seeds": [7]}, ""),
        ({"seeds": [0]}, "2 of 4 runs"),
        ({"variants": ["residual"], "seeds": [0, 1, 2]}, "2 of 4 runs"),
        ({"training": {**SMOKE["training"], "steps": 41}}, "4 of 4 runs"),
        ({"connections": {"n_streams": 2}}, "2 of 4 runs"),
        ({"probe": {"sequences": 5}}, "probe"),
        ({"stability": {"spike_sigmas": 4.5}}, "stability"),
        ({"sinkhorn": None}, "sinkhorn"),
        ({"statistics": {"confidence": 0.9}}, "statistics"),
    ],
)
def test_what_a_study_would_replace(changes: dict[str, Any], what: str, results: Path) -> None:
    assert replaced(parse_study(SMOKE | changes), results) == what


@pytest.mark.parametrize("content", [None, "", "{}", '{"schema": 999}'])
def test_results_that_cannot_be_read_are_none(content: str | None, results: Path) -> None:
    path = results / "smoke/resolved.json"
    path.unlink() if content is None else path.write_text(content)
    assert replaced(parse_study(SMOKE | {"seeds": [0]}), results) == ""


@pytest.mark.parametrize("there", [True, False])
def test_arms_of_a_sweep_are_replaced_by_anything(there: bool, tmp_path: Path) -> None:
    study = parse_study(SMOKE | {"sinkhorn": None, "sweep": {"steps": 20, "final_seeds": [5]}})
    if there:
        write_json(tmp_path / "smoke/sweep/sotu-d2-mhc.json", {})
    assert bool(replaced(study, tmp_path)) == there
