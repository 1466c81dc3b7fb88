"""The step as a whole: same input, same bytes; half-done work is never taken for done."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpora import documents, settings

from mhclite.data import prepare as step
from mhclite.data.manifest import SPLITS, Split, load_manifest, open_split
from mhclite.data.parts import PartJob, split_of, tokenize
from mhclite.data.prepare import prepare
from mhclite.data.tokenization import load
from mhclite.errors import UserError
from mhclite.runs.parquet import STUDY, unpack
from mhclite.study.load import load_study

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


def test_all_text_is_in_the_split_of_its_hash(tmp_path: Path, texts: Path) -> None:
    out, chosen = tmp_path / "out", settings(f"{texts}/*.txt")
    manifest = prepare(chosen, out, part_bytes=600)
    assert manifest == load_manifest(out)
    for split in SPLITS:
        expected = [t for t in documents(40) if split_of(t.encode(), 0.25) == split]
        assert texts_of(out, split) == expected
        assert manifest.splits[split].documents == len(expected)
        assert manifest.splits[split].bytes == sum(len(text.encode()) for text in expected)
    assert manifest.tokenizer.n_tokens <= manifest.tokenizer.vocab_size == 300
    assert 0 < manifest.baselines.bigram < manifest.baselines.unigram


def test_validation_text_does_not_shape_the_tokenizer(tmp_path: Path) -> None:
    train = [text for text in documents(60) if split_of(text.encode(), 0.25) == "train"]
    held_out = [f"zyzzyva {i}" for i in range(99)]
    held_out = [text for text in held_out if split_of(text.encode(), 0.25) == "validation"]
    for name, texts in (("one", [*train, *held_out[:1]]), ("two", [*train, *held_out])):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"text": text}) for text in texts)
        )
        prepare(settings(f"{tmp_path}/{name}.jsonl"), tmp_path / name)
    one, two = (content(tmp_path / name) for name in ("one", "two"))
    assert one["tokenizer.json"] == two["tokenizer.json"]
    assert one["train-00000.bin"] == two["train-00000.bin"]
    assert one["validation-00000.bin"] != two["validation-00000.bin"]


def many_files(folder: Path) -> str:
    """Parquet files with several row groups, and JSONL: 400 documents."""
    folder.mkdir()
    texts = documents(400)
    pq.write_table(pa.table({"text": texts[:150]}), folder / "0.parquet", row_group_size=20)
    pq.write_table(pa.table({"text": texts[150:300]}), folder / "1.parquet", row_group_size=200)
    lines = [json.dumps({"text": text}) for text in texts[300:]]
    (folder / "2.jsonl").write_text("\n".join(lines[:50]))
    (folder / "3.jsonl").write_text("\n".join(lines[50:]))
    return f"{folder}/*"


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    chosen = settings(many_files(tmp_path / "files"), split_seed=7)
    outs = [tmp_path / f"out{processes}" for processes in (1, 3)]
    for processes, out in zip((1, 3), outs, strict=True):
        prepare(chosen, out, processes, part_bytes=3000)
    assert content(outs[0]) == content(outs[1])
    before = {path: path.stat().st_mtime_ns for path in outs[0].iterdir()}
    prepare(chosen, outs[0], part_bytes=3000)  # nothing to do
    assert {path: path.stat().st_mtime_ns for path in outs[0].iterdir()} == before
    assert len(load_manifest(outs[0]).train.shards) > 5
    # Parts change where shards end, not the tokens.
    prepare(chosen, tmp_path / "whole")
    assert len(load_manifest(tmp_path / "whole").train.shards) == 1
    for split in SPLITS:
        assert texts_of(outs[0], split) == texts_of(tmp_path / "whole", split)


def test_finished_parts_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(many_files(tmp_path / "files"))
    prepare(chosen, tmp_path / "whole", part_bytes=3000)
    out, done = tmp_path / "out", []

    def stopping(job: PartJob) -> tuple[int, int]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job.part.index)
        return tokenize(job)

    with monkeypatch.context() as patch:
        patch.setattr(step, "tokenize", stopping)
        with pytest.raises(KeyboardInterrupt):
            prepare(chosen, out, part_bytes=3000)
    assert done == [0, 1, 2]
    (out / "train-00001.bin").write_bytes(b"half")
    kept = (out / "train-00000.bin").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        prepare(chosen, out, part_bytes=3000)
    assert "2 of " in caplog.text  # the one that was damaged since is done again
    assert "parts are finished already" in caplog.text
    assert content(out) == content(tmp_path / "whole")
    assert (out / "train-00000.bin").stat().st_mtime_ns == kept


@pytest.mark.parametrize("change", ["files", "code", "plan"])
def test_what_was_begun_otherwise_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    chosen = settings(many_files(tmp_path / "files"))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(step, "ngram_baselines", interrupt)
        if change == "code":
            patch.setattr(step, "digest_of_modules", lambda modules: "that of another version")
        with pytest.raises(KeyboardInterrupt):
            prepare(chosen, out, part_bytes=3000)
    (out / "train-00000.bin").write_bytes(b"x" * (out / "train-00000.bin").stat().st_size)
    if change == "files":
        (tmp_path / "files" / "3.jsonl").write_text(json.dumps({"text": "one text instead"}))
    if change == "plan":
        (out / "parts" / "plan.txt").write_text("")
    prepare(chosen, out, part_bytes=3000)
    prepare(chosen, tmp_path / "whole", part_bytes=3000)
    assert content(out) == content(tmp_path / "whole")


def test_every_module_of_data_is_said_to_decide_the_bytes_or_not() -> None:
    """A new module is one of the two; whoever adds it says which."""
    others = {
        "corpora",  # which files: in the key as paths and states
        *("batches", "manifest"),  # read and check what was prepared
        *("pool", "prepare"),  # when, by which process, what is shown
    }
    deciding = {name.removeprefix("mhclite.data.") for name in step.PREPARATION}
    assert not deciding & others
    found = {path.stem for path in Path(step.__file__).parent.glob("*.py")} - {"__init__"}
    assert found == deciding | others


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_embedded_corpus_has_the_tokens_that_results_were_published_for(
    tmp_path: Path,
) -> None:
    unpack(ROOT / "results/published/laptop" / STUDY, tmp_path / "laptop")
    published = json.loads((tmp_path / "laptop/corpora/sotu/manifest.json").read_text())
    chosen = load_study(ROOT / "config/config.yaml").corpus_settings("sotu")
    prepare(chosen, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name in ("settings", "code", "split", "bigram_tokens"):  # others since, or gone
        del published[name]
    assert {key: manifest[key] for key in published} == published


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def damage(prepared: Path) -> None:
    path = prepared / "train-00000.bin"
    path.write_bytes(b"x" * path.stat().st_size)


def lose(prepared: Path) -> None:
    (prepared / "train-00001.bin").unlink()
    (prepared / ".train-00003.bin.99.tmp").write_bytes(b"of a killed process")


@pytest.mark.parametrize("harm", [damage, lose])
def test_what_is_damaged_or_interrupted_is_prepared_again(
    harm: Callable[[Path], None],
    prepared: Path,
    tmp_path: Path,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, chosen = content(prepared), settings(f"{texts}/*.txt")
    (prepared / "notes.md").write_text("somebody's own file")
    harm(prepared)
    with monkeypatch.context() as patch:
        patch.setattr(step, "ngram_baselines", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(chosen, prepared, part_bytes=200)
    assert not (prepared / "manifest.json").exists()
    with pytest.raises(UserError, match="not a prepared corpus"):
        open_split(prepared, "train")
    prepare(chosen, prepared, part_bytes=400)
    assert content(prepared) == {**whole, "notes.md": b"somebody's own file"}


def test_changed_files_and_other_code_prepare_again(
    prepared: Path, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for it, and not only when Snakemake has removed something before."""

    def again() -> bool:
        before = (prepared / "manifest.json").stat().st_mtime_ns
        prepare(settings(f"{texts}/*.txt"), prepared)
        return (prepared / "manifest.json").stat().st_mtime_ns != before

    assert not again()
    (texts / "000.txt").write_text("a text that was not there before")
    assert again()
    # The shards of before were smaller and more.
    assert sorted(content(prepared)) == [
        "manifest.json", "tokenizer.json", "train-00000.bin", "validation-00000.bin",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(step, "digest_of_modules", lambda names: "another")
        assert again()
    assert again()
    assert not again()


def test_other_settings_do_not_overwrite(prepared: Path, tmp_path: Path, texts: Path) -> None:
    before = content(prepared)
    with pytest.raises(UserError, match="prepared with other settings"):
        prepare(settings(f"{texts}/*.txt", vocab_size=301), prepared)
    assert content(prepared) == before


def test_an_empty_split_is_an_error(tmp_path: Path, texts: Path) -> None:
    out, chosen = tmp_path / "out", settings(f"{texts}/*.txt", validation_fraction=1e-9)
    with pytest.raises(UserError, match="no text fell into the validation split, of 40 documents"):
        prepare(chosen, out)
    assert not (out / "manifest.json").exists()
