"""Both ways to set up pin the same versions; `make` sets up whatever a user's surroundings, and
`make test` finds every folder of tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def pins(lines: list[str]) -> dict[str, str]:
    """Package -> version of lines such as `name==1.2; marker`; every such line must be a pin."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)(\s*;.+)?", line)
        assert match, f"{line!r} is not a pin"
        found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def declared() -> dict[str, str]:
    project = PROJECT["project"]
    return pins(project["dependencies"] + project["optional-dependencies"]["dev"])


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


def test_conda_pip_and_lock_pin_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = environment["dependencies"][-1]["pip"]
    assert pip[0] == "--constraint requirements.lock"
    assert pins(pip[1:]) == declared()
    assert {name: locked().get(name) for name in declared()} == declared()


def test_what_is_installed_is_pinned() -> None:
    """pip resolves what torch's build needs here, so a package might come that the lock lacks."""
    pip = {"pip", "mhclite"}
    paths = sysconfig.get_paths()  # not sys.path: setuptools, once imported, adds its own packages
    here = {
        re.sub(r"[-_.]+", "-", found.name).lower(): found.version.partition("+")[0]
        for found in distributions(path=[paths["purelib"], paths["platlib"]])
    }
    assert {name: here[name] for name in here.keys() - pip} == {
        name: locked()[name] for name in here.keys() - pip
    }


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
    """One that was moved or copied is made anew."""
    used = make(checkout, "-n", "ui", "PORT=5001")
    assert used == ".venv/bin/python -m mhclite ui --port '5001'\n"
    copied = shutil.copytree(checkout, checkout.parent / "copied")
    assert "-m venv --clear .venv" in make(copied, "-n", "ui")


def test_what_is_set_for_other_projects_is_not_ours(checkout: Path) -> None:
    """Caches go into the checkout where the home folder cannot be written to."""
    names = "PIP_TARGET PYTHONHOME PIP_CONSTRAINT UV_OVERRIDE PYTHONDONTWRITEBYTECODE"
    others = {"PIP_USER": "1", "XDG_CACHE_HOME": ""} | dict.fromkeys(names.split(), "/x")
    lines = make(checkout, "show", HOME="/proc/nobody", **others).splitlines()
    assert {"PIP_USER=0", f"XDG_CACHE_HOME={checkout}/.cache"} <= set(lines)
    assert not [line for line in lines if line.endswith("=/x")]


# --- making it ----------------------------------------------------------------------------------

# A Python that says it is another one (MHC_FAKE), whose environments are made of this same script:
# it notes what is asked of it, and fails for what MHC_FAIL matches.
FAKE = """#!/bin/sh
echo "backend=${UV_TORCH_BACKEND-} $0 $*" >> "$MHC_LOG"
case "$0 $*" in
    *" -m venv --clear .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/uv ;;
esac
echo "backend=${UV_TORCH_BACKEND-} $0 $*" | grep -qE "$MHC_FAIL" && exit 1
case "$1 $2" in
    "-c import "[psep][lyn]*) shift; exec REAL -c "import platform, sys; $MHC_FAKE
$1" ;;
    --version*) echo "Python 3.x" ;;
esac
exit 0
"""


def attempt(
    checkout: Path, tmp_path: Path, fake: str = "", fail: str = "^$", **environment: str
) -> tuple[int, str, list[str]]:
    """`make .venv/.ready` with such a Python: exit code, output, what was asked."""
    shutil.rmtree(checkout / ".venv")
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(FAKE.replace("REAL", sys.executable))
    python.chmod(0o755)
    log.write_text("")
    names = ("MAKE", "PIP_", "UV_T")
    own = {name: value for name, value in os.environ.items() if name[:4] not in names}
    done = subprocess.run(
        ["make", "--no-print-directory", f"PYTHON={python}", ".venv/.ready"],
        cwd=checkout,
        env=own | {"MHC_LOG": str(log), "MHC_FAKE": fake, "MHC_FAIL": fail} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, log.read_text().splitlines()


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        ("sys.version_info = (3, 10)", "Python 3.11 to 3.14 is needed"),
        ("platform.machine = lambda: 'i686'", "there is no torch 2"),
    ],
)
def test_what_is_not_supported_is_one_line(
    checkout: Path, tmp_path: Path, fake: str, said: str
) -> None:
    code, output, log = attempt(checkout, tmp_path, fake)
    assert code != 0
    assert said in output
    assert not [line for line in log if " venv " in line]
    assert not (checkout / ".venv").exists()


GPU = any(Path(name).exists() for name in ("/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


@pytest.mark.skipif(GPU or sys.platform != "linux", reason="not a machine without GPU")
def test_builds_of_torch_are_tried_in_turn(checkout: Path, tmp_path: Path) -> None:
    """Without a GPU that of the CPU, then what the index has, by uv, then by pip."""

    def installs(fail: str, **environment: str) -> list[str]:
        code, output, log = attempt(checkout, tmp_path, fail=fail, **environment)
        assert code == 0, output
        lines = [line for line in log if "install" in line and "constraint" in line]
        assert all("--constraint requirements.lock" in line for line in lines)
        return [f"{line.split()[0]} {'uv' if '/uv ' in line else 'pip'}" for line in lines]

    assert installs("^$") == ["backend=cpu uv"]
    assert installs("backend=cpu.*/uv ") == ["backend=cpu uv", "backend= uv"]
    assert installs("/uv ")[-2:] == ["backend= uv", "backend= pip"]
    assert installs("^$", UV_TORCH_BACKEND="cu130") == ["backend=cu130 uv"]
    assert installs("^$", PIP_FIND_LINKS="/wheels") == ["backend= uv"]
    assert (checkout / ".venv" / ".ready").exists()


def test_an_environment_that_cannot_be_imported_is_not_ready(
    checkout: Path, tmp_path: Path
) -> None:
    code, output, _ = attempt(checkout, tmp_path, fail="import torch")
    assert code != 0
    assert "cannot be imported" in output
    assert not (checkout / ".venv" / ".ready").exists()
