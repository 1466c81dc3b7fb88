"""The command line: its steps, their groups and their options are frozen in command_line.txt.

After a deliberate change: `python tests/unit/test_cli.py` writes the file again, and CHANGELOG.md
says what changed.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.__main__ import main as bench_main
from mhclite.cli import GROUPS, STEPS, Entry, main

FROZEN = Path(__file__).with_name("command_line.txt")

# What a machine with only torch and numpy (and Triton) lacks.
MISSING = ["pydantic", "yaml", "pandas", "scipy", "matplotlib", "mlflow", "snakemake", "tabulate"]
BARE = ("train", "probe", "critical", "sweep", "throughput")  # run there
BARE_BENCHMARKS = ("step", "session", "gradients")
MISSING += ["tiktoken", "tokenizers", "datasets", "pyarrow"]


def parser_of(step: Entry) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    importlib.import_module(step.module).configure(parser)
    return parser


def usage(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """One line for a step and one for each of its actions; optional arguments in brackets."""
    words, inner = [name], {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            inner = action.choices
        elif not isinstance(action, argparse._HelpAction):
            spelled = " ".join(action.option_strings) or action.dest
            needed = action.required if action.option_strings else action.nargs != "?"
            words.append(spelled if needed else f"[{spelled}]")
    yield " ".join(words)
    for action_name, action_parser in inner.items():
        yield from usage(f"{name} {action_name}", action_parser)


def command_line() -> str:
    lines = []
    for title, group in GROUPS.items():
        lines.append(f"# {title}")
        for name, step in group.items():
            lines += usage(name, parser_of(step))
    return "\n".join(lines) + "\n"


def test_the_command_line_is_what_it_was() -> None:
    assert command_line() == FROZEN.read_text(), (
        "steps, groups or options have changed, and with them what users and scripts type. If that "
        "is meant: python tests/unit/test_cli.py, and a line in CHANGELOG.md"
    )


@pytest.mark.parametrize("entry", [main, bench_main])
def test_steps_are_shown_and_no_others_are_known(
    entry: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    groups = GROUPS if entry is main else BENCHMARKS
    assert entry([]) == 2
    with pytest.raises(SystemExit):
        entry(["--help"])
    shown = capsys.readouterr()
    for title, steps in groups.items():
        assert f"{title}:\n" in shown.out
        for name in steps:
            assert f"\n  {name} " in shown.out
            assert f"\n  {name} " in shown.err
    others = BENCHMARKS["benchmarks"] if entry is main else STEPS
    for name in ("trian", *(others.keys() - set().union(*groups.values()))):
        with pytest.raises(SystemExit) as caught:
            entry([name])
        assert caught.value.code == 2
    assert len(STEPS) == sum(map(len, GROUPS.values()))


def test_torch_and_numpy_are_enough_where_a_machine_has_no_more() -> None:
    modules = [STEPS[name].module for name in BARE]
    modules += [BENCHMARKS["benchmarks"][name].module for name in BARE_BENCHMARKS]
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({MISSING!r}))\nimport {', '.join(modules)}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_python_without_the_packages_is_one_line() -> None:
    code = (
        "import sys\nsys.modules['yaml'] = None\nfrom mhclite.cli import main\n"
        "sys.exit(main(['check', 'study.yaml']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .* has no package yaml: use \.venv/bin/python .*\n", done.stderr)


if __name__ == "__main__":
    FROZEN.write_text(command_line())
