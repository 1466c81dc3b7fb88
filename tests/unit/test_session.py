"""A session on a GPU, dry: killed and gone on with; what its items may do; what it goes on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ROOT, session
from benchmarks.__main__ import main
from benchmarks.session import FILE, LOG, PAPER, SPEEDS, Job, Session, done, step_keys
from mhclite.cli import EXIT_INTERRUPTED
from mhclite.errors import UserError

OF = {"gpu": "a card", "torch": "2"}
MISSING = ["pydantic", "snakemake", "mlflow", "yaml", "scipy", "matplotlib", "tabulate"]
SLEEP = "sleep 601.5"
# Bundles, by what their drivers do.
BUNDLES = {
    "ends": """
import json, pathlib, sys
assert sys.argv[1] == "--minutes", sys.argv
run = pathlib.Path("results/gpu/runs/a")
run.mkdir(parents=True, exist_ok=True)
(run / "summary.json").write_text(json.dumps({"validation_loss": 3.5}))
""",
    "is not done": "import sys; sys.exit(75)",
    "fails": "import sys; sys.exit(3)",
    "kills": "import os; os.kill(os.getppid(), 9)",
    "hangs": f"""
import pathlib, subprocess
sleeping = subprocess.Popen({SLEEP.split()})
pathlib.Path("begun").touch()
sleeping.wait()
""",
}


@pytest.fixture
def bundle(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "a bundle"
    folder.mkdir()
    (folder / "run.py").write_text(BUNDLES[request.param])
    return folder


def starting(folder: Path, *more: str) -> subprocess.Popen[str]:
    """As typed, with a Python that has neither the pipeline's packages nor a GPU."""
    lacking = folder.with_name("lacking")
    lacking.mkdir(exist_ok=True)
    blocked = f"import sys; sys.modules.update(dict.fromkeys({MISSING!r}))"
    (lacking / "sitecustomize.py").write_text(blocked)
    command = [sys.executable, "-m", "benchmarks", "session", "--dry-run", "--out", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(lacking), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.Popen(
        [*command, *more], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / FILE).read_text())
    return found


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["ends"], indirect=True)
def test_a_killed_session_is_gone_on_with(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = starting(out, "--minutes", "20", "--stages", "limits", "kernels")
    while first.poll() is None and "kernels" not in (
        (out / LOG).read_text() if (out / LOG).is_file() else ""
    ):
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)  # that its item ends with it, the fixtures of all tests say
    first.communicate()
    killed = record(out)
    assert killed["stages"].keys() == {"limits"}
    assert killed["left"]["kernels"] == ["mhc_lite"]

    second = starting(out, "--minutes", "20", "--bundle", str(bundle))
    said, _ = second.communicate()
    assert second.returncode == 0, said + (out / LOG).read_text()
    assert "left out: nothing" in said
    found = record(out)
    assert len(found["attempts"]) == 2
    assert {"git", "hardware"} <= found["attempts"][1]["provenance"].keys()
    assert found["stages"].keys() == set(session.STAGES)
    assert found["stages"]["limits"] == killed["stages"]["limits"]
    assert not any(found["left"].values())
    assert found["stages"]["study"]["a bundle"]["runs"] == {"a": {"validation_loss": 3.5}}
    assert found["stages"]["parity"]["mhc_lite"]["wrong"] == ""
    speeds = json.loads((out / SPEEDS).read_text())
    assert {row["kernel"] for row in speeds["kernels"]} >= {"boundary", "boundary backward"}
    assert {row["implementation"] for row in speeds["rows"]} == {"", "fast", "reference"}
    assert all("failed" not in row for row in speeds["rows"])


def test_without_time_it_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    command = ["session", "--dry-run", "--minutes", "1e-9", "--out", str(tmp_path)]
    assert main([*command, "--stages", "limits", "parity", "study"]) == EXIT_INTERRUPTED
    last = capsys.readouterr().out.splitlines()[-1]
    for left in ("1 of limits", "1 of parity", "steps (not asked for)", "study (no --bundle)"):
        assert left in last
    assert record(tmp_path)["left"]["parity"] == ["mhc_lite"]


@pytest.mark.slow  # each starts a process that imports torch
@pytest.mark.parametrize(
    ("bundle", "result"),
    [
        ("is not done", None),
        ("fails", "UserError: run.py ended with exit code 3"),
        ("kills", "its process was ended by SIGKILL; see log.txt"),
    ],
    indirect=["bundle"],
)
def test_an_item_that_fails_or_dies_is_said(
    bundle: Path, result: str | None, tmp_path: Path
) -> None:
    end = time.time() + 300
    found = done(Job(True, end, {}, str(bundle)), "study", bundle.name, end, tmp_path)
    said = (tmp_path / LOG).read_text()
    assert found == (None if result is None else {"failed": result}), said


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["hangs"], indirect=True)
@pytest.mark.parametrize("of_the_session", [True, False])
def test_what_hangs_is_ended_with_all_that_it_started(
    bundle: Path, of_the_session: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the end of the session, which leaves it for the next, or by its own: that is a failure."""

    def communicate(process: subprocess.Popen[str], timeout: float) -> None:
        assert timeout < session.STAGES["study"].seconds or not of_the_session
        while not (bundle / "begun").is_file():
            time.sleep(0.1)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    end = time.time() + 300
    if not of_the_session:
        stage = session.STAGES["study"]._replace(seconds=20)
        monkeypatch.setitem(session.STAGES, "study", stage)
    found = done(Job(True, end, {}, str(bundle)), "study", bundle.name, end, tmp_path)
    monkeypatch.undo()
    assert found == (None if of_the_session else {"failed": "not done after 20 s"})
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert SLEEP not in running.splitlines()


def test_what_failed_is_tried_again_and_what_is_wrong_is_kept(tmp_path: Path) -> None:
    one = Session(tmp_path, PAPER, OF)
    one.stages["parity"] = {"mhc": {"failed": "ValueError"}, "hc": {"wrong": "error 1"}}
    one.write()
    again = Session(tmp_path, PAPER, OF)
    again.resume()
    left = again.missing("parity")
    assert "mhc" in left
    assert "hc" not in left
    assert again.having("wrong") == ["parity: hc: error 1"]
    assert again.having("failed") == ["parity: mhc: ValueError"]


@pytest.mark.parametrize("changed", [{"gpu": "another"}, {"torch": "3"}, {"code": "x"}])
def test_a_session_of_another_card_or_code_is_not_mixed_with_this_one(
    changed: dict[str, str], tmp_path: Path
) -> None:
    Session(tmp_path, PAPER, OF).write()
    ((name, value),) = changed.items()
    with pytest.raises(UserError, match=f"whose {name} is .* and here it is '{value}'"):
        Session(tmp_path, PAPER, OF | changed).resume()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["session", "--minutes", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "needs a GPU" in capsys.readouterr().err
    assert main([*command, "--bundle", str(tmp_path)]) == 2
    assert "no unpacked bundle" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FILE).write_text("[]")
    assert main([*command, "--dry-run"]) == 2
    assert "not a session of this version" in capsys.readouterr().err


def test_every_step_is_timed_once_and_those_first_that_tell_most() -> None:
    keys = step_keys(PAPER)
    assert len(keys) == len(set(keys))
    for size in PAPER.sizes:
        for variant in PAPER.variants:
            assert f"{size} {variant} fused:compiled deterministic" in keys
    assert keys[0] == "s mhc_lite fused:compiled deterministic"
