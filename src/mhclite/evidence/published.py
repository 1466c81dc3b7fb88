"""A published study: its small files, kept in the repository, and what is made from them again.

No weights, no shards: what figures, tables, verdicts and report are computed from, in one Parquet
file; beside it the tables that a reader opens without code.
"""

from __future__ import annotations

import shutil
import tempfile
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
from mhclite.runs.parquet import STUDY, pack, unpack
from mhclite.study.reading import read_resolved

MANIFEST = "manifest.json"
RUN_FILES = ("run.json", "summary.json", "metrics.jsonl", "mixing.jsonl")
STUDY_FILES = ("probes/*.json", "critical/*.json", "throughput/*.json", "sinkhorn.json")
READABLE = ("runs.csv", "tables/claims.csv")
CLAIMS = Path("config/claims.yaml")


def publish(results: Path, out: Path) -> None:
    """Put what a finished study in results/<study> is computed from into `out`."""
    resolved = read_resolved(results / "resolved.json")
    for run in resolved.runs:
        if not (results / "runs" / run / "summary.json").is_file():
            raise UserError(f"run {run} is not finished: complete the study before it is published")
    paths = [f"runs/{run}/{name}" for run in sorted(resolved.runs) for name in RUN_FILES]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        for corpus, prepared in resolved.corpora.items():
            (made / "corpora" / corpus).mkdir(parents=True)
            shutil.copyfile(Path(prepared) / MANIFEST, made / "corpora" / corpus / MANIFEST)
        corpora = {corpus: f"corpora/{corpus}" for corpus in resolved.corpora}
        write_json(made / "resolved.json", to_json(replace(resolved, corpora=corpora)))
        sources = {str(path.relative_to(made)): path for path in made.rglob("*.json")}
        for pattern in STUDY_FILES:
            sources |= {str(path.relative_to(results)): path for path in results.glob(pattern)}
        sources |= {path: results / path for path in paths}
        pack(dict(sorted(sources.items())), out / STUDY)
    for name in READABLE:
        if (results / name).is_file():
            shutil.copyfile(results / name, out / Path(name).name)


def rebuild(published: Path, out: Path) -> Results:
    """Compute stability, tables, figures and report from a published folder, into `out`."""
    collect_again(published, out)
    return write(out)


def collect_again(published: Path, out: Path) -> None:
    """Compute what tables, figures and report are made from.

    The study is asked the claims of this checkout, not those that it was published with.
    """
    asked = [claim.model_dump(mode="json") for claim in load_claims(CLAIMS)]
    unpack(published / STUDY, out)
    resolved = replace(read_resolved(out / "resolved.json"), claims=asked)
    settings = build(StabilitySettings, resolved.study["stability"])
    judge_all(out / "runs", list(resolved.runs), settings, out / "stability.json")
    corpora = {name: str(out / folder) for name, folder in resolved.corpora.items()}
    collect(replace(resolved, corpora=corpora), out)
