"""Both ways to set up pin the same versions; `make test` finds every folder of tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

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


def test_no_folder_of_tests_is_left_out() -> None:
    paths = PROJECT["tool"]["pytest"]["ini_options"]["testpaths"]
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    assert set(paths) == {"/".join(path.parts[:2]) for path in tests}
    assert len(paths) == len(set(paths))
