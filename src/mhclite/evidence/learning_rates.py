"""`python -m mhclite rates`: the file of learning rates that a sweep comes to."""

from __future__ import annotations

import argparse

import yaml

from mhclite.arguments import file_path
from mhclite.files import write_text
from mhclite.measure.measured import Sweep, read_sweep
from mhclite.records import to_json

HEAD = """\
# Learning rates of study {study}, chosen by its sweep; made by `python -m mhclite rates`.
# A study takes them with `learning_rates: FILE`. An arm without a rate (null) needs one by hand.
"""


OF_ARM = (
    *("corpus", "model", "condition", "variant", "rate", "bracketed", "shared_rate", "band"),
    "trials",
)


def as_yaml(study: str, arms: list[Sweep]) -> str:
    """The whole file: a line for the rule, one for each trial."""
    rule = to_json(arms[0].settings)
    del rule["seeds"]  # each trial says its own
    entries = [{name: to_json(getattr(arm, name)) for name in OF_ARM} for arm in arms]
    content = {"study": study, "rule": rule, "arms": entries}
    # Collections within collections in blocks, the innermost on one line each.
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=1000)
    return HEAD.format(study=study) + text


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite rates`."""
    parser.add_argument("--study", required=True, help="its name")
    parser.add_argument(
        "--sweep", required=True, nargs="+", type=file_path, help="files that `sweep` wrote"
    )
    parser.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Gather the arms."""
    write_text(args.out, as_yaml(args.study, [read_sweep(path) for path in args.sweep]))
