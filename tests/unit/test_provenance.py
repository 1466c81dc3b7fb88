"""The digest of the code that decides a result."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhclite.connections.registry import VARIANTS
from mhclite.runs import provenance
from mhclite.runs.provenance import code_digest, source_modules


def forget() -> None:
    provenance._parsed.cache_clear()
    code_digest.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that the digests are taken of."""
    copy = tmp_path / "mhclite"
    shutil.copytree(
        provenance.PACKAGE_ROOT, copy, ignore=shutil.ignore_patterns("__pycache__", "embedded")
    )
    monkeypatch.setattr(provenance, "PACKAGE_ROOT", copy)
    forget()
    yield copy
    forget()


def digests() -> dict[str, str]:
    """Of every variant's training, as `training.loop` takes them."""
    forget()
    return {
        variant: code_digest("mhclite.training.loop", f"mhclite.connections.{variant}")
        for variant in VARIANTS
    }


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def changed(before: dict[str, str]) -> set[str]:
    after = digests()
    return {variant for variant in before if before[variant] != after[variant]}


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = digests()
    path = package / "model.py"
    edit(path, '"""The GPT of the paper', '"""A GPT, as in the paper')
    edit(path, '"""Multi-head causal attention', '"""Causal attention')
    edit(
        path,
        "x = self.embed(tokens)",
        "x = self.embed(\n            tokens,\n        )  # a comment",
    )
    assert changed(before) == set()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("model.py", "std=std", "std=2 * std"),
        ("training/optimizer.py", "eps=1e-8", "eps=1e-9"),
        ("data/batches.py", '"batches"', '"others"'),
        ("seeding.py", "2**63 - 1", "2**62 - 1"),  # imported by what is imported
        ("connections/base.py", "2 * torch.sigmoid", "3 * torch.sigmoid"),
    ],
)
def test_shared_code_counts_for_every_variant(package: Path, file: str, old: str, new: str) -> None:
    before = digests()
    edit(package / file, old, new)
    assert changed(before) == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variants_file_counts_for_it_alone(package: Path, variant: str) -> None:
    before = digests()
    with (package / "connections" / f"{variant}.py").open("a") as file:
        file.write("\nADDED = 1\n")
    assert changed(before) == {variant}


@pytest.mark.parametrize("file", ["measure/throughput.py", "evidence/exhibits.py", "study.py"])
def test_code_that_training_does_not_use_does_not_count(package: Path, file: str) -> None:
    before = digests()
    with (package / file).open("a") as opened:
        opened.write("\nADDED = 1\n")
    assert changed(before) == set()


def test_digests_do_not_depend_on_the_version_of_python() -> None:
    """f-strings, empty fields, patterns: the tree of each version, as one text, pinned here."""
    source = """
def f(x: int, *, n=3) -> str:
    a = "a" f"{x!r:>{n}}" 'b'
    return f"{d['k']}" + f'{x=}'
"""
    text = json.dumps(provenance.canonical(ast.parse(source)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f99f46ba9e3b9eee"


def test_a_bundle_knows_the_commit_that_it_was_made_from(package: Path) -> None:
    packed = {"commit": "0" * 40, "dirty": False}
    (package / provenance.PACKED).write_text(json.dumps(packed))
    assert provenance.git_state() == packed


def test_modules_are_found_through_their_imports() -> None:
    found = source_modules("mhclite.training.loop", "mhclite.connections.mhc")
    assert {"mhclite.model", "mhclite.seeding", "mhclite.connections.mixing"} <= set(found)
    assert "mhclite.connections.hc" not in found
    assert found == sorted(found)


def test_provenance_names_versions_and_hardware() -> None:
    found = provenance.provenance()
    assert {"python", "torch", "numpy"} <= found["versions"].keys()
    assert found["hardware"]["cores"] >= 1
    assert found["git"].keys() == {"commit", "dirty"}
