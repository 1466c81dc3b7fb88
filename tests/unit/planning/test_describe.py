"""`python -m mhclite describe`: counts of the paper's models, and costs from what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhclite.cli import main
from mhclite.files import write_json
from mhclite.planning.describe import describe
from mhclite.study.reading import load_study

CONFIG = Path(__file__).parents[3] / "config"

# Counted from the shapes in the authors' code (FFTYYY/mhc-lite, wz1119/KromHC), for S, M, L.
EXTRA = {
    "residual": (0, 0, 0),
    "hc": (43_320, 129_648, 345_312),
    "mhc": (614_724, 1_843_848, 4_916_496),
    "mhc_lite": (811_428, 2_433_864, 6_489_744),
    "kromhc": (319_668, 958_824, 2_556_624),
}
RESIDUAL = (45_160_960, 124_373_760, 354_599_936)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_parameters_of_the_papers_models(tmp_path: Path) -> None:
    found = describe(load_study(CONFIG / "paper.yaml"), tmp_path)
    rows = {(row["model"], row["variant"]): row for row in found["rows"]}
    models = list(dict.fromkeys(row["model"] for row in found["rows"]))
    assert len(models) == 3
    for at, model in enumerate(models):
        assert rows[model, "residual"]["parameters"] == RESIDUAL[at]
        for variant, extra in EXTRA.items():
            assert rows[model, variant]["extra_parameters"] == extra[at], (model, variant)
        assert rows[model, "mhc"]["tokens"] == 10_000 * 131_072
    assert found["totals"]["device_hours"] is None


@pytest.mark.slow
def test_hours_come_from_the_measured_throughput(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load_study(CONFIG / "smoke.yaml")
    speeds = {v: 1000.0 * (at + 1) for at, v in enumerate(study.variants)}
    for model in study.models:
        write_json(
            tmp_path / study.name / "throughput" / f"{model}.json",
            {"variants": {v: {"tokens_per_second": {"median": s}} for v, s in speeds.items()}},
        )
    found = describe(study, tmp_path)
    for row in found["rows"]:
        assert row["hours"] == pytest.approx(row["tokens"] / speeds[row["variant"]] / 3600)
    total = sum(row["runs"] * row["hours"] for row in found["rows"])
    assert found["totals"]["device_hours"] == pytest.approx(total)
    command = ["describe", str(CONFIG / "smoke.yaml"), "--results", str(tmp_path)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "not prepared here" in text
    assert f"{found['totals']['runs']} runs" in text
