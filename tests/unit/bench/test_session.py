"""A session on a GPU: all its stages, dry; its processes; what it goes on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mhclite.bench.session import engine, study, tools
from mhclite.bench.session.command import STAGES, missing, write_throughput
from mhclite.bench.session.engine import Item, NotDone, Stage, run_stage
from mhclite.bench.session.plan import DRY, PAPER
from mhclite.bench.session.records import FILE, Session, open_session
from mhclite.bench.session.speed import arms_in_order, fastest
from mhclite.cli import main
from mhclite.errors import UserError

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "connection_mhc_lite_n4.npz"
OF = {"gpu": "a card", "torch": "2"}
MISSING = ["pydantic", "snakemake", "mlflow", "pandas", "yaml", "scipy", "matplotlib"]
# What a tool does that is not here: say what it is for, and run what it is given to watch.
SANITIZER = """#!/bin/sh
[ "$1 $3 $4" = "--tool --error-exitcode 9" ] && shift 4 && "$@" && echo "0 errors"
"""
NCU = """#!/bin/sh
echo '==PROF== Connected'
echo '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
echo '"0","boundary_forward","dram__bytes_read.sum","Mbyte","12.5"'
echo '"0","boundary_forward","launch__registers_per_thread","register/thread","172"'
echo '"1","boundary_backward","dram__bytes_read.sum","Mbyte","25"'
"""
BUNDLE = """
import pathlib, sys
assert sys.argv[1] == "--minutes", sys.argv
out = pathlib.Path("results/gpu")
for run in ("done", "unprobed"):
    (out / "runs" / run).mkdir(parents=True, exist_ok=True)
    (out / "runs" / run / "summary.json").write_text("{}")
    (out / "runs" / run / "weights.pt").write_text("large")
(out / "probes").mkdir(exist_ok=True)
(out / "probes" / "done.json").write_text("{}")
sys.exit(75 if not pathlib.Path("../all").exists() else 0)
"""


def session_in(folder: Path, of: dict[str, Any] = OF) -> Session:
    return open_session(folder, DRY, cores=2, of=of)


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def dry_run(
    folder: Path, *more: str, tools: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """As typed, with a Python that has neither the pipeline's packages nor a GPU."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({MISSING!r}))\n"
    code = blocked + "from mhclite.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "gpu-session", "--dry-run", "--out", str(folder), *more]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    if tools is not None:
        environment["PATH"] = f"{tools}:{environment['PATH']}"
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_every_stage_runs_and_what_is_missing_is_done_by_the_next_session(tmp_path: Path) -> None:
    """Half a minute of CPU: the interpreter, and torch's compiler that deterministic mode loads."""
    programs, out, bundle = tmp_path / "bin", tmp_path / "out", tmp_path / "bundle"
    programs.mkdir()
    bundle.mkdir()
    executable(programs / "compute-sanitizer", SANITIZER)
    executable(programs / "ncu", NCU)
    (bundle / "run.py").write_text(BUNDLE)
    more = ("--golden", str(GOLDEN), "--bundle", str(bundle))
    done = dry_run(out, "--minutes", "20", *more, tools=programs)
    assert done.returncode == 75, done.stdout + done.stderr  # the bundle has more to do
    assert "left: 1 of study" in done.stdout
    found = json.loads((out / FILE).read_text())
    assert set(found["stages"]) == set(STAGES) - {"study"}
    for stage, results in found["stages"].items():
        for key, result in results.items():
            assert not result.get("wrong"), (stage, key, result)
            assert "failed" not in result, (stage, key, result)
    stages = found["stages"]
    assert GOLDEN.name in stages["parity"]
    assert len(stages["shapes"]) == 8  # two variants, two numbers of tokens, two kinds of streams
    assert stages["ncu"]["mhc_lite"]["kernels"][0] == {
        "kernel": "boundary_forward",
        "bytes read": "12.5 Mbyte",
        "registers": "172 register/thread",
    }
    rows = json.loads((out / "throughput.json").read_text())["rows"]
    assert {row["implementation"] for row in rows} == {"", "fused", "reference"}
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8
    assert all(path.parent == out for path in files)
    with tarfile.open(out / study.ARCHIVE) as tar:
        names = {name for name in tar.getnames() if name.endswith((".json", ".pt"))}
    # The run without a probe needs its weights, which do not come home.
    assert names == {"results/gpu/runs/done/summary.json", "results/gpu/probes/done.json"}

    # Another machine: a stage of which something was lost, and the study.
    del found["stages"]["kernels"]["identity C=16"]
    (out / FILE).write_text(json.dumps(found))
    (tmp_path / "all").touch()
    done = dry_run(out, "--minutes", "20", *more, "--stages", "limits", "kernels", "study")
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads((out / FILE).read_text())
    assert len(again["attempts"]) == 2
    assert again["stages"]["kernels"].keys() == stages["kernels"].keys() | {"identity C=16"}
    assert again["stages"]["limits"] == found["stages"]["limits"]
    assert again["stages"]["study"]["bundle"]["runs"] == 1


def test_without_a_gpu_it_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("mhclite.bench.session.command.load", lambda: None)
    monkeypatch.setattr("mhclite.bench.session.command.in_a_child", lambda *_: ({"gpu": None}, {}))
    command = ["gpu-session", "--minutes", "1", "--out", str(tmp_path)]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: gpu-session needs a GPU, and torch sees none")
    assert main([*command, "--dry-run"]) == 2
    assert "--dry-run needs TRITON_INTERPRET=1" in capsys.readouterr().err


# --- processes ----------------------------------------------------------------------------------


def stage_of(*items: Item, minutes: float = 1.0, workers: int = 1) -> Stage:
    return Stage("trial", "a trial", lambda _: list(items), minutes, lambda _: workers)


def good(key: str) -> Item:
    return Item(key, lambda _: {"value": key, "process": os.getpid()})


def raising(_: float) -> dict[str, Any]:
    raise ValueError("first line\nsecond line")


def dying(_: float) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hanging(_: float) -> dict[str, Any]:
    subprocess.run(["sleep", "601.5"])
    return {}


def unready(_: float) -> dict[str, Any]:
    raise NotDone("later")


def in_a_minute() -> float:
    return time.monotonic() + 60


def test_an_item_that_fails_or_dies_costs_no_other(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    items = [good("a"), Item("raises", raising), good("b"), Item("dies", dying), good("c")]
    assert run_stage(session, stage_of(*items), in_a_minute())
    found = json.loads((tmp_path / FILE).read_text())["stages"]["trial"]
    assert [found[key]["value"] for key in "abc"] == ["a", "b", "c"]
    assert found["raises"]["failed"] == "ValueError: first line"
    assert found["dies"]["failed"] == "its process was ended by SIGKILL"
    assert found["a"]["process"] == found["b"]["process"] != found["c"]["process"]
    assert os.getpid() not in {found[key]["process"] for key in "abc"}
    assert "second line" in session.log_file.read_text()


def test_an_item_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    stage = stage_of(Item("hangs", hanging), minutes=1 / 600)
    assert run_stage(session, stage, in_a_minute())
    assert session.results("trial")["hangs"]["failed"].startswith("not done after")
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sleep 601.5" not in running.splitlines()


def test_what_is_not_done_is_left(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    stage = stage_of(good("a"), Item("later", unready))
    assert run_stage(session, stage, in_a_minute())
    assert missing(session, stage) == ["later"]
    assert not run_stage(session, stage, in_a_minute())  # no progress
    assert not run_stage(session, stage_of(good("b")), time.monotonic())  # no time


def test_the_time_is_kept_for_items_that_take_longer_than_is_left(tmp_path: Path) -> None:
    def slow(_: float) -> dict[str, Any]:
        time.sleep(0.6)
        return {}

    session = session_in(tmp_path)
    stage = stage_of(Item("first", slow), Item("second", slow))
    run_stage(session, stage, time.monotonic() + 1.0)
    assert missing(session, stage) == ["second"]


def test_what_a_child_finds(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert engine.in_a_child(lambda: ({"gpu": "card"}, 1), 60, log) == ({"gpu": "card"}, 1)
    assert engine.in_a_child(lambda: 1 / 0, 60, log) is None
    assert engine.in_a_child(lambda: dying(0), 60, log) is None
    assert engine.in_a_child(lambda: hanging(0), 0.3, log) is None


# --- records ------------------------------------------------------------------------------------


def test_a_session_of_another_card_is_not_mixed_with_this_one(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    session.keep("limits", "rates", {"bytes_per_second": 1.0, "flops_per_second": 2.0})
    assert session_in(tmp_path).limits() == session.limits()
    with pytest.raises(UserError, match="whose gpu is 'a card', and here it is 'another'"):
        session_in(tmp_path, OF | {"gpu": "another"})


def test_stages_that_need_the_rates_are_left_without_them(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    assert missing(session, STAGES["throughput"]) == ["throughput"]
    write_throughput(session)  # nothing to write, and no error
    assert not (tmp_path / "throughput.json").exists()


def test_wrong_results_and_the_fastest_launches() -> None:
    session = Session(Path(), DRY, 1, OF, stages={"parity": {"a": {"wrong": "bits"}, "b": {}}})
    assert session.wrong() == ["parity: a: bits"]
    sweep = {
        "l warps=4": {"boundary": 3e-6, "boundary backward": 9e-6, "seconds": 1.0},
        "l warps=8": {"boundary": 4e-6, "boundary backward": 5e-6, "seconds": 0.1},
        "s warps=4": {"failed": "no"},
    }
    assert fastest(sweep) == {
        "l": {"boundary": "warps=4: 3 us", "boundary backward": "warps=8: 5 us"}
    }


def test_every_arm_of_the_papers_sizes_is_timed_once_in_both_modes() -> None:
    arms = arms_in_order(PAPER)
    assert len(arms) == len(set(arms)) == 3 * 2 * len(PAPER.variants)
    # A session of ten minutes: the smallest size, then the largest of the two that matter most.
    assert {size for size, _, _ in arms[: len(PAPER.variants)]} == {"s"}
    assert arms[len(PAPER.variants)] == ("l", "mhc_lite", True)


def test_ncu_without_permission_is_no_result() -> None:
    assert tools.profiled("==ERROR== ERR_NVGPUCTRPERM\n") == []


def test_a_bundle_that_is_none_is_one_line(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    session.plan = replace(DRY, bundle=tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="is not a complete archive"):
        study.unpacked(tmp_path / "x.tar.gz", tmp_path)
    with pytest.raises(NotDone, match="too little time"):
        study.train(tmp_path, session, time.monotonic() + 1)
