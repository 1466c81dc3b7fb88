"""A session on a GPU, dry: what its items may do; what it goes on from."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import session
from benchmarks.__main__ import main
from benchmarks.session import FILE, LOG, PAPER, Job, Session, done, step_keys
from mhclite.cli import EXIT_INTERRUPTED
from mhclite.errors import UserError

OF = {"gpu": "a card", "torch": "2"}
SLEEP = "sleep 601.5"
# Bundles, by what their drivers do.
BUNDLES = {
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


@pytest.mark.slow  # each starts a process that imports torch
@pytest.mark.parametrize(
    ("bundle", "result"),
    [
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
