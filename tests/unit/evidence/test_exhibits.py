"""The registry: what is said of each figure and table, and what the workflow takes from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builder import make_study
from docutils.core import publish_parts
from jinja2 import Environment

import mhclite.evidence.topics  # noqa: F401  registers them all
from mhclite.evidence.exhibits import FIGURES, HEADINGS, TABLES, Exhibit, declared, shown
from mhclite.evidence.results import Results
from mhclite.study.reading import load_study

ROOT = Path(__file__).parents[3]
MOST_WORDS = 40  # of a caption
EXHIBITS = [exhibit for exhibit, _ in (*FIGURES.values(), *TABLES.values())]
# A study that has everything there is to show.
WHOLE: dict[str, Any] = {
    "models": {"d1": 1, "d2": 2},
    "variants": ("residual", "mhc"),
    "seeds": (3, 4),
    "statistics": {"confidence": 0.9},
    "sinkhorn": {"matrices": 321},
    "critical_rate": {"factors": [2, 8], "halvings": 1, "below_unigram": 0.1},
    "learning_rates": {
        "arms": [
            {"corpus": "sotu", "model": model, "condition": condition, "variant": v, "rate": 1e-3}
            for model in ("d1", "d2")
            for v, condition in (
                ("residual", "base"),
                *(("mhc", c) for c in ("base", "n2", "aged")),
            )
        ]
    },
    "conditions": {
        "rate": {"title": "twice", "variants": ["mhc"], "learning_rate_factor": 2.0},
        "n2": {"title": "two", "variants": ["mhc"], "connections": {"n_streams": 2}},
        "aged": {"title": "3", "variants": ["mhc"], "connections": {"mixing_rate_factor": 3}},
    },
}


def with_settings(results: Results, **settings: Any) -> Results:
    """The results as those of another study."""
    study = results.settings | settings
    return replace(results, study={**results.study, "study": study})


def plain(text: str) -> str:
    """The text of one paragraph as Snakemake sets it: Jinja2, then docutils."""
    rendered = Environment(trim_blocks=True, lstrip_blocks=True).from_string(text).render()
    body = publish_parts(rendered, writer="html", settings_overrides={"halt_level": 1})["body"]
    return " ".join(body.split()).removeprefix("<p>").removesuffix("</p>")


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_all_is_said_of_every_exhibit(results: Results, exhibit: Exhibit) -> None:
    assert exhibit.title
    assert not exhibit.title.endswith(".")
    assert exhibit.heading in HEADINGS
    whole = with_settings(results, sinkhorn={"matrices": 321})
    caption = exhibit.caption_for(whole)
    assert "Source: " in caption
    assert "{" not in caption
    assert "None" not in caption
    assert len(caption.split()) <= MOST_WORDS
    assert plain(caption) == caption  # Snakemake's report says the same: no markup in it
    if exhibit.kind == "figure":
        assert exhibit.alt.endswith(".")
        assert any(number in exhibit.caption for number in ("{seeds}", "{rounds}"))


def test_names_and_titles_are_unique() -> None:
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS)
    for registry in (FIGURES, TABLES):
        titles = [exhibit.title for exhibit, _ in registry.values()]
        assert len(set(titles)) == len(titles)


def test_rules_read_what_the_decorators_register() -> None:
    """Snakemake reads the source, the step imports it."""
    assert sorted(declared(), key=repr) == sorted(EXHIBITS, key=repr)


def test_reading_the_registry_imports_nothing_that_draws() -> None:
    """It is read in every job of Snakemake."""
    code = (
        "import sys; from mhclite.evidence.exhibits import declared; assert declared(); "
        "sys.exit(bool({'matplotlib', 'seaborn', 'scipy', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src")}, check=True)


def test_exhibits_follow_the_headings() -> None:
    settings = make_study(**WHOLE).model_dump()
    for registry in (FIGURES, TABLES):
        found = [exhibit for exhibit, _ in shown(registry, settings)]
        assert {exhibit.name for exhibit in found} == registry.keys()
        places = [HEADINGS[exhibit.heading] for exhibit in found]
        assert places == sorted(places)


def test_what_a_study_lacks_is_not_shown() -> None:
    bare = make_study(models={"d1": 1}, variants=("hc", "mhc_lite")).model_dump()
    lacking = {exhibit.name for exhibit in EXHIBITS if not exhibit.shown_in(bare)}
    assert lacking == {exhibit.name for exhibit in EXHIBITS if exhibit.needs}


@pytest.mark.parametrize("name", ["config", "stress"])
def test_the_rule_has_the_files_of_the_registry_as_outputs(tmp_path: Path, name: str) -> None:
    """As Snakemake itself lists them."""
    file = ROOT / "config" / f"{name}.yaml"
    command = [sys.executable, "-m", "snakemake", "--summary", "--nolock"]
    done = subprocess.run(
        [*command, "--directory", tmp_path, "--snakefile", "Snakefile", "--configfile", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    paths = [line.split("\t")[0].split("/", 2)[-1] for line in done.stdout.splitlines()[1:]]
    listed = {path for path in paths if path.split("/")[0] in ("figures", "tables", "captions")}
    study = load_study(file).model_dump()
    of_study = [exhibit for exhibit in EXHIBITS if exhibit.shown_in(study)]
    assert ("stress_rates" in [exhibit.name for exhibit in of_study]) == (name == "stress")
    assert listed == {path for one in of_study for path in (*one.files, one.caption_file)}


def test_captions_take_their_numbers_from_the_study(results: Results) -> None:
    table = TABLES["results"][0]
    one = with_settings(results, seeds=[5])
    assert "1 seed." in table.caption_for(one)
    assert "95 %" in table.caption_for(one)
    two = with_settings(results, seeds=[1, 2], statistics={"confidence": 0.9})
    assert "2 seeds." in table.caption_for(two)
    assert "90 %" in table.caption_for(two)
    assert "the 20 steps" in FIGURES["gradient_norm"][0].caption_for(results)


@pytest.mark.parametrize("name", ["study", "report"])
def test_the_other_captions_of_snakemakes_report(name: str) -> None:
    """Set as Snakemake does, with the study file as it is."""
    text = (ROOT / "workflow" / "report" / f"{name}.rst").read_text()
    for seeds, words in (([3, 4], "with 2 seeds for"), ([3], "with 1 seed for")):
        config = {"name": "laptop", "variants": ["residual", "mhc"], "seeds": seeds}
        environment = Environment(trim_blocks=True, lstrip_blocks=True)
        rendered = environment.from_string(text).render(snakemake=SimpleNamespace(config=config))
        assert "{" not in plain(rendered)
        assert "<" not in plain(rendered)
        if name == "study":
            assert "The study laptop trains a small GPT with each of 2 kinds" in plain(rendered)
            assert words in plain(rendered)
