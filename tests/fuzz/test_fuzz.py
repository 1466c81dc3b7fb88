"""Files that another might have written or broken: each is accepted, or refused with one line."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import configuration, write_corpus

from mhclite.authors import conformance
from mhclite.data.manifest import load_manifest, open_split
from mhclite.errors import UserError
from mhclite.evidence.claims import parse_claims
from mhclite.evidence.collect import check_run
from mhclite.measure.measured import StabilitySettings
from mhclite.measure.stability import judge
from mhclite.runs import progress
from mhclite.runs.folder import RunFolder
from mhclite.study.load import load_study, parse_study
from mhclite.training.loop import train

ROOT = Path(__file__).parents[2]
CASES: Counter[str] = Counter()
# As many times the cases below.
TIMES = 4 if "EXHAUSTIVE" in os.environ else 0.5
HANG = 20  # seconds after which a case counts as one

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([0, -1, 2**31, 2**64, 10**30, 1e300, float("nan"), float("inf"), -0.0]),
    st.floats(),
    st.sampled_from(["", " ", "\n", "'", '"', "..", "../..", "$(id)", "; rm -rf x", "{run}", "s0"]),
    st.text(max_size=12),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@st.composite
def mutated(draw: st.DrawFn, base: Any) -> Any:
    """A document with one to three places changed, removed, added or exchanged."""
    document = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        parent: Any = None
        key: Any = None
        inner = document
        while isinstance(inner, dict | list) and inner and draw(st.integers(0, 4)):
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            parent, key = inner, draw(st.sampled_from(keys))
            inner = inner[key]
        if parent is None:
            if draw(st.integers(0, 9)) == 0:
                document = draw(JUNK)
            continue
        match draw(st.integers(0, 4)):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[draw(st.text(max_size=8))] = draw(JUNK)
            case 2 if isinstance(parent, list):
                parent.append(copy.deepcopy(inner))
            case _:
                parent[key] = draw(JUNK)
    return document


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some places flipped, removed, doubled or cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(found) - 1)))
        match draw(st.integers(0, 4)):
            case 0:
                del found[place:]
            case 1:
                del found[place : place + draw(st.integers(1, 40))]
            case 2:
                found[place:place] = found[place : place + 20]
            case 3:
                found[place:place] = draw(st.binary(max_size=6))
            case _ if found:
                found[place] ^= draw(st.integers(1, 255))
    return bytes(found)


@contextmanager
def one_line_at_most(kind: str) -> Iterator[None]:
    """No exception, or a `UserError` of one line; and an end."""

    def too_long(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"a case takes longer than {HANG} s")

    CASES[kind] += 1
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(HANG)
    try:
        yield
    except UserError as error:
        message = str(error)
        assert message.strip()
        assert "\n" not in message, message
        assert len(message) < 2000, message
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(cases: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=int(cases * TIMES),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


# --- what people write -------------------------------------------------------------------------

STUDIES = {name: (ROOT / "config" / f"{name}.yaml").read_text() for name in ("smoke", "stress")}
CLAIMS = yaml.safe_load((ROOT / "config" / "claims.yaml").read_text())


@fuzz(875)
@given(st.sampled_from(sorted(STUDIES)).flatmap(lambda name: mutated(study_of(name))))
def test_studies(document: Any) -> None:
    with one_line_at_most("study"):
        study = parse_study(document)
        for run in study.runs():  # ids are folder names, and words of a command line
            assert re.fullmatch(r"[a-z0-9_-]+", run)


@cache
def study_of(name: str) -> Any:
    return yaml.safe_load(STUDIES[name])


@fuzz(375)
@given(content=damaged(STUDIES["smoke"].encode()))
def test_study_files(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "study.yaml"
    path.write_bytes(content)
    with one_line_at_most("study file"):
        load_study(path)


@fuzz(750)
@given(st.lists(st.sampled_from(CLAIMS), min_size=1, max_size=3).flatmap(mutated))
def test_claims(document: Any) -> None:
    with one_line_at_most("claims"):
        parse_claims(document, "claims.yaml")


# --- what a run and a corpus leave ---------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a finished run, as results/tiny/runs/<run>."""
    folder = tmp_path_factory.mktemp("fuzz")
    corpus = write_corpus(folder / "corpus")
    config = configuration()
    run = folder / "results" / "tiny" / "runs" / config.run
    train(config, corpus, run)
    (folder / "whole").mkdir()
    for path in (*run.iterdir(), *corpus.iterdir()):
        (folder / "whole" / path.name).write_bytes(path.read_bytes())
    return folder


def read_run(folder: Path) -> None:
    """All that reads a run folder: the steps after training, `status`, and training itself."""
    config = configuration()
    out = folder / "results" / "tiny"
    with one_line_at_most("run folder"):
        progress.status_of(out, config)
        run = RunFolder(out / "runs" / config.run).finished()
        check_run(run, config, load_manifest(folder / "corpus").digest)
        judge(run, STABILITY)


STABILITY = StabilitySettings(spike_window=4, spike_sigmas=3.0, fluctuation_window=4)


@pytest.mark.parametrize("name", ["run.json", "summary.json", "metrics.jsonl", "timing.jsonl"])
@pytest.mark.parametrize("how", ["changed", "damaged"])
def test_run_folders(name: str, how: str, place: Path) -> None:
    path = place / "results" / "tiny" / "runs" / configuration().run / name
    whole = (place / "whole" / name).read_bytes()

    @fuzz(50)
    @given(st.data())
    def case(data: st.DataObject) -> None:
        if how == "damaged":
            content = data.draw(damaged(whole))
        else:
            lines = [json.loads(line) for line in whole.splitlines()] if "jsonl" in name else None
            document = data.draw(mutated(lines or json.loads(whole)))
            rows = document if lines and isinstance(document, list) else [document]
            content = "\n".join(map(json.dumps, rows)).encode() + b"\n"
        path.write_bytes(content)
        read_run(place)

    try:
        case()
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("how", ["changed", "damaged"])
def test_manifests(how: str, place: Path) -> None:
    path = place / "corpus" / "manifest.json"
    whole = (place / "whole" / "manifest.json").read_bytes()

    @fuzz(125)
    @given(st.data())
    def case(data: st.DataObject) -> None:
        if how == "damaged":
            path.write_bytes(data.draw(damaged(whole)))
        else:
            path.write_text(json.dumps(data.draw(mutated(json.loads(whole)))))
        with one_line_at_most("manifest"):
            for split in ("train", "validation"):
                open_split(place / "corpus", split)

    try:
        case()
    finally:
        path.write_bytes(whole)


# --- golden files --------------------------------------------------------------------------------

GOLDEN = ROOT / "tests" / "golden" / "connection_mhc_n2.npz"


@fuzz(125)
@given(content=damaged(GOLDEN.read_bytes()))
def test_golden_files(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "golden.npz"
    path.write_bytes(content)
    with one_line_at_most("golden file"):
        conformance.check_file(path)


def test_enough_cases_were_tried(tell: Callable[[str], None]) -> None:
    """Stands last: hypothesis must not have given up early."""
    if len(CASES) < 6:
        pytest.skip("only some of the tests of this file were run")
    assert CASES.total() >= 2500 * TIMES, CASES
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(CASES.items()))
    tell(f"fuzzing: {CASES.total():,} cases, each accepted or refused with one line ({kinds})")
