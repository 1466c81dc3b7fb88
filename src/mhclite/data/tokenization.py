"""Text to tokens: a small byte-level BPE of our own, or GPT-2's.

Both are byte-level: every text can be encoded and decodes to itself. A text that happens to contain
`<|endoftext|>` is ordinary text; only `prepare` writes the end-of-text id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mhclite.data.tokens import Ids
from mhclite.errors import UserError
from mhclite.files import read_json, write_json, write_text

TOKENIZER = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
GPT2_MERGES = "gpt2-vocab.bpe"
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
GPT2_END_OF_TEXT = 50256
# GPT-2's rule for the words inside which bytes are merged. Possessive (++, $) where that changes
# nothing: a run of a million letters or spaces would otherwise overflow the matcher's stack.
GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# No word reaches across this place, so that both sides can be encoded apart.
_SAFE_CUT = re.compile(r"(?<=[!-~])(?= )")
PIECE_CHARACTERS = 1 << 18
LONGEST_WORD = 1024  # bytes that the training of a BPE takes for one word, at most


def pieces(text: str, size: int = PIECE_CHARACTERS) -> list[str]:
    """Cut a long text where that does not change its tokens.

    A whole book in one file would otherwise take some hundred bytes of memory per token.

    Args:
        text: any text.
        size: characters after which a piece ends at the next safe place, if there is one.
    """
    assert size > 0, size
    parts, start = [], 0
    while cut := _SAFE_CUT.search(text, start + size):
        parts.append(text[start : cut.start()])
        start = cut.start()
    return [*parts, text[start:]]


def _joined(encoded: Iterator[Sequence[int]], counts: list[int]) -> list[Ids]:
    """Ids of texts from those of their pieces: `counts[i]` pieces belong to text i."""
    return [
        np.concatenate([np.asarray(next(encoded), dtype=np.uint16) for _ in range(count)])
        for count in counts
    ]


class ByteLevelBPE:
    """A byte-level BPE trained here (library `tokenizers`)."""

    kind = "bpe"

    def __init__(self, tokenizer: Any) -> None:
        # `tokenizers.Tokenizer`; without this its special tokens would be found inside texts.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.n_tokens = int(tokenizer.get_vocab_size())
        self.eot_id = int(tokenizer.token_to_id(END_OF_TEXT))

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> ByteLevelBPE:
        """Learn merges until there are `vocab_size` tokens, or no pair occurs twice.

        The result depends on the documents and the size alone, not on threads.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        # The time to learn merges grows with the square of the longest word, which is a whole text
        # where nothing separates words: DNA, base64, blanks, some languages.
        short = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, short])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        texts = (piece for document in documents for piece in pieces(document))
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.pre_tokenizer = words
        return cls(tokenizer)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without the end-of-text id."""
        parts = [pieces(text) for text in texts]
        flat = [piece for part in parts for piece in part]
        encodings = self._tokenizer.encode_batch_fast(flat, add_special_tokens=False)
        return _joined((encoding.ids for encoding in encodings), [len(part) for part in parts])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        """Write the tokenizer in the format of `tokenizers`."""
        write_text(folder / TOKENIZER, self._tokenizer.to_str(pretty=True) + "\n")


class GPT2:
    """GPT-2's tokenizer (library `tiktoken`) over the merges inside the package: no network."""

    kind = "gpt2"
    n_tokens = GPT2_END_OF_TEXT + 1
    eot_id = GPT2_END_OF_TEXT

    def __init__(self) -> None:
        import tiktoken

        self._encoding = tiktoken.Encoding(
            "gpt2",
            pat_str=GPT2_WORDS,
            mergeable_ranks=gpt2_ranks(embedded_merges()),
            special_tokens={END_OF_TEXT: GPT2_END_OF_TEXT},
            explicit_n_vocab=self.n_tokens,
        )

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without the end-of-text id."""
        return [np.concatenate([self._ids(piece) for piece in pieces(text)]) for text in texts]

    def _ids(self, text: str) -> Ids:
        # Without special tokens, as `encode_ordinary`; that one makes a Python integer of each id.
        found = self._encoding.encode_to_numpy(text, disallowed_special=())
        return np.asarray(found, dtype=np.uint16)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        return str(self._encoding.decode([int(i) for i in ids]))

    def save(self, folder: Path) -> None:
        """Write which merges these are; they themselves are part of the package."""
        write_json(folder / TOKENIZER, {"kind": self.kind, "merges_sha256": GPT2_MERGES_SHA256})


# Both have `kind`, `n_tokens` (ids in use: 0 ... n_tokens - 1) and `eot_id`, the token after every
# document.
TextTokenizer = ByteLevelBPE | GPT2


def make(kind: str, vocab_size: int, texts: Iterable[str]) -> TextTokenizer:
    """GPT-2's tokenizer, or a BPE trained on the texts; for `gpt2` they are not read."""
    return GPT2() if kind == GPT2.kind else ByteLevelBPE.train(texts, vocab_size)


def load(folder: Path) -> TextTokenizer:
    """The tokenizer of a prepared corpus.

    Raises:
        UserError: its `tokenizer.json` is missing or damaged.
    """
    path = Path(folder) / TOKENIZER
    content = read_json(path, "tokenizer")
    if content == {"kind": GPT2.kind, "merges_sha256": GPT2_MERGES_SHA256}:
        return GPT2()
    from tokenizers import Tokenizer

    try:
        return ByteLevelBPE(Tokenizer.from_str(json.dumps(content)))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"tokenizer {path} cannot be read ({error}); prepare it again") from None


def embedded_merges() -> str:
    """GPT-2's merges inside the package, their checksum compared."""
    data = resources.files("mhclite.data").joinpath("embedded", GPT2_MERGES).read_bytes()
    if hashlib.sha256(data).hexdigest() != GPT2_MERGES_SHA256:
        raise UserError(
            f"the package's own file data/embedded/{GPT2_MERGES} is damaged: its sha256 is not "
            f"{GPT2_MERGES_SHA256}; restore it from version control, or install mhclite again"
        )
    return data.decode("utf-8")


def gpt2_ranks(merges: str) -> dict[bytes, int]:
    """bytes of a token -> its id, from the lines of GPT-2's merges file.

    The file writes each byte as one printable character: a printable byte of Latin-1 as itself,
    the others, in order, as the characters from U+0100 on. Single bytes have their ids in the same
    order, printable ones first; each merge adds one id.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(others)}
    ranks = {bytes([byte]): i for i, byte in enumerate(printable + others)}
    for line in merges.splitlines()[1:]:  # the first line is a version
        left, right = line.split(" ")
        ranks[bytes(byte_of[c] for c in left + right)] = len(ranks)
    return ranks
