"""README's commands: in order, in a fresh clone with the environment of the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = ("make", "snakemake", "python", "python3", "conda", "cp", "git")
# Another form of what takes minutes or needs more than a clone. All else runs as it stands.
# `make -n` says what it would do, and fails where there is no such target.
FORMS = {
    r"git clone <this repository> (\w+) && cd \1": r"""
        git clone -q "$ROOT" \1; cd \1; ln -s "$ENVIRONMENT" .venv; export PYTHONPATH=$PWD/src""",
    r"make (.*)": r"make -n -o .venv/.ready \1",
    r"snakemake --cores all --configfile (config/.*)": r"""
        test -f \1 && snakemake -n --cores all --configfile config/smoke.yaml""",
    r"snakemake --profile (\S+) .*": r"test -f \1/config.yaml",
    r"python -m mhclite (conformance|bundle \w+) .*": r"python -m mhclite \1 --help",
}
NOT_RUN = {
    r"python3 run\.py .*": "in a bundle: test_elsewhere.py",
    r"conda .*": "makes an environment; tests/unit/test_environment.py compares its pins",
}


def commands() -> list[str]:
    """Lines of the blocks, without remarks, then what stands in sentences."""
    lines = [line for block in BLOCKS.findall(README) for line in block.splitlines()]
    words = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCKS.sub("", README))]
    said = [code for code in words if code.split()[0] in COMMANDS and " " in code]
    return [re.sub(r"\s+# .*", "", line) for line in lines if line.strip()] + said


def test_commands_in_a_fresh_clone(tmp_path: Path) -> None:
    assert len(commands()) > 10
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    script = ["set -eo pipefail"]
    for command in commands():
        if any(re.fullmatch(pattern, command) for pattern in NOT_RUN):
            continue
        pattern = next((form for form in FORMS if re.fullmatch(form, command)), None)
        script.append(re.sub(pattern, FORMS[pattern].strip(), command) if pattern else command)
    # Not what `make test` tells its own makes.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "MAKE"}
    environment |= {"ROOT": str(ROOT), "ENVIRONMENT": sys.prefix}
    done = subprocess.run(
        ["bash", "-xc", "\n".join(script)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
