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
    assert found["stages"].keys() == set(session.STAGES)
    assert found["stages"]["limits"] == killed["stages"]["limits"]
    assert not any(found["left"].values())
    assert found["stages"]["study"]["a bundle"]["runs"] == {"a": {"validation_loss": 3.5}}
    assert found["stages"]["parity"]["mhc_lite"]["wrong"] == ""
    speeds = json.loads((out / SPEEDS).read_text())
    assert all("failed" not in row for row in speeds["rows"])


@pytest.mark.slow  # each starts a process that imports torch
@pytest.mark.parametrize(
    ("bundle", "result"),
    [
        ("fails", "UserError: run.py ended with exit code 3"),
        ("kills", "its process was ended by SIGKILL; see log.txt"),
        ("hangs", None),  # at the end of the session, which leaves it for the next
    ],
    indirect=["bundle"],
)
def test_an_item_that_fails_dies_or_hangs(
    bundle: Path, result: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hangs is ended with all that it started."""
    wait = subprocess.Popen.communicate

    def communicate(process: subprocess.Popen[str], timeout: float) -> Any:
        if result is not None:
            return wait(process, timeout=timeout)
        assert timeout < session.STAGES["study"].seconds
        while not (bundle / "begun").is_file():
            time.sleep(0.1)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    end = time.time() + 300
    found = done(Job(True, end, {}, str(bundle)), "study", bundle.name, end, tmp_path)
    monkeypatch.undo()
    said = (tmp_path / LOG).read_text()
    assert found == (None if result is None else {"failed": result}), said
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert SLEEP not in running.splitlines()


def test_what_failed_is_tried_again_and_what_is_wrong_is_kept(tmp_path: Path) -> None:
    """Of the same card and code; each step is timed once."""
    one = Session(tmp_path, PAPER, OF)
    one.stages["parity"] = {"mhc": {"failed": "ValueError"}, "hc": {"wrong": "error 1"}}
    one.write()
    again = Session(tmp_path, PAPER, OF)
    again.resume()
    left = again.missing("parity")
    assert "mhc" in left
    assert "hc" not in left
    assert again.having("wrong") == ["parity: hc: error 1"]
    for name, value in (("gpu", "another"), ("code", "x")):
        with pytest.raises(UserError, match=f"whose {name} is .* and here it is '{value}'"):
            Session(tmp_path, PAPER, OF | {name: value}).resume()
    keys = step_keys(PAPER)
    assert len(keys) == len(set(keys)) >= len(PAPER.sizes) * len(PAPER.variants)


def test_mistakes_and_what_there_is_no_time_for_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    out = tmp_path / "out"
    command = ["session", "--minutes", "1e-9", "--out", str(out)]
    assert main(command) == 2
    assert "needs a GPU" in capsys.readouterr().err
    assert main([*command, "--bundle", str(tmp_path)]) == 2
    assert "no unpacked bundle" in capsys.readouterr().err
    dry = [*command, "--dry-run", "--stages", "limits", "parity", "study"]
    assert main(dry) == EXIT_INTERRUPTED
    last = capsys.readouterr().out.splitlines()[-1]
    for left in ("1 of limits", "1 of parity", "steps (not asked for)", "study (no --bundle)"):
        assert left in last
    (out / FILE).write_text("[]")
    assert main(dry) == 2
    assert "not a session of this version" in capsys.readouterr().err
