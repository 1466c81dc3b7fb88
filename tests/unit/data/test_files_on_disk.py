"""Local files as people really have them: links, folders, odd names, files that change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpora import documents, settings

from mhclite.data.corpora import changed, content, open_source
from mhclite.data.manifest import Manifest
from mhclite.data.prepare import prepare
from mhclite.data.reading import Piece, examine, read
from mhclite.errors import UserError
from mhclite.study.text_files import matching

# --- files that change --------------------------------------------------------------------------


def prepare_in(tmp_path: Path) -> tuple[Manifest, dict[str, Any], Path]:
    """A corpus of the files `d/*.txt`: manifest, settings, folder."""
    (tmp_path / "d").mkdir()
    for i, text in enumerate(documents(40)):
        (tmp_path / "d" / f"{i:03d}.txt").write_text(text)
    chosen, folder = settings(f"{tmp_path}/d/*.txt"), tmp_path / "out"
    return prepare(chosen, folder), chosen["corpus"], folder


def rewrite(folder: Path) -> None:
    """The same number of bytes, dated before the manifest, as `cp --preserve` leaves it."""
    path = folder / "003.txt"
    path.write_text(path.read_text()[::-1])
    os.utime(path, (1, 1))


def add(folder: Path) -> None:
    (folder / "040.txt").write_text("one more")


def remove(folder: Path) -> None:
    (folder / "003.txt").unlink()


@pytest.mark.parametrize("change", [rewrite, add, remove])
def test_other_files_are_another_text(tmp_path: Path, change: Any) -> None:
    manifest, corpus, folder = prepare_in(tmp_path)
    before = content(corpus, folder)
    assert before == content(corpus, tmp_path / "not prepared"), "else the first start ends stale"
    assert not changed(corpus, folder)
    change(tmp_path / "d")
    assert changed(corpus, folder)
    assert content(corpus, folder) != before
    again = prepare(settings(corpus["files"]), folder)
    assert again.digest != manifest.digest
    assert not changed(corpus, folder)


def test_a_file_that_was_only_touched_is_the_same_text(tmp_path: Path) -> None:
    _, corpus, folder = prepare_in(tmp_path)
    (tmp_path / "d" / "003.txt").touch()
    assert not changed(corpus, folder)


def test_a_file_that_changes_while_it_is_read_stops(tmp_path: Path) -> None:
    _, corpus, _ = prepare_in(tmp_path)
    source = open_source(corpus, tmp_path)
    source.check()
    (tmp_path / "d" / "003.txt").write_text("another text")
    with pytest.raises(UserError, match="changed while they were read"):
        source.check()


# --- damage, encodings --------------------------------------------------------------------------


def texts_of(path: Path) -> list[str]:
    return [t for piece in examine(str(path), "text").pieces for t in read(piece, "text")]


def test_a_zeroed_page_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{i} {'word ' * 50}" for i in range(900)]})
    pq.write_table(
        table,
        path,
        row_group_size=300,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset + column.total_compressed_size // 2
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet"):
        texts_of(path)


@pytest.mark.parametrize(
    "kind",
    [pa.dictionary(pa.int32(), pa.string()), pa.string_view(), pa.large_string()],  # a category
    ids=str,
)
def test_text_is_read_however_its_column_is_stored(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["é", "b", "é"])
    if pa.types.is_dictionary(kind):
        column = column.dictionary_encode()
    pq.write_table(pa.table({"text": column.cast(kind)}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == ["é", "b", "é"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"a\n"),
        ("a.jsonl", b'{"text": "a\\n"}\n'),
        ("b.jsonl", b'{"text": "\xef\xbb\xbfa\\n"}\n'),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
    assert texts_of(tmp_path / name) == ["a\n"]


def test_one_text_is_cut_at_a_line_near_its_end(tmp_path: Path) -> None:
    text = "".join(f"line {i} of a play\n" for i in range(400))
    (tmp_path / "input.txt").write_text(text)
    chosen = settings(f"{tmp_path}/input.txt", validation_fraction=0.1)
    manifest = prepare(chosen, tmp_path / "out")
    assert (manifest.train.documents, manifest.validation.documents) == (1, 1)
    assert manifest.train.bytes + manifest.validation.bytes == len(text)
    assert 0 <= 0.1 * len(text) - manifest.validation.bytes < 20
    first, second = read(Piece(f"{tmp_path}/input.txt", 2, len(text), cut=0.1), "text")
    assert first + second == text
    assert first.endswith("\n")


def test_no_document_and_one_record_say_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n")
    with pytest.raises(UserError, match="hold no document"):
        prepare(settings(str(path)), tmp_path / "out")
    path.write_text('{"text": "one"}\n')
    with pytest.raises(UserError, match=r"no text fell into the .* split, of 1 document with"):
        prepare(settings(str(path)), tmp_path / "out")


# --- names --------------------------------------------------------------------------------------


def test_home_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.txt").write_text("a")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    for pattern in ("~/plain/*.txt", "$SCRATCH/plain/*.txt"):
        assert [path.name for path in matching(pattern)] == ["a.txt"], pattern
    with pytest.raises(UserError, match=r"no file matches '.*plain/' \(looked in "):
        matching(f"{tmp_path}/plain/")


def test_a_suffix_that_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_text("a")
    with pytest.raises(UserError, match=r"a\.txt\.gz.* none of \.txt.*to_parquet"):
        matching(f"{tmp_path}/*")


@pytest.mark.parametrize("target", ["nothing", "a pipe"])
def test_what_is_no_file_is_named(tmp_path: Path, target: str) -> None:
    if target == "a pipe":
        os.mkfifo(tmp_path / "a.txt")
    else:
        (tmp_path / "a.txt").symlink_to("/annex/b")
    with pytest.raises(UserError, match=r"a\.txt is no regular file"):
        matching(f"{tmp_path}/*")
