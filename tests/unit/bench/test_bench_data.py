"""The benchmark of preparation and reading, on a little text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhclite.bench import data, preparation
from mhclite.bench.__main__ import main


@pytest.mark.slow
def test_it_measures_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "ROUNDS", 1)
    monkeypatch.setattr(preparation, "GROUP_DOCUMENTS", 10)
    monkeypatch.setattr(preparation, "PARTS", 8)
    monkeypatch.setattr(data, "STEP_SECONDS", 0.01)
    out = tmp_path / "bench.json"
    options = ["--out", str(out), "--megabytes", "2", "--gigabytes", "0.01"]
    assert main(["data", *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6
    assert "9.04 B tokens" in said[3]
    found = json.loads(out.read_text())
    assert set(found["share_of_tokenizer"]) == {"encode_ordinary", "encode_to_numpy"}
    assert len(found["parts"]) >= 8
    assert found["scaling"]["ratio"] > 0
    assert found["memory"]["parts"] == preparation.LONG * len(found["parts"])
    assert sum(map(len, found["memory"]["mib_by_part"])) == found["memory"]["parts"]
    assert found["memory"]["largest_mib"] < 2048
    assert found["reading_seconds"]["warm"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_its_text_is_real_and_of_the_size_asked_for() -> None:
    files = list(preparation.documents(3))
    assert len(files) == preparation.FILES
    texts = [text for file in files for text in file]
    assert 3e6 <= sum(map(len, texts)) < 3.1e6
    assert all(len(text) >= preparation.DOCUMENT_CHARACTERS - 1 for text in texts)
    assert len(set(texts)) == len(texts)
