"""The jobs of a study that need torch and numpy alone, as a bundle carries them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhclite.data.manifest import load_manifest
from mhclite.errors import UserError
from mhclite.files import digest_of, misfit, read_json
from mhclite.runs.key import run_key
from mhclite.runs.provenance import code_digest

if TYPE_CHECKING:
    from mhclite.study.settings import Study

SCHEMA = 1
BUNDLE = "bundle.json"  # the jobs, in the folder of the bundle
RECEIPTS = "bundle-receipts.json"  # output -> digest of what it was made of; in results/<study>
RESULTS = Path("results")


@dataclass(frozen=True)
class Job:
    """One call of `python -m mhclite`, made in a folder that is laid out like a checkout."""

    step: str
    output: str  # declared output, under results/<study>/
    log: str  # likewise
    digest: str  # of all that decides the output; for `train` the key of the run
    arguments: list[str]
    processes: int = 1


def jobs_of(study: Study) -> tuple[list[Job], list[tuple[Job, Job]]]:
    """(throughput of each model, training and probe of each run), with the DAG's arguments.

    Runs are in the order in which they tell most: all runs of the first seed, then those of the
    next, so that whenever it ends early the variants can be compared seed by seed.

    Raises:
        UserError: a corpus is not prepared.
    """
    out = RESULTS / study.name
    variants = dict.fromkeys(["residual", *study.variants])
    throughput = [
        Job(
            "throughput",
            f"throughput/{model}.json",
            f"logs/measure_throughput/{model}.log",
            digest_of(
                {
                    "config": study.throughput_config(model),
                    "code": _code("mhclite.measure.throughput", variants),
                }
            ),
            [
                *("--config", json.dumps(study.throughput_config(model))),
                *("--out", f"{out}/throughput/{model}.json"),
            ],
        )
        for model in study.models
    ]
    corpora = {name: RESULTS / study.corpus_folder(name) for name in study.corpora}
    digests = {name: load_manifest(folder).digest for name, folder in corpora.items()}
    runs = sorted(study.runs().values(), key=lambda config: study.seeds.index(config["seed"]))
    return throughput, [
        _training_and_probe(study, config, corpora[config["corpus"]], digests[config["corpus"]])
        for config in runs
    ]


def _code(module: str, variants: Sequence[str] | dict[str, None]) -> str:
    return code_digest(module, *(f"mhclite.connections.{variant}" for variant in variants))


def _training_and_probe(
    study: Study, config: dict[str, Any], corpus: Path, corpus_digest: str
) -> tuple[Job, Job]:
    run, out = config["run"], RESULTS / study.name
    key, sequences = run_key(config, corpus_digest), study.probe.sequences
    train = Job(
        "train",
        f"runs/{run}/summary.json",
        f"logs/train/{run}.log",
        key,
        [
            *("--config", json.dumps(config), "--corpus", str(corpus)),
            *("--out", f"{out}/runs/{run}"),
        ],
        config["training"]["processes"],
    )
    probe = Job(
        "probe",
        f"probes/{run}.json",
        f"logs/probe_mixing/{run}.log",
        digest_of(
            {
                "run": key,
                "sequences": sequences,
                "code": _code("mhclite.measure.probe", [config["connection"]["variant"]]),
            }
        ),
        [
            *("--run", f"{out}/runs/{run}", "--corpus", str(corpus)),
            *("--sequences", str(sequences), "--threads", str(study.training.threads)),
            *("--out", f"{out}/probes/{run}.json"),
        ],
    )
    return train, probe


def run_config(job: Job) -> dict[str, Any]:
    """The resolved configuration of the run that a training job trains."""
    config: dict[str, Any] = json.loads(job.arguments[job.arguments.index("--config") + 1])
    return config


def finished_key(folder: Path) -> str | None:
    """Key of the run that was finished in a run folder; None if none was."""
    if not (folder / "summary.json").is_file():
        return None
    summary = read_json(folder / "summary.json", "summary of the run")
    return str(summary.get("key")) if isinstance(summary, dict) else None


def receipts(out: Path) -> dict[str, str]:
    """Output -> digest of what it was made of, for the throughput and probes of a bundle."""
    path = out / RECEIPTS
    found: dict[str, str] = read_json(path, "receipts") if path.is_file() else {}
    problem = misfit(found, {})
    if problem:
        raise UserError(f"{path} is not what a bundle wrote: {problem}; delete it")
    return found
