"""The counting models against their formulas, written out."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import write_shards

from mhclite.data.baselines import ngram_baselines
from mhclite.data.manifest import Split
from mhclite.data.tokens import TokenSplit


def split_of(folder: Path, split: Split, tokens: list[int]) -> TokenSplit:
    shards = write_shards(folder, split, tokens, 5000)
    return TokenSplit([folder / shard.file for shard in shards])


def brute_force(
    train: list[int], validation: list[int], n_tokens: int, eot: int, bigram_tokens: int
) -> dict[str, float]:
    counts = Counter(train)
    pairs = Counter(pairwise([eot, *train[:bigram_tokens]]))

    def unigram(b: int) -> float:
        return (counts[b] + 1) / (len(train) + n_tokens)

    def bigram(a: int, b: int) -> float:
        seen = sum(count for (first, _), count in pairs.items() if first == a)
        different = sum(1 for first, _ in pairs if first == a)
        if not seen:
            return unigram(b)
        return (pairs[a, b] + different * unigram(b)) / (seen + different)

    assert sum(unigram(b) for b in range(n_tokens)) == pytest.approx(1)
    assert sum(bigram(validation[0], b) for b in range(n_tokens)) == pytest.approx(1)
    return {
        "unigram": -sum(math.log(unigram(b)) for b in validation) / len(validation),
        "bigram": -sum(math.log(bigram(a, b)) for a, b in pairwise([eot, *validation]))
        / len(validation),
    }


tokens = st.lists(st.integers(0, 6), min_size=1, max_size=40)


@settings(deadline=None, max_examples=50)
@given(
    train=tokens,
    validation=tokens,
    eot=st.integers(0, 6),
    chunk=st.integers(1, 50),
    limit=st.integers(1, 15),
)
@example(train=[0, 1, 2, 3, 1, 0], validation=[1, 2, 3], eot=0, chunk=2, limit=3)
def test_baselines_are_those_of_the_formulas(
    train: list[int], validation: list[int], eot: int, chunk: int, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        found = ngram_baselines(
            split_of(Path(name), "train", train),
            split_of(Path(name), "validation", validation),
            n_tokens=7,
            eot_id=eot,
            bigram_tokens=limit,
            chunk=chunk,
        )
    expected = brute_force(train, validation, 7, eot, min(limit, len(train)))
    assert asdict(found) == pytest.approx(expected, abs=1e-6)


def test_the_largest_vocabulary(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    n_tokens = 65536  # the pair (65535, 65535) is the last of 32 bits
    train = generator.integers(n_tokens - 300, n_tokens, 300_000)
    train[-2:] = n_tokens - 1
    found = ngram_baselines(
        split_of(tmp_path, "train", train.tolist()),
        split_of(tmp_path, "validation", [n_tokens - 1, n_tokens - 1]),
        n_tokens,
        0,
        chunk=100_000,
    )
    assert 0 < found.bigram < 12
    assert found.unigram == pytest.approx(
        -math.log((np.sum(train == n_tokens - 1) + 1) / (300_000 + n_tokens)), abs=1e-6
    )
