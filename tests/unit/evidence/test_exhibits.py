"""The registry: what is said of each figure and table, and what the workflow takes from it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from builder import with_settings

import mhclite.evidence.topics  # noqa: F401  registers them all
from mhclite.evidence.exhibits import FIGURES, HEADINGS, TABLES, declared, shown
from mhclite.evidence.results import Results
from mhclite.study.load import load_study

ROOT = Path(__file__).parents[3]
MOST_WORDS = 40  # of a caption
EXHIBITS = [exhibit for exhibit, _ in (*FIGURES.values(), *TABLES.values())]


def test_all_is_said_of_every_exhibit_once(results: Results) -> None:
    """A caption takes its numbers from the study, and has no markup for Snakemake's report."""
    for exhibit in EXHIBITS:
        assert not exhibit.title.endswith(".")
        assert exhibit.heading in HEADINGS
        for seeds, words in (([5], "1 seed"), ([1, 2], "2 seeds")):
            caption = exhibit.caption_for(with_settings(results, seeds=seeds))
            assert "Source: " in caption, exhibit.name
            assert len(caption.split()) <= MOST_WORDS, exhibit.name
            assert not re.search(r"[*`|{}\\]|__|_\b", caption), exhibit.name
            assert "{seeds}" not in exhibit.caption or words in caption
        if exhibit.kind == "figure":
            assert exhibit.alt.endswith(".")
    assert len({(exhibit.kind, exhibit.title) for exhibit in EXHIBITS}) == len(EXHIBITS)


def test_rules_read_what_the_decorators_register() -> None:
    """Snakemake reads the source, in every job, so nothing that draws is imported."""
    assert sorted(declared(), key=repr) == sorted(EXHIBITS, key=repr)
    code = (
        "import sys; from mhclite.evidence.exhibits import declared; assert declared(); "
        "sys.exit(bool({'matplotlib', 'seaborn', 'scipy', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src")}, check=True)


def test_a_study_shows_what_it_has_in_the_order_of_the_headings() -> None:
    whole: dict[str, Any] = {
        "models": {"d1": {"n_layer": 1}, "d2": {"n_layer": 2}},
        **{key: {"any": {}} for key in ("corpora", "sinkhorn", "critical_rate", "learning_rates")},
        "conditions": {"a": {"connections": {"mixing_rate_factor": 3}}, "b": {"connections": {}}},
    }
    bare = {**{key: {} for key in whole}, "models": {"d1": {"n_layer": 1}}}
    for registry in (FIGURES, TABLES):
        found = [exhibit for exhibit, _ in shown(registry, whole)]
        assert {exhibit.name for exhibit in found} == registry.keys()
        places = [HEADINGS[exhibit.heading] for exhibit in found]
        assert places == sorted(places)
        kept = {exhibit.name for exhibit, _ in shown(registry, bare)}
        assert kept == {exhibit.name for exhibit in found if not exhibit.needs}


def test_the_rule_has_the_files_of_the_registry_as_outputs(tmp_path: Path) -> None:
    """As Snakemake itself lists them."""
    file = ROOT / "config" / "stress.yaml"
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
    assert listed == {path for one in of_study for path in (*one.files, one.caption_file)}
