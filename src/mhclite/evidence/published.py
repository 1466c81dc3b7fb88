"""A published study: its small files, kept in the repository, and what is made from them again.

No weights, no shards: what figures, tables, verdicts and report are computed from.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from mhclite.errors import UserError
from mhclite.evidence.claims import load_claims
from mhclite.evidence.collect import collect
from mhclite.evidence.evidence import write
from mhclite.evidence.results import Results
from mhclite.files import write_json
from mhclite.measure.files import StabilitySettings
from mhclite.measure.stability import judge_all
from mhclite.records import build, to_json
from mhclite.study.resolved import read_resolved

RUN_FILES = ("run.json", "summary.json", "metrics.jsonl", "mixing.jsonl")
STUDY_FILES = ("probes/*.json", "critical/*.json", "throughput/*.json", "sinkhorn.json")
CLAIMS = Path("config/claims.yaml")


def publish(results: Path, out: Path) -> None:
    """Copy the small files of a finished study from results/<study> into `out`."""
    resolved = read_resolved(results / "resolved.json")
    if out.exists():
        shutil.rmtree(out)
    for run in resolved.runs:
        folder = results / "runs" / run
        if not (folder / "summary.json").is_file():
            raise UserError(f"run {run} is not finished: complete the study before it is published")
        (out / "runs" / run).mkdir(parents=True)
        for name in RUN_FILES:
            shutil.copyfile(folder / name, out / "runs" / run / name)
    for pattern in STUDY_FILES:
        for path in sorted(results.glob(pattern)):
            target = out / path.relative_to(results)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for corpus, prepared in resolved.corpora.items():
        target = out / "corpora" / corpus / "manifest.json"
        target.parent.mkdir(parents=True)
        shutil.copyfile(Path(prepared) / "manifest.json", target)
    corpora = {corpus: f"corpora/{corpus}" for corpus in resolved.corpora}
    write_json(out / "resolved.json", to_json(replace(resolved, corpora=corpora)))


def rebuild(published: Path, out: Path) -> Results:
    """Compute stability, tables, figures and report from a published folder, into `out`."""
    collect_again(published, out)
    return write(out)


def collect_again(published: Path, out: Path) -> None:
    """Compute what tables, figures and report are made from.

    The study is asked the claims of this checkout, not those that it was published with.
    """
    asked = [claim.model_dump(mode="json") for claim in load_claims(CLAIMS)]
    resolved = replace(read_resolved(published / "resolved.json"), claims=asked)
    shutil.copytree(published, out, dirs_exist_ok=True)
    settings = build(StabilitySettings, resolved.study["stability"])
    judge_all(out / "runs", list(resolved.runs), settings, out / "stability.json")
    corpora = {name: str(out / folder) for name, folder in resolved.corpora.items()}
    collect(replace(resolved, corpora=corpora), out)
