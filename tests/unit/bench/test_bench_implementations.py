"""The benchmark of the implementations, on a model that takes no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhclite.bench import implementations
from mhclite.bench.__main__ import main
from mhclite.config import ModelConfig

TINY = ModelConfig("laptop", 32, n_layer=1, n_head=2, n_embd=16, block_size=8, learning_rate=1e-3)


@pytest.mark.slow
def test_it_measures_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(implementations.SIZES, "laptop", TINY)
    limits = {"bytes_per_second": 1e10, "flops_per_second": 1e11}
    monkeypatch.setattr(implementations, "limits", lambda device, dtype: limits)
    out = tmp_path / "bench.json"
    options = ["--variants", "mhc_lite", "--arms", "reference:eager", "fast:eager"]
    options += ["--rounds", "3", "--batch-size", "2", "--out", str(out)]
    assert main(["implementations", *options]) == 0
    found = json.loads(out.read_text())
    assert found["rounds"] == 3
    arms = [(row["variant"], row["implementation"]) for row in found["rows"]]
    assert arms == [("residual", ""), ("mhc_lite", "reference"), ("mhc_lite", "fast")]
    for row in found["rows"]:
        assert len(row["step_seconds"]) == 3
        if row["variant"] == "residual":
            assert row["ratio"] == [1.0] * 3
        else:
            assert row["floor"] > 1
    assert found["skipped"] == []
    assert {row["variant"] for row in found["kernels"]} == {"mhc_lite"}
    assert "step / residual" in capsys.readouterr().out

    assert main(["implementations", *options, "--minutes", "1e-9"]) == 0
    late = json.loads(out.read_text())
    assert late["rows"] == []
    assert late["skipped"] == ["laptop mhc_lite"]
    assert "not measured, for lack of time: laptop mhc_lite" in capsys.readouterr().out
