"""A study's files in one Parquet file: byte for byte what they were."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhclite.errors import UserError
from mhclite.runs.parquet import STUDY, pack, unpack

FLOATS = st.floats(width=32) | st.floats()
VALUES = st.one_of(FLOATS, FLOATS, FLOATS, st.integers(-(2**63), 2**63 - 1), st.none(), st.text())
LINES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"step": st.integers(0, 9), "loss": FLOATS}),
        st.fixed_dictionaries({"step": st.integers(0, 9), "validation_loss": FLOATS}),
        st.dictionaries(st.sampled_from(["step", "loss", "a b", ""]), VALUES),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(series=st.lists(LINES, min_size=1, max_size=3), text=st.text())
def test_files_come_back_byte_for_byte(
    series: list[list[dict[str, object]]], text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever they hold: series of other types, keys in another order, no number at all."""
    folder = tmp_path_factory.mktemp("packed")
    files = {"resolved.json": text.encode(errors="replace")}
    for i, lines in enumerate(series):
        files[f"runs/r{i}/metrics.jsonl"] = "".join(f"{json.dumps(x)}\n" for x in lines).encode()
    for i, content in enumerate(files.values()):
        (folder / str(i)).write_bytes(content)
    pack({path: folder / str(i) for i, path in enumerate(files)}, folder / STUDY)
    unpack(folder / STUDY, folder / "back")
    assert {path: (folder / "back" / path).read_bytes() for path in files} == files


def test_a_run_is_a_row_of_series(tmp_path: Path) -> None:
    """As whoever reads it with pandas finds it: float32 where that is exact."""
    lines = [{"step": 0, "validation_loss": 0.1}] + [{"step": i, "loss": 0.5 / i} for i in (1, 2)]
    (tmp_path / "m").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    pack({"runs/one/metrics.jsonl": tmp_path / "m"}, tmp_path / STUDY)
    table = pq.read_table(tmp_path / STUDY)
    (row,) = table.to_pylist()
    assert (row["run"], row["series.loss"]) == ("one", [0.5, 0.25])
    assert str(table.schema.field("series.loss").type) == "list<element: float>"
    assert str(table.schema.field("series.validation_loss").type) == "list<element: double>"


@pytest.mark.parametrize("kind", ["cut", "of something else", "outside", "absolute"])
def test_another_file_is_one_line_and_writes_nothing(kind: str, tmp_path: Path) -> None:
    packed = tmp_path / "packed" / STUDY
    packed.parent.mkdir()
    if kind == "cut":
        packed.write_bytes(b"PAR1 and nothing more")
    elif kind == "of something else":
        pq.write_table(pa.table({"text": ["a"]}), packed)
    else:
        (tmp_path / "a").write_text("a")
        name = "runs/../../b" if kind == "outside" else str(tmp_path / "b")
        pack({"resolved.json": tmp_path / "a", name: tmp_path / "a"}, packed)
    with pytest.raises(UserError) as caught:
        unpack(packed, tmp_path / "back")
    assert str(packed) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"packed", "a"}
