"""`gpu-check` where there is no GPU to check, and its order: first correctness, then speed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mhclite.bench import gpu_check
from mhclite.bench.implementations import ARMS, SEVERAL, Request
from mhclite.cli import main


def test_without_a_gpu_it_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu-check", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: gpu-check needs a GPU, and torch sees none")


@pytest.mark.parametrize("problems", [[], ["mhc: error 1"]])
def test_speed_is_measured_only_if_all_agrees(
    problems: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[list[Path]] = []
    measured: dict[str, Request] = {}

    def disagreements(device: torch.device, golden: list[Path]) -> list[str]:
        checked.append(golden)
        return problems

    monkeypatch.setattr(gpu_check, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(gpu_check, "disagreements", disagreements)
    monkeypatch.setattr(gpu_check, "measure", lambda req, out: measured.update({out.name: req}))
    command = ["gpu-check", "--golden", "a_n4.npz", "a_n2.npz", "--out", str(tmp_path)]
    assert main(command) == (1 if problems else 0)
    assert checked == [[Path("a_n4.npz")]]  # the kernels cannot do the width of the other
    if problems:
        assert measured == {}
        assert "WRONG:\nmhc: error 1" in capsys.readouterr().out
        return
    assert list(measured) == ["gpu-check-s.json", "gpu-check-l.json"]
    assert measured["gpu-check-s.json"].variants == SEVERAL
    for wanted in measured.values():
        assert set(wanted.arms) <= set(ARMS)
        assert wanted.minutes is not None
        assert 0 < wanted.minutes <= gpu_check.MINUTES
