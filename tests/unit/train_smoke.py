"""Train runs of a study, all in this process; print a SHA-256 of each one's numbers as JSON.

    python train_smoke.py STUDY.yaml FOLDER

Only the command line is used, so that one script trains with any version of the code. One seed, a
few steps, and each run twice: computed by its formula and as it is computed by default.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path

import yaml

from mhclite import cli

IMPLEMENTATIONS = ("auto", "reference")
# Of a line of metrics.jsonl: what training computes. A column more or less is no other number.
NUMBERS = (
    *("step", "loss", "grad_norm", "backbone_grad_norm"),
    *("validation_loss", "validation_bits_per_byte"),
)


def step(*arguments: str) -> str:
    """Run a step of the command line; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.main([*arguments])
    if code != 0:
        sys.exit(f"{arguments[0]} ended with code {code}")
    return printed.getvalue()


def main(study: Path, folder: Path) -> None:
    """Prepare the study's only corpus, train its runs of seed 0, print their digests."""
    content = yaml.safe_load(study.read_text())
    ((name, corpus),) = content["corpora"].items()
    settings = {"name": name, "corpus": corpus, "tokenizer": content["tokenizer"]}
    text = folder / "corpus"
    step("prepare", "--settings", json.dumps(settings), "--out", str(text))
    digests: dict[str, dict[str, str]] = {}
    for line in step("check", "--runs", str(study)).splitlines():
        config = json.loads(line)
        if config["seed"] != 0:
            continue
        config["training"] |= {"steps": 16, "evaluation_interval": 8}
        for implementation in IMPLEMENTATIONS:
            config["connection"]["implementation"] = implementation
            out = folder / implementation / config["run"]
            step("train", "--config", json.dumps(config), "--corpus", str(text), "--out", str(out))
            numbers = [
                {name: value for name, value in json.loads(line).items() if name in NUMBERS}
                for line in (out / "metrics.jsonl").read_text().splitlines()
            ]
            digests.setdefault(config["run"], {})[implementation] = hashlib.sha256(
                json.dumps(numbers).encode()
            ).hexdigest()
    print(json.dumps(digests))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
