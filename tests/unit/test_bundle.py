"""Bundles: the order of their jobs, what is merged over what, and what is refused."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import run_record, run_summary, write_corpus

from mhclite import cli
from mhclite.bundle import drive, home
from mhclite.bundle.drive import RECEIPTS, SCHEMA, Bundle, PackedJob
from mhclite.errors import UserError
from mhclite.files import sha256_of, write_json
from mhclite.measure.measured import PROBE_SCHEMA, Probe
from mhclite.records import to_json
from mhclite.runs.folder import RunFolder
from mhclite.runs.parquet import STUDY
from mhclite.runs.parquet import pack as pack_study
from mhclite.study.load import load_study
from mhclite.study.settings import Study
from mhclite.training.torchrun import launcher

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """config/smoke.yaml over a corpus that is there, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text((ROOT / "config/smoke.yaml").read_text())
    found = load_study("study.yaml")
    write_corpus(Path("results") / found.corpus_folder("sotu"))
    return found


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Snakemake is told; it is not run."""
    told: list[str] = []
    monkeypatch.setattr(home, "snakemake", lambda study, *arguments: told.extend(arguments))
    return told


def write_run(results: Path, train: PackedJob, loss: float | None = None) -> Path:
    """A run folder as training leaves it: finished with a loss, or begun."""
    config = train.config()
    folder = results / "runs" / config.run
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", to_json(run_record(config, train.digest)))
    (folder / "metrics.jsonl").write_text(json.dumps({"loss": loss}) + "\n")
    if loss is not None:
        digest = sha256_of(folder / "metrics.jsonl")
        summary = run_summary(config, train.digest, metrics_sha256=digest)
        write_json(folder / "summary.json", to_json(summary))
    return folder


def write_probe(path: Path, train: PackedJob, key: str, made_of: str = "there") -> None:
    """A probe file of a run, which says that it was skipped."""
    empty = dict.fromkeys(("evaluation", "mixing", "use"))
    probe = Probe(
        schema=PROBE_SCHEMA,
        run=train.config().run,
        key=key,
        made_of=made_of,
        skipped="a test",
        **empty,
    )
    write_json(path, to_json(probe))


def test_runs_come_seed_by_seed_with_all_variants(study: Study) -> None:
    runs = home.bundle_of(study).runs
    configs = [train.config() for train, _ in runs]
    assert {config.run for config in configs} == set(study.runs())
    assert [config.seed for config in configs] == sorted(config.seed for config in configs)
    first = [c.connection.variant for c in configs if (c.seed, c.condition) == (0, "base")]
    assert first == study.variants
    for train, probe in runs:
        assert train.output.split("/")[1] == Path(probe.output).stem


def test_what_is_taken_over_what(study: Study, touched: list[str]) -> None:
    """What is finished there is taken, unless it is finished here."""
    runs = home.bundle_of(study).runs
    here, there = Path("results/smoke"), Path("bundle/results/smoke")
    (kept, _), (both, _), (unfinished, _), (ended, _), (new, _) = runs[:5]
    write_run(here, kept, loss=1.0)
    write_run(there, kept)
    write_run(here, both, loss=1.5)
    write_run(there, both, loss=1.75)
    write_run(here, unfinished)
    write_run(there, unfinished)
    write_run(here, ended)
    write_run(there, ended, loss=2.0)
    write_run(there, new, loss=3.0)

    line = home.merge(Path("study.yaml"), Path("bundle"))
    assert "2 runs and 0 other files are new" in line
    assert "4 of 16 runs are finished here" in line
    for train, loss in ((kept, 1.0), (both, 1.5), (unfinished, None), (ended, 2.0), (new, 3.0)):
        folder = RunFolder(here / "runs" / train.config().run)
        assert folder.finished_key() == (None if loss is None else train.digest)
        assert json.loads((folder / "metrics.jsonl").read_text())["loss"] == loss
    targets = [f"results/smoke/{train.output}" for train in (ended, new)]
    assert touched == ["--touch", "--force", *targets]

    touched.clear()
    line = home.merge(Path("study.yaml"), Path("bundle/results/smoke"))
    assert "0 runs and 0 other files are new" in line
    assert touched == []


def test_measurements_come_along_if_they_are_of_this_study(
    study: Study, touched: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    study_of_two = yaml.safe_load(Path("study.yaml").read_text())
    size = study_of_two["models"]["d2"]
    study_of_two["models"] = {"d2": size, "d3": size | {"n_layer": 3}}
    Path("study.yaml").write_text(yaml.safe_dump(study_of_two))
    first, second = home.bundle_of(load_study("study.yaml")).throughput
    there = Path("bundle/results/smoke")
    for job in (first, second):
        write_json(there / job.output, {"schema": 1})
    write_json(there / RECEIPTS, {first.output: first.digest, second.output: "x"})
    home.merge(Path("study.yaml"), Path("bundle"))
    for job, taken in ((first, True), (second, False)):
        assert Path("results/smoke", job.output).is_file() == taken
    assert f"{second.output} is of other settings or code" in caplog.text
    assert touched[2:] == [f"results/smoke/{first.output}"]


def test_a_published_study_is_extended(study: Study, touched: list[str]) -> None:
    """What is published has no weights and no receipts; a probe says of which run it is."""
    (first, probe), (second, other), (third, kept) = home.bundle_of(study).runs[:3]
    here, there = Path("results/smoke"), Path("published")
    throughput = there / "throughput/d2.json"
    for train in (first, second, third):
        write_run(there, train, loss=1.0)
    write_probe(there / probe.output, first, key=first.digest)
    write_probe(there / other.output, second, key="of another run")
    write_probe(there / kept.output, third, key=third.digest)
    write_probe(here / kept.output, third, key=third.digest, made_of="here")
    write_json(throughput, {"schema": 1})
    files = {str(path.relative_to(there)): path for path in there.rglob("*") if path.is_file()}
    pack_study(files, Path("packed") / STUDY)
    home.merge(Path("study.yaml"), Path("packed"))
    assert (here / probe.output).read_bytes() == (there / probe.output).read_bytes()
    assert not (here / other.output).exists()
    assert json.loads((here / kept.output).read_text())["made_of"] == "here"
    assert not (here / "throughput/d2.json").exists()
    assert touched[2:] == [f"results/smoke/{train.output}" for train in (first, second, third)]


def refused(capsys: pytest.CaptureFixture[str], source: str) -> str:
    """The one line of a merge that is refused."""
    assert cli.main(["bundle", "merge", source, "--study", "study.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.usefixtures("touched")
def test_what_is_refused_changes_nothing(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    runs = home.bundle_of(study).runs
    (first, _), (second, _) = runs[:2]
    there = Path("bundle/results/smoke")
    write_run(there, first, loss=1.0)
    folder = write_run(there, second, loss=2.0)
    record = json.loads((folder / "run.json").read_text())

    def change(**what: Any) -> None:
        write_json(folder / "run.json", record | {"key": "another"} | what)

    settings = record["config"]["training"] | {"steps": 41}
    change(config=record["config"] | {"training": settings})
    assert "1 of 16 runs (sotu-d2-identity-s0) are of other settings" in refused(capsys, "bundle")
    change(code="another")
    assert "of other code than here" in refused(capsys, "bundle")
    write_json(folder / "run.json", record)
    (folder / "metrics.jsonl").write_text("cut o")
    assert "metrics.jsonl is damaged: bring it back again" in refused(capsys, "bundle")
    write_run(there, second, loss=2.0)
    with RunFolder(Path("results/smoke/runs") / record["config"]["run"]).only_writer():
        assert "is being trained here" in refused(capsys, "bundle")
    assert not list(Path("results/smoke").rglob("summary.json"))

    Path("empty").mkdir()
    assert "has no results of study 'smoke'" in refused(capsys, "empty")
    assert not list(Path("results").glob(".merge.*"))


def test_what_cannot_train_is_not_packed(study: Study) -> None:
    document = yaml.safe_load(Path("study.yaml").read_text())
    document["training"] |= {"processes": 2, "nodes": 2}
    Path("study.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match="a bundle is for one machine"):
        home.pack(Path("study.yaml"), Path("none"))
    document["training"]["nodes"] = 1
    document["models"]["d2"]["block_size"] = 10**6
    Path("study.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match="fewer than one window"):
        home.pack(Path("study.yaml"), Path("none"))
    assert not Path("none").exists()


def test_a_run_of_several_processes_is_started_as_the_workflow_does(tmp_path: Path) -> None:
    driver = drive.Driver(tmp_path, Bundle(SCHEMA, "paper", [], []), [])
    job = PackedJob("train", "runs/a/summary.json", "a", "", ["x"], 2)
    command, environment = driver.command(job)
    assert command[1:] == ["-m", *launcher(2), "mhclite", "train", "x"]
    assert environment["PYTHONPATH"] == str(tmp_path / "src")
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> drive.Driver:
    """Of a bundle whose jobs fail (a), take long (z), or make their output at once."""
    script = (
        "import sys, time, pathlib\nname = sys.argv[1]\n"
        "if name == 'a':\n    sys.exit('error: no a')\n"
        "if name == 'z':\n    time.sleep(60)\n"
        "folder = pathlib.Path('results/study/probes')\nfolder.mkdir(parents=True, exist_ok=True)\n"
        "(folder / f'{name}.json').touch()"
    )
    found = drive.Driver(tmp_path, Bundle(SCHEMA, "study", [], []), [])

    def command(job: PackedJob) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", script, *job.arguments], dict(os.environ)

    monkeypatch.setattr(found, "command", command)
    return found


def job(name: str) -> PackedJob:
    return PackedJob("probe", f"probes/{name}.json", f"logs/{name}.log", "digest", [name])


def test_a_failed_job_stops_its_chain_alone(
    driver: drive.Driver, caplog: pytest.LogCaptureFixture
) -> None:
    for chain in ([job("a"), job("b")], [job("c"), job("d")]):
        driver.work(chain, None)
    assert driver.failed == ["probes/a.json"]
    assert "error: no a" in caplog.text
    assert [driver.is_done(job(name)) for name in "abcd"] == [False, False, True, True]


def test_at_the_deadline_the_running_job_is_stopped_and_none_begun(driver: drive.Driver) -> None:
    driver.work([job("c"), job("z"), job("d")], time.monotonic() + 3)
    driver.work([job("e")], time.monotonic())
    assert (driver.stopping, driver.failed) == ("the time is up", [])
    assert not any(driver.is_done(job(name)) for name in "zde")


def test_when_the_time_is_up_nothing_is_begun(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    home.pack(Path("study.yaml"), Path("bundle"))
    assert cli.main(["bundle", "run", "bundle", "--minutes", "1e-9"]) == 75
    assert "33 of 33 jobs left" in capsys.readouterr().err
    assert not Path("bundle/results/smoke").exists()
    assert cli.main(["bundle", "run", "nowhere"]) == 2
    assert "nowhere/bundle.json" in capsys.readouterr().err
