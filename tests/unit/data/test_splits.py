"""Which documents are held out: ours by hash, the authors' as `datasets` draws them."""

from __future__ import annotations

from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mhclite.data.parts import Splitter, drawn_for_validation, split_of


def test_the_split_has_the_share_asked_for_and_ignores_other_documents() -> None:
    chosen = [split_of(f"text {i}".encode(), 0.2) for i in range(5000)]
    assert 900 < chosen.count("validation") < 1100
    # sha256(b"abc") = ba7816bf 8f01cfea ...: 0.72839...
    assert split_of(b"abc", 0.7283) == "train"
    assert split_of(b"abc", 0.7284) == "validation"


@settings(deadline=None, max_examples=20)
@given(
    documents=st.integers(2, 3000),
    fraction=st.floats(0.0001, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
@example(documents=2999, fraction=0.0005, seed=2357)  # OpenWebText's
@example(documents=2001, fraction=0.005, seed=42)  # FineWeb-Edu's
@example(documents=2000, fraction=0.005, seed=42)
def test_the_authors_split_is_that_of_datasets(documents: int, fraction: float, seed: int) -> None:
    numbers = Dataset.from_dict({"number": list(range(documents))})
    if int(documents - documents * fraction) < 1:
        return
    theirs = numbers.train_test_split(test_size=fraction, seed=seed, shuffle=True)
    assert drawn_for_validation(documents, fraction, seed).tolist() == sorted(
        theirs["test"]["number"]
    )
    corpus = {"validation_fraction": fraction, "split_seed": seed}
    whole = Splitter.of(corpus, documents, cut=False)
    middle = documents // 2
    parts = [whole.between(0, middle)] * middle + [whole.between(middle, documents)] * (
        documents - middle
    )
    held_out = set(theirs["test"]["number"])
    for number, part in enumerate(parts):
        expected = "validation" if number in held_out else "train"
        assert part.split(number, b"") == whole.split(number, b"") == expected
