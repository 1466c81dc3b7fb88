"""Texts and settings for the tests of `mhclite.data`."""

from __future__ import annotations

from typing import Any

WORDS = ("the union of these states", "is", "an old", "and", "a quarrelsome", "house,", "no?", "1")


def documents(count: int) -> list[str]:
    """Different short texts, always the same."""
    return [
        " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(5 + i % 9)) + f"\n§ {i}"
        for i in range(count)
    ]


def settings(
    files: str | None = None, kind: str = "bpe", vocab_size: int = 300, **corpus: Any
) -> dict[str, Any]:
    """Settings of a corpus as `Study.corpus_settings` gives them."""
    return {
        "name": "test",
        "corpus": {
            "source": "files" if files else "embedded",
            "files": files,
            "archive": None,
            "sha256": None,
            "member": None,
            "license": None,
            "text_field": "text",
            "repository": None,
            "subset": None,
            "revision": None,
            "expected_documents": None,
            "max_documents": None,
            "validation_fraction": 0.25,
            "split_seed": None,
            **corpus,
        },
        "tokenizer": {"kind": kind, "vocab_size": vocab_size},
    }
