"""Corpora inside archives: from files and wheels made here, never over a network."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from small_corpora import documents, settings

from mhclite.archives import members
from mhclite.data.manifest import Manifest
from mhclite.data.prepare import prepare
from mhclite.errors import UserError
from mhclite.files import sha256_of

TEXTS = documents(40)
MEMBERS = {
    "texts/b.jsonl": "\n".join(json.dumps({"body": text}) for text in TEXTS[25:]),
    "texts/a.jsonl": "\n".join(json.dumps({"body": text}) for text in TEXTS[:25]),
    "README.md": "of no use",
}


@pytest.fixture(autouse=True)
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that pip looks into."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def write_zip(folder: Path) -> str:
    with zipfile.ZipFile(folder / "texts.zip", "w") as archive:
        for name, text in MEMBERS.items():
            archive.writestr(name, text)
    return (folder / "texts.zip").as_uri()


def write_tar(folder: Path) -> str:
    with tarfile.open(folder / "texts.tar.gz", "w:gz") as archive:
        for name, text in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return (folder / "texts.tar.gz").as_uri()


def write_wheel(folder: Path) -> str:
    info = "some_texts-1.2.dist-info"
    with zipfile.ZipFile(folder / "some_texts-1.2-py3-none-any.whl", "w") as archive:
        for name, text in MEMBERS.items():
            archive.writestr(f"some_texts/{name}", text)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: some-texts\nVersion: 1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return "some-texts==1.2"


def archived(links: Path, location: str, **changes: Any) -> dict[str, Any]:
    """Settings of the corpus in the one archive that `links` holds."""
    (path,) = links.iterdir()
    return settings(
        source="archive",
        **{
            "archive": location,
            "sha256": sha256_of(path),
            "member": "*texts/*.json*",
            "license": "public domain",
            "text_field": "body",
            **changes,
        },
    )


def prepared(tmp_path: Path, chosen: dict[str, Any], name: str = "out") -> Manifest:
    return prepare(chosen, tmp_path / "corpora" / name)


@pytest.mark.parametrize("write", [write_zip, write_tar, write_wheel])
def test_an_archive_is_fetched_once_and_read_like_files(
    tmp_path: Path, links: Path, write: Callable[[Path], str]
) -> None:
    location = write(links)
    chosen = archived(links, location)
    manifest = prepared(tmp_path, chosen)
    (path,) = links.iterdir()
    (file,) = manifest.source.files
    assert (file.path, file.sha256, file.bytes) == (
        location,
        sha256_of(path),
        path.stat().st_size,
    )
    assert manifest.source.license == "public domain"
    (tmp_path / "same.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    assert manifest.digest == prepared(tmp_path, settings(f"{tmp_path}/same.jsonl"), "same").digest

    # A damaged download is fetched again, a whole one is not.
    downloads = tmp_path / "corpora" / "downloads"
    kept = downloads / file.sha256
    kept.write_bytes(b"half")
    prepared(tmp_path, chosen, "again")
    assert sha256_of(kept) == kept.name
    path.unlink()
    other = {**chosen, "corpus": {**chosen["corpus"], "member": "*a.jsonl"}}
    assert prepared(tmp_path, other, "other").train.documents < manifest.train.documents
    # Nothing half-done is left.
    assert len(list(downloads.iterdir())) == 4  # the archive, two extractions, the lock


def test_what_cannot_be_fetched_is_one_clear_line_and_can_be_copied_there(
    tmp_path: Path, links: Path
) -> None:
    location = "http://127.0.0.1:9/texts.zip"
    write_zip(links)
    chosen = archived(links, location)
    (path,) = links.iterdir()
    with pytest.raises(UserError) as error:
        prepared(tmp_path, chosen)
    message = str(error.value)
    assert message.startswith(f"{location} cannot be downloaded (")
    assert message.isprintable()
    target = tmp_path / "corpora" / "downloads" / chosen["corpus"]["sha256"]
    assert message.endswith(f"or copy the archive to {target}")
    path.rename(target)
    assert prepared(tmp_path, chosen).train.documents > 0


def test_another_archive_is_refused(tmp_path: Path, links: Path) -> None:
    chosen = archived(links, write_zip(links), sha256="0" * 64)
    with pytest.raises(UserError, match=r"the study says 0000.* nothing of it is used"):
        prepared(tmp_path, chosen)
    assert [path.name for path in (tmp_path / "corpora" / "downloads").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("content", "member"),
    [(None, "*.parquet"), (None, "*"), (b"just text", "*")],
)
def test_an_archive_without_the_files_is_one_clear_line(
    tmp_path: Path, links: Path, content: bytes | None, member: str
) -> None:
    """None that matches, one that is no text, no archive."""
    location = write_zip(links)
    if content is not None:
        (links / "texts.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"correct|narrow"):
        prepared(tmp_path, archived(links, location, member=member))


def read_back(content: bytes, downloads: Path) -> dict[str, str] | None:
    """Name -> text of what is read of an archive that is there; None if it is refused."""
    digest = sha256(content).hexdigest()
    (downloads / digest).write_bytes(content)
    try:
        found = members("file:///there", digest, "*texts/*", downloads)
    except UserError:
        return None
    return {f"texts/{path.name}": path.read_text() for path in found}


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_an_archive_that_is_not_whole_is_refused(
    tmp_path: Path, links: Path, write: Callable[[Path], str]
) -> None:
    """Whose SHA-256 is nevertheless the study's."""
    write(links)
    (path,) = links.iterdir()
    whole = path.read_bytes()
    expected = {name: text for name, text in MEMBERS.items() if name.startswith("texts/")}
    assert read_back(whole, tmp_path) == expected
    for place in (len(whole) // 4, len(whole) // 2, len(whole) - 9):
        assert read_back(whole[:place], tmp_path) is None
        found = read_back(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :], tmp_path)
        assert found in (None, expected)
