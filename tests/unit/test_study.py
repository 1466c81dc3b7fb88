"""Study files: what is refused, in which words, and the grid of those that are not.

After a change of settings: `python tests/unit/test_study.py` writes docs/configuration.md again.
"""

from __future__ import annotations

import copy
import re
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_core import PydanticUndefined

from mhclite.cli import main
from mhclite.config import RunConfig
from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.planning.describe import PUBLISHED
from mhclite.study.load import load_study, parse_study, read_yaml
from mhclite.study.sections import TAKEN, Settings
from mhclite.study.settings import Study
from mhclite.study.wording import settings_in
from mhclite.tracking.store import artifact_root

CONFIG = Path(__file__).parents[2] / "config"
# Not `tuned`, whose rates are published once they are found: tests/unit/test_rates.py has it.
STUDIES = sorted(p for p in CONFIG.glob("*.yaml") if p.stem not in ("claims", "tuned"))
SMOKE = yaml.safe_load((CONFIG / "smoke.yaml").read_text())
del SMOKE["conditions"]  # the grid alone


def smoke(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SMOKE), **changes}


def change(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets a key; `value` ... removes it."""

    def apply(study: dict[str, Any]) -> None:
        inner = study
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value

    return apply


NORM = {"title": "norm", "variants": ["mhc"], "connections": {"final_norm": "after_sum"}}
# One of each kind of mistake: what is changed, and what the line says.
BAD = {
    "unknown key of a model": (
        change("models", "d2", "n_heads", value=2),
        ["models.d2.n_heads", "did you mean 'n_head'?"],
    ),
    "n_head": (change("models", "d2", "n_head", value=5), ["models.d2", "n_head = 5", "32"]),
    "a text that YAML takes for a boolean": (
        change("conditions", value={"norm": {"title": False, "variants": ["mhc"]}}),
        ["conditions.norm.title", "write it in quotes"],
    ),
    "streams": (
        change("connections", "n_streams", value=8),
        ["n_streams = 8", "mhc_lite", "40,320", "kromhc"],
    ),
    "moving revision": (
        change("corpora", "sotu", value={"source": "hub", "repository": "a/b", "revision": "main"}),
        ["corpora.sotu.revision", "'main'"],
    ),
    "no number": (change("training", "steps", value="many"), ["training.steps", "'many'"]),
    "duplicate seed": (change("seeds", value=[0, 1, 0]), ["seeds", "twice"]),
    "unknown variant": (
        change("variants", value=["residual", "mch"]),
        ["variants", "'mch'", "did you mean 'mhc'?"],
    ),
    "missing key": (change("training", "steps", value=...), ["training.steps", "missing"]),
    "nodes": (change("training", "nodes", value=2), ["training", "processes = 1", "nodes = 2"]),
    "name": (change("name", value="My Study"), ["name", "'My Study'"]),
    "not a number, in a list": (
        change("sinkhorn", value={"logit_ranges": [1.0, float("nan")]}),
        ["sinkhorn.logit_ranges.1", "nan"],
    ),
    "several": (
        change("models", value={f"m{i}": {} for i in range(50)}),
        ["models.m0.n_layer: ", "more)"],
    ),
    "a condition called base": (change("conditions", value={"base": NORM}), ["base"]),
}


def test_files_are_looked_for_once_and_not_by_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study holds wherever its files are: under its conditions, in another folder, as JSON."""
    monkeypatch.chdir(tmp_path)
    study = smoke(
        corpora={"own": {"source": "files", "files": "*.txt"}},
        conditions={"more": {"title": "More", "variants": ["mhc"], "training": {"steps": 50}}},
    )
    with pytest.raises(UserError, match=r"corpora\.own: no file matches"):
        parse_study(study)
    (tmp_path / "a.txt").write_text("a")
    found = parse_study(study)
    (tmp_path / "a.txt").unlink()
    assert len(found.runs()) > len(found.under("more").runs())
    assert Study.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize("name", BAD)
def test_bad_study_is_one_line_that_names_the_key(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply, said = BAD[name]
    study = smoke()
    apply(study)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    assert main(["check", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {path}: ")
    for words in said:
        assert words in error


# --- docs/configuration.md ----------------------------------------------------------------------

PAGE = CONFIG.parent / "docs/configuration.md"
MARK = "test_study.py`. -->\n"  # what stands above it is written by hand
NAMES = {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}


def in_words(annotation: Any) -> str:
    """A type as a user would say it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return "mapping by name"
    if origin is list:
        return f"list of {in_words(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} x {in_words(arguments[0])}"
    # Annotated, or X | None.
    return in_words(arguments[0]) if arguments else NAMES.get(annotation, "section")


def page(before: str) -> str:
    """The page of settings, with what stands above the mark as it is."""
    heading, mark, _ = before.partition(MARK)
    assert mark
    text = heading + mark
    sections: list[tuple[str, type[Settings]]] = [("The study", Study)]
    for name, field in Study.model_fields.items():
        inner = settings_in(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Settings):
            by_name = ".<name>" if typing.get_origin(field.annotation) is dict else ""
            sections.append((f"`{name}{by_name}`", inner))
    for title, settings in sections:
        text += f"\n## {title}\n\n{settings.__doc__}\n"
        text += "\n| key | value | default | meaning |\n|---|---|---|---|\n"
        for name, field in settings.model_fields.items():
            value = list(field.default) if isinstance(field.default, tuple) else field.default
            default = f"`{str(value).lower() if isinstance(value, bool) else value}`"
            if value is PydanticUndefined:
                default = "required"
            elif value is None or isinstance(value, Settings):
                default = "–"
            meaning = field.description or "see the section of that name"
            text += f"| `{name}` | {in_words(field.annotation)} | {default} | {meaning} |\n"
    return text


def test_the_page_of_settings_is_current() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run `python tests/unit/test_study.py`"
    assert all(f"`{name}`" in text for name in TAKEN)


# --- files --------------------------------------------------------------------------------------


def test_names_that_results_has_for_itself_are_taken() -> None:
    """Every name after results/ in code, workflow and Makefile is a study's or taken."""
    root, found = CONFIG.parent, {artifact_root(Path("results/mlflow.db")).name}
    for place in ("src/**/*.py", "workflow/**/*.smk", "Snakefile", "Makefile"):
        for path in root.glob(place):
            found |= set(re.findall(r"results/([a-z0-9_]+)\b(?![-.])", path.read_text()))
    found |= {artifact_root(Path("results/mlflow.db")).name, PUBLISHED.split("/")[0]}
    found |= {parse_study(SMOKE).corpus_folder("sotu").split("/")[0]}
    names = {yaml.safe_load(path.read_text())["name"] for path in STUDIES}
    assert found - names - {"study"} <= set(TAKEN)
    for name in TAKEN:
        with pytest.raises(UserError, match=f"name: '{name}' is a folder that is no study's"):
            parse_study(smoke(name=name))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "mapping"),
        (b"- a\n- b\n", "mapping"),
        (b"name: [unclosed\n", "not YAML"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a: &a {x: 1}\nb: {<<: *a, x: 3, x: 4}\n", "line 2: the key 'x' is there already"),
        (None, "study file"),
    ],
)
def test_file_that_is_no_study(text: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match=said) as caught:
        load_study(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n")
    assert read_yaml(path, "file")["c"] == {"x": 3, "y": 4}  # an anchor's keys may be changed


@pytest.mark.parametrize("value", ["010", "1:30", "0x10"])
def test_what_yaml_reads_otherwise_than_it_looks_is_refused(value: str, tmp_path: Path) -> None:
    path, text = tmp_path / "study.yaml", (CONFIG / "smoke.yaml").read_text()
    for old in ("0, 1", "d2"):  # in a list, a key
        line = text[: text.index(old)].count("\n") + 1
        path.write_text(text.replace(old, value, 1))
        with pytest.raises(UserError, match=rf"study.yaml line {line}: YAML reads '{value}' as "):
            load_study(path)
    path.write_text(text.replace("final norm after the sum", f"'{value}'"))
    assert load_study(path).conditions["norm_after_sum"].title == value


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    study = load_study(path)
    expected = len(study.seeds) * sum(len(study.variants_of(model)) for model in study.models)
    for one in study.conditions.values():
        for model in one.models or study.models:  # a size may leave out some of its variants
            has = set(one.variants) & set(study.variants_of(model))
            expected += len(has) * len(one.seeds or study.seeds)
    assert len(study.grid()) == len(study.corpora) * expected
    assert study.runs() == ({} if study.sweep else study.grid())


def test_runs_are_unique_and_stable() -> None:
    first, again = parse_study(smoke()).runs(), parse_study(smoke()).runs()
    assert first == again
    assert list(first)[:3] == ["sotu-d2-residual-s0", "sotu-d2-residual-s1", "sotu-d2-identity-s0"]
    assert all(run == config.run for run, config in first.items())
    more = parse_study(smoke(seeds=[0, 1, 2])).runs()
    assert {run: more[run] for run in first} == first  # another seed changes no other run


def test_a_run_knows_only_the_options_that_it_reads() -> None:
    study = parse_study(smoke(connections={"n_streams": 2, "sinkhorn_iterations": 7}))
    defaults = study.connections.model_dump()
    for variant, entry in VARIANTS.items():
        options = {option: defaults[option] for option in entry.options}
        n = 1 if variant == "residual" else 2
        found = study.resolved_connection(variant)
        assert (found.variant, found.n_streams) == (variant, n)
        own = {name: value for name, value in options.items() if not hasattr(found, name)}
        assert found.options == own
        for name in options.keys() - own.keys():
            assert getattr(found, name) == options[name]
    assert study.resolved_connection("mhc").options["sinkhorn_iterations"] == 7
    for variant in ("residual", "hc", "mhc_lite", "kromhc", "jpmhc"):
        assert "sinkhorn_iterations" not in study.resolved_connection(variant).options


def test_conditions_add_runs_and_change_no_other() -> None:
    base = parse_study(smoke()).runs()
    rate = {"title": "rate", "variants": ["residual", "hc"], "learning_rate_factor": 2}
    runs = parse_study(smoke(conditions={"norm": NORM, "rate": rate})).runs()
    assert {run: runs[run] for run in base} == base
    added = {run: runs[run] for run in runs if run not in base}
    assert list(added) == [
        *(f"sotu-d2-mhc-norm-s{seed}" for seed in (0, 1)),
        *(f"sotu-d2-{variant}-rate-s{seed}" for variant in ("residual", "hc") for seed in (0, 1)),
    ]
    changed, plain = added["sotu-d2-mhc-norm-s0"], base["sotu-d2-mhc-s0"]
    assert changed.connection == replace(plain.connection, final_norm="after_sum")
    assert changes(plain, changed) == {"run", "condition", "connection"}
    faster, plain = added["sotu-d2-hc-rate-s1"], base["sotu-d2-hc-s1"]
    assert faster.model.learning_rate == 2 * plain.model.learning_rate
    assert changes(plain, faster) == {"run", "condition", "model"}


def test_a_condition_may_be_tried_on_some_models_and_seeds() -> None:
    small = SMOKE["models"]["d2"]
    models = {"d2": small, "d4": small | {"n_layer": 4}}
    some = NORM | {"models": ["d4"], "seeds": [1]}
    runs = parse_study(smoke(models=models, conditions={"norm": some})).runs()
    assert [run for run in runs if "-norm-" in run] == ["sotu-d4-mhc-norm-s1"]
    assert runs["sotu-d4-mhc-norm-s1"].model.n_layer == 4


def changes(one: RunConfig, other: RunConfig) -> set[str]:
    first, second = one.to_json(), other.to_json()
    return {name for name in first if first[name] != second[name]}


BAD_CONDITIONS = {
    "unknown key": ({"connections": {"final_norms": 1}}, ["final_norms", "'final_norm'"]),
    "other variant": ({"variants": ["nope"]}, ["conditions.norm", "nope"]),
    "changes nothing": ({"variants": ["residual"]}, ["changes nothing for residual"]),
    "streams": ({"variants": ["kromhc"], "connections": {"n_streams": 3}}, ["n_streams = 3"]),
    "other model": ({"models": ["d9"]}, ["conditions.norm", "'d9'", "models: d2"]),
    "unknown model to match": ({"match_parameters": "mhclite"}, ["did you mean 'mhc_lite'"]),
    "nothing to widen": ({"match_parameters": "identity"}, ["nothing to widen"]),
    "another depth": ({"model": {"n_layer": 3}}, ["n_layer"]),
    "qk_norm as it is": ({"model": {"qk_norm": False}, "connections": {}}, ["changes nothing"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONDITIONS)
def test_bad_conditions(name: str) -> None:
    changes, said = BAD_CONDITIONS[name]
    with pytest.raises(UserError) as caught:
        parse_study(smoke(conditions={"norm": {**NORM, **changes}}))
    assert "\n" not in str(caught.value)
    for words in said:
        assert words in str(caught.value)


def test_corpus_folder_follows_its_settings() -> None:
    before = parse_study(smoke()).corpus_folder("sotu")
    assert parse_study(smoke(seeds=[5])).corpus_folder("sotu") == before
    other = smoke()
    other["tokenizer"]["vocab_size"] = 385
    assert parse_study(other).corpus_folder("sotu") != before


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
