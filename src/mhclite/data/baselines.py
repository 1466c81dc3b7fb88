"""Counting models: what a trained model's loss is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mhclite.data.manifest import Baselines
from mhclite.data.tokens import TokenSplit

Array = npt.NDArray[np.generic]
CHUNK = 1 << 23  # tokens counted together; bounds the memory
BIGRAM_TOKENS = 50_000_000  # of the train split, for bigrams


def ngram_baselines(
    train: TokenSplit,
    validation: TokenSplit,
    n_tokens: int,
    eot_id: int,
    bigram_tokens: int = BIGRAM_TOKENS,
    chunk: int = CHUNK,
) -> Baselines:
    """Validation loss of a unigram and of a bigram model of the train split, in nats per token.

    Unigram, add-one smoothing over the V ids in use:

        p(b) = (c(b) + 1) / (N + V)

    Bigram, interpolated with it after Witten and Bell, where c(a) counts the pairs that begin
    with a, and t(a) how many different tokens follow it:

        p(b | a) = (c(a, b) + t(a) p(b)) / (c(a) + t(a)),    p(b) where a was never seen

    The more successors a token has, the more probability goes to ones not seen yet; nothing is
    fitted on validation. Both losses are means over all validation tokens; the first token of a
    split follows an end-of-text.

    Args:
        train: the split to count. Unigrams are counted over all of it, bigrams over its first
            `bigram_tokens` tokens only: a vocabulary of 50,257 has 2.5 billion possible pairs, and
            the memory for those that occur has to have a bound.
        validation: the split to predict.
        n_tokens: ids in use V, at most 65536.
        eot_id: the end-of-text id.
        bigram_tokens: see `train`.
        chunk: tokens counted together.

    Returns:
        Both losses to six decimals, so that they are the same on every machine.
    """
    unigram_counts = np.zeros(n_tokens, dtype=np.int64)
    for tokens in train.chunks(len(train), chunk):
        unigram_counts += np.bincount(tokens, minlength=n_tokens)
    unigram = (unigram_counts + 1) / (len(train) + n_tokens)

    pairs, counts = _count_pairs(train, min(bigram_tokens, len(train)), n_tokens, eot_id, chunk)
    first = pairs // np.uint32(n_tokens)
    seen = np.bincount(first, weights=counts, minlength=n_tokens)
    successors = np.bincount(first, minlength=n_tokens)

    losses = {"unigram": 0.0, "bigram": 0.0}
    for predicted in _pairs(validation, len(validation), n_tokens, eot_id, chunk):
        asked, times = np.unique(predicted, return_counts=True)
        a, b = np.divmod(asked, np.uint32(n_tokens))
        index = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
        joint = np.where(pairs[index] == asked, counts[index], 0)
        known = seen[a] + successors[a]
        with np.errstate(invalid="ignore"):  # 0 / 0 where `a` was never seen
            bigram = (joint + successors[a] * unigram[b]) / known
        bigram = np.where(known > 0, bigram, unigram[b])
        losses["unigram"] -= float(np.sum(times * np.log(unigram[b])))
        losses["bigram"] -= float(np.sum(times * np.log(bigram)))
    return Baselines(**{name: round(loss / len(validation), 6) for name, loss in losses.items()})


def _pairs(
    split: TokenSplit, length: int, n_tokens: int, eot_id: int, chunk: int
) -> Iterator[npt.NDArray[np.uint32]]:
    """The pairs a V + b of the first `length` tokens, chunk by chunk."""
    assert n_tokens <= 1 << 16, n_tokens  # so that a pair fits into 32 bits
    previous = eot_id
    for tokens in split.chunks(length, chunk):
        before = np.concatenate([[previous], tokens[:-1]])
        previous = int(tokens[-1])
        yield (before * n_tokens + tokens).astype(np.uint32)


def _count_pairs(
    split: TokenSplit, length: int, n_tokens: int, eot_id: int, chunk: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """The different pairs of the first `length` tokens (sorted) and how often each occurs.

    Takes at most 25 bytes per token, when no pair occurs twice.
    """
    pairs = np.empty(length, np.uint32)
    filled = 0
    for more in _pairs(split, length, n_tokens, eot_id, chunk):
        pairs[filled : filled + len(more)] = more
        filled += len(more)
    pairs.sort()
    first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    return pairs[first], np.diff(first, append=length).astype(np.uint32)
