"""How each step of a run is called: said once, for the rules of the DAG and for bundles.

A *step* is a command of `python -m mhclite`; a *job* is one call of it, with its arguments, the
file that it writes, its log, and a digest of what decides that file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mhclite.config import RunConfig
from mhclite.files import digest_of
from mhclite.runs.code import step_digest
from mhclite.runs.key import code_digest
from mhclite.study.sections import RESULTS
from mhclite.study.settings import Study


@dataclass(frozen=True)
class Rule:
    """A step that is made once per run, per arm, per model size, or once (no wildcard)."""

    name: str  # of the command, of the rule and of the folder of its logs
    output: str  # under results/<study>/, with {run}, {arm} or {model}

    @property
    def log(self) -> str:
        """Under results/<study>/."""
        if not self.wildcard:
            return f"logs/{self.name}.log"
        return f"logs/{self.name}/{{{self.wildcard}}}.log"

    @property
    def wildcard(self) -> str:
        """What it is made of: `run`, `arm` or `model`; empty: everything."""
        return self.output.partition("{")[2].partition("}")[0]


PREPARED = "prepared.json"  # beside a corpus's manifest: a copy, which Snakemake deletes at will

TRAIN = Rule("train", "runs/{run}/summary.json")
PROBE = Rule("probe", "probes/{run}.json")
PROBES = Rule("probe", "probes.json")  # those of all runs in one process; what each was made of
CRITICAL = Rule("critical", "critical/{run}.json")
SWEEP = Rule("sweep", "sweep/{arm}.json")
RATES = "learning-rates.yaml"  # under results/<study>/: what a sweep comes to
THROUGHPUT = Rule("throughput", "throughput/{model}.json")


@dataclass(frozen=True)
class Job:
    """One call of `python -m mhclite`, made in a folder that is laid out like a checkout."""

    step: str
    output: str  # under results/<study>/
    log: str  # likewise
    arguments: list[str]
    code: str  # digest of the code that decides the output
    processes: int = 1


def train(study: Study, config: RunConfig) -> Job:
    """Train a run, or continue it."""
    arguments = [*_of_run(study, config), "--out", f"{results_folder(study)}/runs/{config.run}"]
    return _job(TRAIN, config.run, arguments, code_digest(config), config.training.processes)


def probe(study: Study, config: RunConfig) -> Job:
    """Probe one finished run."""
    code = step_digest("measure.probe", [config.connection.variant])
    return _job(PROBE, config.run, [*_probe_arguments(study), "--run", config.run], code)


def probes(study: Study) -> Job:
    """Probe all runs in one process, those that have no probe yet; `--run` is up to the caller."""
    receipt = ["--receipt", str(results_folder(study) / PROBES.output)]
    code = step_digest("measure.probe", study.variants)
    return _job(PROBES, "", [*_probe_arguments(study), *receipt], code)


def _probe_arguments(study: Study) -> list[str]:
    tokens = study.probe.evaluation_tokens
    return [
        *("--runs", str(results_folder(study) / "runs")),
        *("--sequences", str(study.probe.sequences)),
        *([] if tokens is None else ["--evaluation-tokens", str(tokens)]),
        *("--out", str(results_folder(study) / "probes")),
    ]


def critical(study: Study, config: RunConfig) -> Job:
    """Search the learning rate at which a run ceases to learn."""
    assert study.critical_rate is not None
    arguments = _of_run(study, config, study.critical_rate.model_dump())
    code = step_digest("measure.critical", [config.connection.variant])
    return _job(CRITICAL, config.run, [*arguments, *_out(study, CRITICAL, config.run)], code)


def sweep(study: Study, arm: str, runs: Sequence[RunConfig]) -> Job:
    """Find the learning rate of an arm, of which `Study.arms` has the name and the runs."""
    assert study.sweep is not None
    settings = study.sweep.model_dump() | {"seeds": [config.seed for config in runs]}
    arguments = _of_run(study, replace(runs[0], run=arm), settings)
    code = step_digest("measure.sweep", [runs[0].connection.variant])
    return _job(SWEEP, arm, [*arguments, *_out(study, SWEEP, arm)], code)


def throughput(study: Study, model: str) -> Job:
    """Time training steps of every variant at one model size; `--threads` is up to the caller."""
    variants = dict.fromkeys(["residual", *study.variants_of(model)])
    arguments = ["--config", _json(study.throughput_config(model).to_json())]
    code = step_digest("measure.throughput", variants)
    return _job(THROUGHPUT, model, [*arguments, *_out(study, THROUGHPUT, model)], code)


def _job(step: Rule, of: str, arguments: list[str], code: str, processes: int = 1) -> Job:
    output, log = (text.format(**{step.wildcard: of}) for text in (step.output, step.log))
    return Job(step.name, output, log, arguments, code, processes)


def _of_run(study: Study, config: RunConfig, settings: Any = None) -> list[str]:
    """The arguments that name a run, its corpus, and the settings of what is done with it."""
    return [
        *("--config", _json(config.to_json())),
        *("--corpus", str(corpus_folder(study, config.corpus))),
        *([] if settings is None else ["--settings", _json(settings)]),
    ]


def _out(study: Study, step: Rule, of: str) -> list[str]:
    return ["--out", str(results_folder(study) / step.output.format(**{step.wildcard: of}))]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def digest(job: Job, run_key: str | None = None) -> str:
    """Digest of all that decides a job's output, wherever the job is done.

    Args:
        run_key: of the run that is trained or probed.
    """
    if job.step == TRAIN.name:
        assert run_key is not None
        return run_key
    return digest_of({"arguments": job.arguments, "code": job.code, "run": run_key})


def results_folder(study: Study) -> Path:
    """results/<study>."""
    return RESULTS / study.name


def corpus_folder(study: Study, corpus: str) -> Path:
    """Folder of a prepared corpus."""
    return RESULTS / study.corpus_folder(corpus)
