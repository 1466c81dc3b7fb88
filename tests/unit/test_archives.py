"""Archives from elsewhere, on Python with a filter of its own and without."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from mhclite.archives import extract


@pytest.fixture(params=["newer", "3.11.2"], autouse=True)
def python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "3.11.2":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
        monkeypatch.delattr(tarfile.TarFile, "extraction_filter", raising=False)


def packed(path: Path, *members: tuple[str, bytes, str]) -> Path:
    """An archive of (name, tar's type, target of a link or content)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
            else:
                info.linkname = text
                info.mode = 0o755
                tar.addfile(info)
    return path


FILE = ("runs/a/summary.json", tarfile.REGTYPE, "{}")


def test_files_links_and_folders_are_there(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "a.tar.gz",
        ("runs", tarfile.DIRTYPE, ""),
        FILE,
        ("runs/a/again.json", tarfile.LNKTYPE, "runs/a/summary.json"),
    )
    names = extract(path, tmp_path / "out")
    assert names == ["runs/a/summary.json", "runs/a/again.json"]
    assert (tmp_path / "out/runs/a/summary.json").read_text() == "{}"
    assert (tmp_path / "out/runs/a/again.json").read_text() == "{}"


def test_a_chosen_link_brings_the_file_that_was_not(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar.gz", FILE, ("again.json", tarfile.LNKTYPE, FILE[0]))
    extract(path, tmp_path / "out", "again.json".__eq__)
    assert [one.read_text() for one in (tmp_path / "out").rglob("*.json")] == ["{}"]


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("../evil", tarfile.REGTYPE, "x"),
        ("runs/../../evil", tarfile.REGTYPE, "x"),
        ("/tmp/mhclite-evil", tarfile.REGTYPE, "x"),
        ("hard", tarfile.LNKTYPE, "../../etc/passwd"),
        ("soft", tarfile.SYMTYPE, "runs"),
        ("pipe", tarfile.FIFOTYPE, ""),
    ],
)
def test_nothing_is_written_elsewhere(tmp_path: Path, name: str, kind: bytes, text: str) -> None:
    path = packed(tmp_path / "a.tar.gz", FILE, (name, kind, text))
    with pytest.raises(tarfile.TarError, match=r"outside|neither"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()  # not even the member before it
    assert not Path("/tmp/mhclite-evil").exists()
