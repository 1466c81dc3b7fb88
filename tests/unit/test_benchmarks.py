"""The other benchmarks, on models and texts that take no time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interpreted import kernels_are_interpreted  # noqa: F401

from benchmarks import data, pipeline, step
from benchmarks.__main__ import main
from benchmarks.gradients import ARMS, NARROW, compare, gradients, made_up, measures
from benchmarks.kernels import TIMES_REFERENCE
from mhclite.config import ModelConfig
from mhclite.measure.steps import Stepper

TINY = ModelConfig("laptop", 32, n_layer=1, n_head=2, n_embd=16, block_size=8, learning_rate=1e-3)
CPU = torch.device("cpu")
LIMITS = {"bytes_per_second": 1e10, "flops_per_second": 1e11}


# --- steps --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_steps_are_measured_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(step.SIZES, "laptop", TINY)
    monkeypatch.setattr(step, "limits", lambda device: LIMITS)
    out = tmp_path / "bench.json"
    options = ["--variants", "mhc_lite", "--arms", "reference:eager", "fast:eager"]
    options += ["--rounds", "3", "--batch-size", "2", "--out", str(out)]
    assert main(["step", *options]) == 0
    found = json.loads(out.read_text())
    arms = [(row["variant"], row["implementation"]) for row in found["rows"]]
    assert arms == [("residual", ""), ("mhc_lite", "reference"), ("mhc_lite", "fast")]
    for row in found["rows"]:
        assert len(row["step_seconds"]) == 3
        if row["variant"] == "residual":
            assert row["ratio"] == [1.0] * 3
        else:
            assert row["floor"] > 1
    assert "step / residual" in capsys.readouterr().out


def test_the_floor_of_bytes() -> None:
    """In one dtype 25 numbers against 8; of bf16, less the residual's in float32."""
    C, sublayers = TINY.n_embd, 2 * TINY.n_layer
    assert step.extra_traffic(TINY, 4, 4, 4, 4) == sublayers * C * 4 * (25 - 8)
    assert step.extra_traffic(TINY, 4, 2, 4, 2) == sublayers * C * (2 * 25 - (5 * 4 + 4 * 2))


def test_an_arm_that_does_not_fit_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Stepper.step

    def fitting(self: Stepper) -> None:
        if self.connection.implementation == "reference" and self.connection.n_streams > 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        usual(self)

    monkeypatch.setattr(Stepper, "step", fitting)
    arms = ["reference:eager", "fast:eager"]
    rows = step.group_rows(TINY, "mhc_lite", 2, CPU, LIMITS, arms, rounds=1)
    failed = {row["implementation"]: row.get("failed") for row in rows}
    assert failed == {"": None, "fast": None, "reference": "out of memory"}


# --- gradients ----------------------------------------------------------------------------------

SMALL = replace(NARROW, n_embd=32, block_size=16)


def test_measures() -> None:
    exact = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).double()  # nothing in common
    found = exact + torch.tensor([[0, 0, 0.1], [0, 0, 0.1]])
    assert measures(exact, found) == pytest.approx({"error": 0.1, "noise": 1, "cosine": 1})
    same = measures(exact[:1].expand(2, -1), exact[:1] + 0.1 * torch.eye(3)[:2])
    assert same == pytest.approx({"error": 0.1, "noise": 0, "cosine": 0})


def test_what_bf16_makes_of_h_res_grows_with_depth_and_fp32_streams_do_not_have_it() -> None:
    """At the start rows of mHC-lite's H_res sum to 0.998 in bf16, in every sub-layer alike."""
    few, many = (
        compare(
            made_up("initial", "mhc_lite", replace(SMALL, n_layer=layers), 0),
            CPU,
            ("reference:authors", "reference:fp32"),
        )
        for layers in (3, 12)
    )
    growth = {arm: many[arm]["error"] / few[arm]["error"] for arm in many}
    assert growth["reference:authors"] > 2 > TIMES_REFERENCE > growth["reference:fp32"]


def test_gradients_are_written_without_the_arms_that_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    assert gradients(made_up("initial", "hc", SMALL, 0), "fused", "fp32", CPU) is None
    out = tmp_path / "out.json"
    options = ["--variants", "residual", "hc", "--layers", "1", "--seeds", "2", "--out", str(out)]
    assert main(["gradients", *options]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["arm"] for row in rows if row["variant"] == "hc"} == set(ARMS[:5])
    assert all(len(row["error"]) == 2 for row in rows)


# --- data and pipeline --------------------------------------------------------------------------


@pytest.mark.slow
def test_preparation_is_measured_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "ROUNDS", 1)
    monkeypatch.setattr(data, "GROUP_DOCUMENTS", 10)
    monkeypatch.setattr(data, "PARTS", 8)
    out = tmp_path / "bench.json"
    assert main(["data", "--out", str(out), "--megabytes", "2"]) == 0
    assert "9.04 B tokens" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert set(found["tokens_per_second"]) == {"tokenizer", "one process", "two processes"}
    assert all(speed > 0 for speed in found["tokens_per_second"].values())
    assert 0 < found["largest_process_mib"] < 2048
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_the_pipelines_share_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    jobs = Path(".snakemake/metadata")
    jobs.mkdir(parents=True)
    for at, (rule, study, start, end) in enumerate(
        [("train", "a", 0, 6), ("collect", "a", 6, 10), ("train", "b", 90, 99)]
    ):
        job = {"rule": rule, "log": [f"results/{study}/x"], "input": []}
        (jobs / str(at)).write_text(json.dumps(job | {"starttime": start, "endtime": end}))
    for run, threads, seconds in (("a", 1, [0.5, 0.5]), ("b", 2, [2.0])):
        folder = Path("results/a/runs", run)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"config": {"training": {"threads": threads}}}))
        lines = [json.dumps({"step": at, "seconds": one}) for at, one in enumerate(seconds, 1)]
        (folder / "timing.jsonl").write_text("\n".join(lines) + "\n")
    found = pipeline.time_outside(Path("results/a"))
    assert found["wall_seconds"] == 10
    assert found["outside_share"] == pytest.approx(0.4)
    assert found["steps_share"] == pytest.approx((0.5 + 0.5 + 2 * 2.0) / (2 * 10))
