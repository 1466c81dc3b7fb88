"""The step as a whole: same input, same bytes; half-done work is never taken for done."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_corpora import documents, settings

from mhclite import cli
from mhclite.data import prepare as step
from mhclite.data.prepare import parse_settings, prepare, split_of
from mhclite.data.shards import SPLITS, Split, load_manifest, open_split
from mhclite.data.tokenization import load
from mhclite.errors import UserError
from mhclite.study import parse_study

ROOT = Path(__file__).parents[3]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def texts_of(folder: Path, split: Split) -> list[str]:
    """The documents of a split, from its tokens."""
    tokenizer = load(folder)
    tokens = open_split(folder, split)
    text = tokenizer.decode(tokens.read(0, len(tokens)).tolist())
    assert text.endswith("<|endoftext|>")
    return text.removesuffix("<|endoftext|>").split("<|endoftext|>")


@pytest.mark.parametrize(("kind", "vocab_size"), [("bpe", 300), ("gpt2", 50304)])
def test_all_text_is_in_the_split_of_its_hash(
    tmp_path: Path, texts: Path, kind: str, vocab_size: int
) -> None:
    out = tmp_path / "out"
    chosen = settings(f"{texts}/*.txt", kind=kind, vocab_size=vocab_size)
    manifest = prepare(chosen, out, tmp_path / "lock.json", shard_tokens=300)
    assert manifest == load_manifest(out)
    for split in SPLITS:
        expected = [t for t in documents(40) if split_of(t.encode(), 0.25) == split]
        assert texts_of(out, split) == expected
        assert manifest[split]["documents"] == len(expected)
        assert manifest[split]["bytes"] == sum(len(text.encode()) for text in expected)
    assert manifest["tokenizer"]["kind"] == kind
    assert manifest["tokenizer"]["vocab_size"] == vocab_size
    assert manifest["tokenizer"]["n_tokens"] <= vocab_size
    assert 0 < manifest["baselines"]["bigram"] < manifest["baselines"]["unigram"]


def test_the_split_has_the_share_asked_for_and_ignores_other_documents() -> None:
    chosen = [split_of(f"text {i}".encode(), 0.2) for i in range(5000)]
    assert 900 < chosen.count("validation") < 1100
    # sha256(b"abc") = ba7816bf 8f01cfea ...: 0.72839...
    assert split_of(b"abc", 0.7283) == "train"
    assert split_of(b"abc", 0.7284) == "validation"


def test_copies_of_a_text_share_a_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in documents(20) * 3)
    )
    out = tmp_path / "out"
    prepare(settings(f"{tmp_path}/*.jsonl"), out, tmp_path / "lock.json")
    assert not set(texts_of(out, "train")) & set(texts_of(out, "validation"))
    assert len(texts_of(out, "train")) + len(texts_of(out, "validation")) == 60


def test_validation_text_does_not_shape_the_tokenizer(tmp_path: Path) -> None:
    train = [text for text in documents(60) if split_of(text.encode(), 0.25) == "train"]
    held_out = [f"zyzzyva {i}" for i in range(99)]
    held_out = [text for text in held_out if split_of(text.encode(), 0.25) == "validation"]
    for name, texts in (("one", [*train, *held_out[:1]]), ("two", [*train, *held_out])):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"text": text}) for text in texts)
        )
        prepare(settings(f"{tmp_path}/{name}.jsonl"), tmp_path / name, tmp_path / "lock.json")
    one, two = (content(tmp_path / name) for name in ("one", "two"))
    assert one["tokenizer.json"] == two["tokenizer.json"]
    assert one["train-00000.bin"] == two["train-00000.bin"]
    assert one["validation-00000.bin"] != two["validation-00000.bin"]


def command(
    out: Path, chosen: dict[str, Any], **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mhclite", "prepare", "--settings", json.dumps(chosen),
         "--out", str(out), "--lock", str(out.parent / "corpora.lock.json")],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


EMBEDDED = settings(vocab_size=384, max_documents=40, validation_fraction=0.1)


def test_two_processes_write_the_same_bytes_and_a_third_time_does_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = EMBEDDED
    first, second = tmp_path / "first", tmp_path / "second"
    for out, threads, seed in ((first, "1", "1"), (second, "2", "2")):
        done = command(out, chosen, RAYON_NUM_THREADS=threads, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{out}: ")
        assert done.stdout.count("\n") == 1
    assert content(first) == content(second)
    assert load_manifest(first)["settings"] == chosen
    assert load_manifest(first)["tokenizer"]["n_tokens"] == chosen["tokenizer"]["vocab_size"]

    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    with caplog.at_level(logging.INFO):
        again = prepare(chosen, first, tmp_path / "corpora.lock.json")
    assert again == load_manifest(first)
    assert "already prepared" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    assert not (tmp_path / "corpora.lock.json").exists()  # for hub corpora only


@pytest.mark.parametrize("damaged", ["train-00000.bin", "validation-00000.bin"])
def test_damaged_shards_are_prepared_again(
    prepared: Path, tmp_path: Path, texts: Path, damaged: str
) -> None:
    whole = content(prepared)
    (prepared / damaged).write_bytes(b"x" * len(whole[damaged]))
    prepare(settings(f"{texts}/*.txt"), prepared, tmp_path / "lock.json", shard_tokens=200)
    assert content(prepared) == whole


def test_changed_files_are_prepared_again(prepared: Path, tmp_path: Path, texts: Path) -> None:
    before = load_manifest(prepared)
    (texts / "000.txt").write_text("a text that was not there before")
    after = prepare(settings(f"{texts}/*.txt"), prepared, tmp_path / "lock.json")
    assert after["digest"] != before["digest"]
    assert after["source"]["files"][1:] == before["source"]["files"][1:]
    # The shards of before were smaller and more.
    assert sorted(content(prepared)) == [
        "manifest.json", "tokenizer.json", "train-00000.bin", "validation-00000.bin",
    ]  # fmt: skip


def test_other_settings_do_not_overwrite(prepared: Path, tmp_path: Path, texts: Path) -> None:
    before = content(prepared)
    with pytest.raises(UserError, match="prepared with other settings"):
        prepare(settings(f"{texts}/*.txt", vocab_size=301), prepared, tmp_path / "lock.json")
    assert content(prepared) == before


def test_an_interrupted_preparation_counts_for_nothing(
    prepared: Path, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(prepared)
    (prepared / "train-00001.bin").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(step, "ngram_baselines", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(f"{texts}/*.txt"), prepared, tmp_path / "lock.json", shard_tokens=100)
    assert "manifest.json" not in content(prepared)
    with pytest.raises(UserError, match="not a prepared corpus"):
        open_split(prepared, "train")
    (prepared / ".train-00003.bin.99.tmp").write_bytes(b"of a killed process")
    (prepared / "notes.md").write_text("somebody's own file")
    prepare(settings(f"{texts}/*.txt"), prepared, tmp_path / "lock.json", shard_tokens=200)
    assert content(prepared) == {**whole, "notes.md": b"somebody's own file"}


@pytest.mark.parametrize(("fraction", "empty"), [(1e-9, "validation"), (1 - 1e-9, "train")])
def test_an_empty_split_is_an_error(
    tmp_path: Path, texts: Path, fraction: float, empty: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=f"no text fell into the {empty} split, of 40 documents"):
        prepare(
            settings(f"{texts}/*.txt", validation_fraction=fraction), out, tmp_path / "lock.json"
        )
    assert not (out / "manifest.json").exists()


def test_settings_are_those_of_a_study_with_its_defaults() -> None:
    config = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
    chosen = parse_study(config).corpus_settings("openwebtext")
    assert parse_settings(json.dumps(chosen)) == chosen
    del chosen["corpus"]["text_field"], chosen["corpus"]["max_documents"]
    assert parse_settings(json.dumps(chosen))["corpus"]["text_field"] == "text"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ('{"name": "a", "corpus": {"source": "embedded"}}', "tokenizer"),
        ('{"name": "a/b", "corpus": {}, "tokenizer": {}}', "a/b"),
        ('{"name": "a", "corpus": {"source": "web"}, "tokenizer": {}}', "source"),
        ('{"name": "a", "corpus": {"source": "embedded", "x": 1}, "tokenizer": {}}', "x"),
    ],
)
def test_bad_settings_are_one_clear_line(text: str, what: str) -> None:
    with pytest.raises(UserError, match=r"^--settings: ") as error:
        parse_settings(text)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_made_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    options = ["--out", str(tmp_path / "file"), "--lock", str(tmp_path / "lock.json")]
    assert cli.main(["prepare", "--settings", json.dumps(EMBEDDED), *options]) != 0
    (said,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in said
    assert "move the file away" in said
