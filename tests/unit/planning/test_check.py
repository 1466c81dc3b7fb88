"""`check`: what is wrong with a study is found before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mhclite.cli import main
from mhclite.connections.public import make
from mhclite.connections.registry import VARIANTS
from mhclite.data.prepare import prepare
from mhclite.errors import UserError
from mhclite.study.load import load_study
from mhclite.study.sections import RESULTS

SMOKE = Path(__file__).parents[3] / "config/smoke.yaml"


def test_a_study_whose_rates_are_not_found_yet_is_checked_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What is wrong otherwise is found before a sweep of days; the study itself does not start."""
    study: dict[str, Any] = yaml.safe_load(SMOKE.read_text())
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study | {"learning_rates": str(tmp_path / "rates.yaml")}))
    assert main(["check", str(path)]) == 0
    assert "rates.yaml" in caplog.text
    assert "is valid" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"rates\.yaml"):
        load_study(path)
    path.write_text(yaml.safe_dump(study | {"learning_rates": "no.yaml", "seeds": ["x"]}))
    assert main(["check", str(path)]) == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_check_accepts_what_can_be_made_and_nothing_else(
    variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every variant with 1 to 8 streams."""
    study: dict[str, Any] = yaml.safe_load(SMOKE.read_text())
    path = tmp_path / "study.yaml"
    for n in range(1, 9):
        study |= {"variants": [variant], "conditions": {}, "connections": {"n_streams": n}}
        path.write_text(yaml.safe_dump(study))
        if main(["check", str(path)]) == 0:
            make(variant, 1 if variant == "residual" else n, 8)
        else:
            assert f"n_streams = {n}: " in capsys.readouterr().err
            with pytest.raises(ValueError, match=f"n_streams = {n}: "):
                make(variant, n, 8)


def test_a_context_longer_than_a_prepared_corpus_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    for i in range(60):
        (tmp_path / "d" / f"{i}.txt").write_text(f"{i} some text " * 9)
    content = yaml.safe_load(SMOKE.read_text())
    content["corpora"] = {"own": {"source": "files", "files": "d/*.txt"}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["check", str(path)]) == 0  # what it has is not known yet
    study = load_study(path)
    folder = RESULTS / study.corpus_folder("own")
    manifest = prepare(study.corpus_settings("own"), folder)
    document = yaml.safe_load(path.read_text())
    tokens = manifest.validation.tokens
    for block_size, code in ((tokens - 1, 0), (tokens, 2)):
        next(iter(document["models"].values()))["block_size"] = block_size
        path.write_text(yaml.safe_dump(document))
        assert main(["check", str(path)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert f"validation split of corpus 'own' has {tokens} tokens" in line
