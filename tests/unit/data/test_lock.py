"""The corpora lock file: facts are recorded once and must stay the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhclite.data.corpora import CorporaLock
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


@pytest.mark.parametrize("content", ["{", '{"a": {"b": {}}}', "\xff"])
def test_a_damaged_lock_file_is_one_clear_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"lock\.json is damaged") as error:
        CorporaLock(path).record("some/one", None, revision="a" * 40)
    assert "\n" not in str(error.value)
