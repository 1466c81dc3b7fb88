"""Which documents are for validation: by hash of their text, or drawn as the authors' code does."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mhclite.data.manifest import Split, SplitRule


def split_of(text: bytes, validation_fraction: float) -> Split:
    """The split of a document: the first 64 bits of its text's SHA-256, as a fraction of 2^64.

    So equal texts share a split, and neither order nor number of the other documents matter.
    """
    fraction = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    return "validation" if fraction < validation_fraction else "train"


def drawn_for_validation(documents: int, fraction: float, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of the documents that `datasets` would put into its test split, sorted.

    The same as `Dataset.train_test_split(test_size=fraction, seed=seed, shuffle=True)`: the first
    entries of a permutation. Takes 8 bytes a document.
    """
    permutation = np.random.default_rng(seed).permutation(documents)
    return np.sort(permutation[: math.ceil(fraction * documents)])


@dataclass(frozen=True)
class Splitter:
    """Tells the split of each document.

    Attributes:
        fraction: share for validation.
        held_out: sorted numbers of the validation documents; None: by hash.
    """

    fraction: float
    held_out: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, corpus: dict[str, Any], documents: int, cut: bool) -> Splitter:
        """The splitter of a corpus (`study.sections.Corpus` as JSON) with this many documents.

        Args:
            cut: it is one text, cut in two: the second part is for validation.
        """
        fraction, seed = corpus["validation_fraction"], corpus["split_seed"]
        if cut:
            return cls(fraction, np.array([1]))
        if seed is None:
            return cls(fraction, None)
        return cls(fraction, drawn_for_validation(documents, fraction, seed))

    def between(self, first: int, end: int) -> Splitter:
        """The splitter of documents [first, end) alone, small enough to be sent to a process."""
        if self.held_out is None:
            return self
        start, stop = np.searchsorted(self.held_out, [first, end])
        return Splitter(self.fraction, self.held_out[start:stop])

    def split(self, number: int, text: bytes) -> Split:
        """The split of the document with this number in the corpus and this text (UTF-8)."""
        if self.held_out is None:
            return split_of(text, self.fraction)
        index = np.searchsorted(self.held_out, number)
        drawn = index < len(self.held_out) and self.held_out[index] == number
        return "validation" if drawn else "train"


def rule(corpus: dict[str, Any], cut: bool) -> SplitRule:
    """The manifest's `split`."""
    fraction, seed = corpus["validation_fraction"], corpus["split_seed"]
    if cut:
        return SplitRule("the end of the one text, from a line's beginning", fraction)
    by_hash = "sha256 of the text"
    drawn = f"train_test_split of the library datasets, shuffled with seed {seed}"
    return SplitRule(by_hash if seed is None else drawn, fraction)
