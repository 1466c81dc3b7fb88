"""The corpora lock file: facts are recorded once and must stay the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mhclite.data.hub import CorporaLock, revision_text
from mhclite.errors import UserError


def test_a_revision_is_recorded_once(tmp_path: Path) -> None:
    path = tmp_path / "config" / "corpora.lock.json"
    lock = CorporaLock(path)
    assert lock.revision("some/one", "small") is None
    assert not path.exists()
    lock.record("some/one", "small", revision="a" * 40)
    lock.record("some/one", None, revision="b" * 40)
    assert json.loads(path.read_text()) == {
        "some/one": {"small": {"revision": "a" * 40}, "default": {"revision": "b" * 40}}
    }
    before = path.read_bytes()
    lock.record("some/one", "small", revision="a" * 40)
    with pytest.raises(UserError, match=r"some/one \(small\): revision is c+, but .* has a+ since"):
        lock.record("some/one", "small", revision="c" * 40)
    assert path.read_bytes() == before


def test_it_is_said_what_fixes_a_revision(tmp_path: Path) -> None:
    lock = CorporaLock(tmp_path / "corpora.lock.json")
    corpus = {"source": "hub", "repository": "some/one", "subset": None, "revision": None}
    assert revision_text({"source": "embedded"}, lock) is None
    assert f"{lock.path} does not exist" in str(revision_text(corpus, lock))
    lock.record("some/other", None, revision="a" * 40)
    assert f"{lock.path} has no entry for it" in str(revision_text(corpus, lock))
    lock.record("some/one", None, revision="b" * 40)
    assert revision_text(corpus, lock) == f"revision {'b' * 12}, locked in {lock.path}"
    pinned = {**corpus, "revision": "c" * 40}
    assert revision_text(pinned, lock) == f"revision {'c' * 12}, pinned in the study"


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {"b": {}}}', '{"a": {"b": "c"}}', "\xff"])
def test_a_damaged_lock_file_is_one_clear_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"lock\.json is damaged") as error:
        CorporaLock(path).record("some/one", None, revision="a" * 40)
    assert "\n" not in str(error.value)


def test_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mhclite.data.hub import CorporaLock\n"
        "for i in range(20):\n"
        "    CorporaLock(Path(sys.argv[1])).record(f'{sys.argv[2]}/{i}', None, revision='a')\n"
    )
    path = tmp_path / "lock.json"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in ("x", "y", "z")
    ]
    assert [process.wait(timeout=30) for process in running] == [0, 0, 0]
    assert len(json.loads(path.read_text())) == 60
