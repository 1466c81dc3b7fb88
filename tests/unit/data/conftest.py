"""Small corpora for the tests of `mhclite.data`."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_corpora import documents, settings

from mhclite.data.prepare import prepare


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with 40 documents as .txt, named in order."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(documents(40)):
        (folder / f"{i:03d}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture
def prepared(tmp_path: Path, texts: Path) -> Path:
    """A prepared corpus of several small shards."""
    folder = tmp_path / "prepared"
    prepare(settings(f"{texts}/*.txt"), folder, part_bytes=400)
    return folder
