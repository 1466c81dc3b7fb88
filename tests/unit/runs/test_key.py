"""What decides a run: its key, and what an edit of the code runs again."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import configuration, write_corpus

from mhclite import cli, jobs
from mhclite.config import RunConfig
from mhclite.connections.registry import VARIANTS
from mhclite.evidence.claims import load_claims
from mhclite.runs import code, key, provenance
from mhclite.study.load import load_study, resolve
from mhclite.training.loop import train

ROOT = Path(__file__).parents[3]


PARSE = code._parsed.__wrapped__
PARSED: dict[str, tuple[str, frozenset[str]]] = {}  # by text: most files are never edited here


def parsed(path: Path) -> tuple[str, frozenset[str]]:
    text = path.read_text(encoding="utf-8")
    if text not in PARSED:
        PARSED[text] = PARSE(path)
    return PARSED[text]


def forget() -> None:
    code.digest_of_modules.cache_clear()


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copied") / "mhclite"
    ignored = shutil.ignore_patterns("__pycache__", "embedded")
    return shutil.copytree(code.PACKAGE_ROOT, copy, ignore=ignored)


@pytest.fixture
def package(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that the digests are taken of, edits of which are undone."""
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("*.py")}
    original = code.PACKAGE_ROOT
    monkeypatch.setattr(code, "_parsed", parsed)
    monkeypatch.setattr(code, "PACKAGE_ROOT", copied)
    forget()
    yield copied
    forget()
    for path, time in times.items():
        if path.stat().st_mtime_ns != time:
            shutil.copy2(original / path.relative_to(copied), path)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new, 1))


# --- the list of modules ----------------------------------------------------------------------


def test_the_modules_in_the_key_are_those_that_the_trainer_uses() -> None:
    """Fails where the trainer imports a module that is neither in the key nor neutral.

    Ask of that module: does it decide a number of the run? If so, put it into `key.MODULES`; all
    runs of everybody are then trained again once, so say so in CHANGELOG.md. If not (messages,
    files, checks), put it into `code.NEUTRAL`. Better: let the trainer do without it.
    """
    found = code.imported_modules("mhclite.training.trainer")
    fused = {f"mhclite.{name}" for name in key.FUSED_MODULES}
    settings = {"mhclite.config"}  # holds the settings, which are in the key themselves
    assert set(found) - fused - settings == {f"mhclite.{name}" for name in key.MODULES}


def test_kernels_count_only_where_they_may_run() -> None:
    kernels = "mhclite.connections.fast.kernels"
    for name, config in runs().items():
        may = name.endswith("auto") and not name.startswith("residual")
        assert key.may_be_fused(config) == (kernels in key.modules_of(config)) == may, name


def test_names_free_settings_and_nodes_do_not_make_another_run() -> None:
    config = configuration()
    own = key.run_key(config, "c")
    model = replace(config.model, name="w")
    renamed = replace(config, run="x", corpus="y", condition="z", model=model)
    free = configuration(checkpoint_interval=9, processes=2)
    assert key.run_key(renamed, "c") == key.run_key(free, "c") == own
    others = [configuration(seed=1), configuration("hc"), configuration(steps=7)]
    keys = {own, key.run_key(config, "d"), *(key.run_key(other, "c") for other in others)}
    assert len(keys) == 5

    study = load_study(ROOT / "config/smoke.yaml")
    training = study.training.model_copy(update={"nodes": 2, "processes": 2})
    two = study.model_copy(update={"training": training})
    assert two.nodes()["base"] == 2
    for run, config in study.runs().items():
        assert key.run_key(two.runs()[run], "c") == key.run_key(config, "c")


@pytest.mark.parametrize("there", ["nothing", "as it was", "of other text", "{", "{}"])
def test_what_is_kept_of_a_module_is_what_its_text_says(there: str, tmp_path: Path) -> None:
    module, kept = tmp_path / "module.py", tmp_path / "__pycache__/module.parsed"
    texts = ['"""Doc."""\nimport a.b\n', "from c import d\nx = 'é'\n"]
    for text in texts[:: -1 if there == "of other text" else 1]:
        if there != "nothing":
            kept.parent.mkdir(exist_ok=True)
        module.write_text(text)
        expected = code._parse(text.encode())
        assert PARSE(module) == expected
        if len(there) < 3:
            kept.write_bytes(there.encode() if there == "{" else zlib.compress(there.encode()))
        assert PARSE(module) == expected
        assert kept.exists() == (there != "nothing")


# --- what an edit runs again ------------------------------------------------------------------

ALL = "every run"
OWN = "the runs of that variant"
FUSED = "runs on a GPU whose connections are fused"
NOTHING = "nothing"
EVIDENCE = "evidence, tracking"
COLLECT = "collect, evidence, tracking"

# As in docs/reproducibility.md: edit -> (file, old text, new text, what is trained again, what else
# is made again without training). The last two are what the table in the docs says.
EDITS: dict[str, tuple[str, str, str, str, str]] = {
    "the words of an error in what is trained": (
        "model.py", "assert n_embd % n_head == 0", "assert n_embd % n_head == 0, n_head",
        NOTHING, NOTHING,
    ),
    "a log line": (
        "training/loop.py", "continuing at step", "going on at step", NOTHING, NOTHING,
    ),
    "a docstring or a comment": (
        "model.py", '"""Multi-head causal', '"""Causal', NOTHING, NOTHING,
    ),
    "the format of checkpoints": (
        "training/checkpoint.py", '"schema": 1', '"schema": 2', NOTHING, NOTHING,
    ),
    "the launch size of a kernel": (
        "connections/fast/launch.py", "tokens=16", "tokens=32", FUSED, "throughput",
    ),
    "eps of the optimizer": (
        "training/optimizer.py", "eps=1e-8", "eps=1e-9", ALL, "throughput",
    ),
    "the formula of one variant": (
        "connections/mhc_lite.py", "torch.softmax", "torch.sigmoid", OWN, "throughput",
    ),
    "the colour of a figure": (
        "evidence/style.py", "#0072B2", "#0072B3", NOTHING, EVIDENCE,
    ),
    "a caption": (
        "evidence/topics/losses.py", "Final loss with", "Loss at the end with", NOTHING, EVIDENCE,
    ),
    "how a spike is found": (
        "measure/stability.py", "FLAT = 1e-10", "FLAT = 1e-9", NOTHING,
        "stability, collect, evidence, tracking",
    ),
}  # fmt: skip
# Edits of files outside the package: what Snakemake reads of them is `resolve`'s parameter.
OUTSIDE = {
    "the margin of a claim": (NOTHING, COLLECT),
    "the title of a condition": (NOTHING, COLLECT),
    "a training setting": (ALL, "throughput, collect, evidence, tracking"),
}


def runs() -> dict[str, RunConfig]:
    """A run of every variant, on a CPU and on whatever device there is."""
    found = {}
    for variant in VARIANTS:
        config = configuration(variant)
        found[f"{variant} cpu"] = config
        found[f"{variant} auto"] = replace(
            config,
            connection=replace(config.connection, implementation="auto"),
            training=replace(config.training, device="auto"),
        )
    return found


def trained_again(before: dict[str, str]) -> str:
    forget()
    changed = {name for name, config in runs().items() if key.code_digest(config) != before[name]}
    if not changed:
        return NOTHING
    if changed == set(before):
        return ALL
    if len({name.split()[0] for name in changed}) == 1 and len(changed) == 2:
        return OWN
    fused = {name for name, config in runs().items() if key.may_be_fused(config)}
    return FUSED if changed == fused else f"unexpected: {sorted(changed)}"


STEPS = {  # what a rule's parameter `code` is made of
    "throughput": ("measure.throughput", VARIANTS),
    "stability": ("measure.stability", ()),
    "collect": ("evidence.collect", ()),
    "evidence": ("evidence.evidence", ()),
    "tracking": ("tracking.track", ()),
}


def digests_of_steps() -> dict[str, str]:
    forget()
    return {name: code.step_digest(*scope) for name, scope in STEPS.items()}


def followed(changed: set[str]) -> set[str]:
    """With what the DAG makes again after them."""
    after = {"stability": "collect", "collect": "evidence", "evidence": "tracking"}
    for step, later in after.items():
        if step in changed:
            changed.add(later)
    return changed


@pytest.mark.parametrize("name", EDITS)
def test_what_an_edit_runs_again(package: Path, name: str) -> None:
    file, old, new, trained, made = EDITS[name]
    forget()
    before = {run: key.code_digest(config) for run, config in runs().items()}
    steps = digests_of_steps()
    edit(package / file, old, new)
    assert trained_again(before) == trained
    after = digests_of_steps()
    changed = followed({step for step in steps if steps[step] != after[step]})
    if trained == NOTHING:
        assert changed == (set() if made == NOTHING else set(made.split(", ")))
    else:  # what follows from runs is made again whenever they are
        assert set(made.split(", ")) <= changed


def test_a_claims_margin_and_a_title_train_nothing() -> None:
    study = load_study(ROOT / "config/smoke.yaml")
    titled = {
        name: condition.model_copy(update={"title": "another title"})
        for name, condition in study.conditions.items()
    }
    changed = study.model_copy(update={"conditions": titled})
    for run, config in study.runs().items():
        assert jobs.train(study, config) == jobs.train(changed, changed.runs()[run])
        assert jobs.probe(study, config) == jobs.probe(changed, changed.runs()[run])
    # Both stand in resolved.json, which `collect` reads.
    claims = load_claims(ROOT / "config/claims.yaml")
    wider = [claim.model_copy(update={"margin": claim.margin + 0.01}) for claim in claims]
    assert resolve(study, wider) != resolve(study, claims) != resolve(changed, claims)


def test_the_table_in_the_docs_is_this_one() -> None:
    text = (ROOT / "docs/reproducibility.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \|$", text, re.MULTILINE)
    table = {edit: (trained, made) for edit, trained, made in rows}
    expected = {name: entry[3:] for name, entry in EDITS.items()} | OUTSIDE
    assert {name: table.get(name) for name in expected} == expected


def test_a_variants_file_counts_for_it_alone(package: Path) -> None:
    for variant in VARIANTS:
        forget()
        before = {run: key.code_digest(config) for run, config in runs().items()}
        with (package / "connections" / f"{variant}.py").open("a") as file:
            file.write("\nADDED = 1\n")
        forget()
        after = {run: key.code_digest(config) for run, config in runs().items()}
        assert {run.split()[0] for run in before if before[run] != after[run]} == {variant}


def test_digests_do_not_depend_on_the_version_of_python() -> None:
    """f-strings, empty fields, patterns: the tree of each version, as one text, pinned here."""
    source = """
def f(x: int, *, n=3) -> str:
    a = "a" f"{x!r:>{n}}" 'b'
    return f"{d['k']}" + f'{x=}'
"""
    text = json.dumps(code.canonical(ast.parse(source)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f99f46ba9e3b9eee"


def test_words_do_not_count_but_what_is_raised_does() -> None:
    def tree(text: str) -> str:
        return json.dumps(code.canonical(ast.parse(text)))

    assert tree("raise A(f'{x} is wrong')") == tree("raise A('no')") != tree("raise B('no')")
    assert tree("assert x, 'words'") == tree("assert x")
    assert tree("log.info('a')\nf()") == tree("f()")
    assert tree("other.info('a')") != tree("other.info('b')")


# --- the command ------------------------------------------------------------------------------


def test_keys_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = load_study(ROOT / "config/smoke.yaml")
    corpus = write_corpus(tmp_path / study.corpus_folder("sotu"))
    arguments = ["keys", str(ROOT / "config/smoke.yaml"), "--results", str(tmp_path)]
    run = "sotu-d2-hc-s0"
    config, folder = study.runs()[run], tmp_path / "smoke" / "runs" / run

    def why() -> str:
        assert cli.main([*arguments, "--why", run]) == 0
        return capsys.readouterr().out

    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "settings", "code", "corpus"]
    assert len(lines) == 2 + len(study.runs())
    assert "holds no run" in why()
    small = replace(config, training=replace(config.training, steps=10, warmup_steps=2))
    train(small, corpus, folder)
    assert "settings: training.steps is 40 in the study and 10 in the run" in why()
    assert "code:" not in why()
    record = json.loads((folder / "run.json").read_text())
    record |= {"config": config.to_json(), "code": "another", "key": "abc"}
    record["modules"] |= {"model": "another", "connections.gone": "another"}
    (folder / "run.json").write_text(json.dumps(record))
    assert "code: connections.gone, model computed something else in the run" in why()
    assert "settings:" not in why()


# --- provenance -------------------------------------------------------------------------------


def repository(folder: Path) -> str:
    """A git repository of all that is in the folder, and one more file; returns its commit."""
    (folder / "own.txt").write_text("x")
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    for words in ("init --quiet", "add .", "commit --quiet --message all", "rev-parse HEAD"):
        command = ["git", "-C", str(folder), *names, *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def test_the_commit_is_that_of_what_tracks_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever git's variables say. What is unpacked in another repository has none; a bundle knows
    its own."""
    module = tmp_path / "checkout" / "mhclite"  # the two files that tell it from another package
    (module / "runs").mkdir(parents=True)
    for name in ("__init__.py", "runs/provenance.py"):
        (module / name).write_text("# one")
    around = tmp_path / "around"
    around.mkdir()
    repository(around)
    commit = repository(module.parent)
    monkeypatch.setattr(provenance, "PACKAGE_ROOT", module)
    monkeypatch.setenv("GIT_DIR", str(around / ".git"))
    assert provenance.git_state() == provenance.GitState(commit, False)
    (module / "__init__.py").write_text("# another")
    assert provenance.git_state() == provenance.GitState(commit, True)

    unpacked = shutil.copytree(module, around / module.name)
    monkeypatch.setattr(provenance, "PACKAGE_ROOT", unpacked)
    assert provenance.git_state() == provenance.GitState(None, None)
    (unpacked / provenance.PACKED).write_text(json.dumps({"commit": "0" * 40, "dirty": False}))
    assert provenance.git_state() == provenance.GitState("0" * 40, False)
