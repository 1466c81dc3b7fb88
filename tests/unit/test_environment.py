"""Both ways to set up pin the same versions; `make` sets up whatever a user's surroundings, and
`make test` finds every folder of tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def pins(lines: list[str]) -> dict[str, str]:
    """Package -> version of lines such as `name==1.2`; every such line must be a pin."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert match, f"{line!r} is not a pin"
        found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def declared() -> dict[str, str]:
    project = PROJECT["project"]
    return pins(project["dependencies"] + project["optional-dependencies"]["dev"])


def test_conda_and_pip_pin_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = environment["dependencies"][-1]["pip"]
    assert pip[0] == "--constraint requirements.lock"
    assert pins(pip[1:]) == declared()


def test_lock_holds_what_is_declared() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = pins([line for line in lines if line and not line.startswith("#")])
    assert {name: locked.get(name) for name in declared()} == declared()


def test_torch_is_the_version_that_results_were_made_with() -> None:
    assert declared()["torch"] == "2.13.0"


# --- make ---------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout, with a blank in its path, whose environment is ready."""
    folder = tmp_path / "my checkout"
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
        os.utime(folder / name, (1, 1))
    (programs / "snakemake").write_text(f"#!{programs}/python\n")
    (folder / ".venv" / ".ready").touch()
    with (folder / "Makefile").open("a") as file:
        file.write("\nshow:\n\t@env\n")
    return folder


def make(folder: Path, *words: str, **environment: str) -> str:
    own = {name: value for name, value in os.environ.items() if name[:4] not in ("MAKE", "PIP_")}
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(
        command, cwd=folder, env=own | environment, capture_output=True, text=True, check=True
    ).stdout


def test_an_environment_that_is_ready_is_used(checkout: Path) -> None:
    assert make(checkout, "-n", "ui") == ".venv/bin/python -m mhclite ui\n"


@pytest.mark.parametrize("how", ["rename", "copytree"])
def test_an_environment_that_was_moved_is_made_anew(checkout: Path, how: str) -> None:
    moved = checkout.parent / "elsewhere"
    {"rename": os.rename, "copytree": shutil.copytree}[how](checkout, moved)
    assert "-m venv --clear .venv" in make(moved, "-n", "ui")


def test_a_link_to_an_environment_is_used(checkout: Path) -> None:
    linked = checkout.parent / "linked"
    shutil.copytree(checkout, linked, ignore=shutil.ignore_patterns(".venv"))
    (linked / ".venv").symlink_to(checkout / ".venv")
    assert "venv --clear" not in make(linked, "-n", "ui")


def test_what_pip_is_told_for_other_projects_is_not_ours(checkout: Path) -> None:
    """PIP_USER also overrides `user = true` of pip's configuration."""
    others = {"PIP_USER": "1", "PIP_TARGET": "/x", "PIP_PREFIX": "/x", "PYTHONHOME": "/x"}
    lines = make(checkout, "show", **others).splitlines()
    assert "PIP_USER=0" in lines
    assert not [line for line in lines if line.startswith(("PIP_T", "PIP_P", "PYTHONHOME"))]


def test_imports_are_compiled_once(checkout: Path) -> None:
    lines = make(checkout, "show", PYTHONDONTWRITEBYTECODE="1").splitlines()
    assert not [line for line in lines if line.startswith("PYTHONDONTWRITEBYTECODE")]


def test_caches_go_into_the_checkout_where_home_cannot_be_written(
    checkout: Path, tmp_path: Path
) -> None:
    own = {"XDG_CACHE_HOME": ""}
    cache = f"XDG_CACHE_HOME={checkout}/.cache"
    assert cache in make(checkout, "show", HOME="/proc/nobody", **own).splitlines()
    assert cache not in make(checkout, "show", HOME=str(tmp_path / "home"), **own).splitlines()


def test_no_folder_of_tests_is_left_out() -> None:
    paths = PROJECT["tool"]["pytest"]["ini_options"]["testpaths"]
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    assert set(paths) == {"/".join(path.parts[:2]) for path in tests}
    assert len(paths) == len(set(paths))
