"""Make a bundle of a study, and bring into results/ what it has done.

A bundle holds code, tokens and resolved jobs for a machine without the pipeline. It is a folder
laid out like a checkout, so that jobs have there the paths that they have here, with `bundle.json`
(the jobs) and `run.py` (what is started there) beside `src/`.

A published study is merged as well: with more seeds or variants in the study file, only those
train. Everything is checked before anything is copied. A finished run is taken if its key is the
study's here and it is not finished here already. Merging again changes nothing.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mhclite import jobs
from mhclite.bundle.drive import BUNDLE, SCHEMA, Bundle, Chain, PackedJob, receipts
from mhclite.data.manifest import MANIFEST, SPLITS, expect_window, load_manifest, verify_split
from mhclite.errors import UserError
from mhclite.files import write_json, write_text
from mhclite.measure.measured import read_probe
from mhclite.records import to_json
from mhclite.runs.code import PACKAGE_ROOT
from mhclite.runs.folder import RECORD, RESULT, STEP_FILES, SUMMARY, WEIGHTS, RunFolder
from mhclite.runs.key import run_key
from mhclite.runs.parquet import STUDY, unpack
from mhclite.runs.progress import outdated
from mhclite.runs.provenance import PACKED, git_state
from mhclite.study.load import load_study
from mhclite.study.sections import RESULTS
from mhclite.study.settings import Study

RUN_FILES = (RECORD, *(f"{name}.jsonl" for name in STEP_FILES), WEIGHTS, RESULT, SUMMARY)
SHOWN = 3  # refused runs that are named
RUN = '''\
"""Trains what this bundle holds. Start it again and again until it says that nothing is left:

    python3 run.py --minutes 30

Needs Python 3.11 or newer, torch and numpy.
"""

import sys
from pathlib import Path

if sys.version_info < (3, 11):
    sys.exit(f"error: Python 3.11 or newer is needed, this is {sys.version.split()[0]}")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "src"))

from mhclite.cli import main

sys.exit(main(["bundle", "run", str(HERE), *sys.argv[1:]]))
'''

log = logging.getLogger(__name__)


def pack(study_file: Path, out: Path) -> None:
    """Write the bundle of a study into a folder that does not exist yet.

    Corpora that are not prepared yet are prepared first, by the workflow.

    Raises:
        UserError: `out` exists, a corpus cannot be prepared, runs are spread over nodes, or the
            study is a sweep.
    """
    study = load_study(study_file)
    if study.sweep is not None:
        raise UserError(
            f"study {study.name!r} is a sweep, and a bundle holds runs: sweep with `snakemake`, "
            "then pack the study that takes its rates"
        )
    nodes = max(study.nodes().values())
    if nodes > 1:
        raise UserError(f"training.nodes is {nodes}, and a bundle is for one machine: set it to 1")
    if out.exists():
        raise UserError(f"{out} exists: name another --out, or delete it (its results with it)")
    corpora = [jobs.corpus_folder(study, name) for name in study.corpora]
    missing = [str(path) for path in corpora if not (path / MANIFEST).is_file()]
    if missing:
        log.info("preparing %s", ", ".join(missing))
        snakemake(study_file, *(f"{path}/{jobs.PREPARED}" for path in missing))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        folder = Path(work) / out.name
        _fill(folder, study, corpora)
        folder.replace(out)


def snakemake(study_file: Path, *arguments: str) -> None:
    """Run Snakemake on a study in the folder of the project.

    Raises:
        UserError: it fails, or this is not the folder of the project.
    """
    if not Path("Snakefile").is_file():
        raise UserError(f"{Path.cwd()} has no Snakefile: run this in the folder of the project")
    command = [sys.executable, "-m", "snakemake", *arguments, "--cores", "all"]
    done = subprocess.run(
        [*command, "--configfile", str(study_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        reason = (errors or lines or ["it said nothing"])[-1].removeprefix("error: ")
        raise UserError(f"snakemake {' '.join(arguments)[:200]}: {reason}")


def bundle_of(study: Study) -> Bundle:
    """The jobs of a study.

    Runs are in the order in which they tell most: all runs of the first seed, then those of the
    next, so that whenever it ends early the variants can be compared seed by seed.

    Raises:
        UserError: a corpus is not prepared.
    """
    digests = {
        name: load_manifest(jobs.corpus_folder(study, name)).digest for name in study.corpora
    }
    runs = sorted(study.runs().values(), key=lambda config: study.seeds.index(config.seed))

    def packed(job: jobs.Job, key: str | None = None) -> PackedJob:
        made_of = jobs.digest(job, key)
        return PackedJob(job.step, job.output, job.log, made_of, job.arguments, job.processes)

    chains = []
    for config in runs:
        key = run_key(config, digests[config.corpus])
        chains.append([packed(make(study, config), key) for make in (jobs.train, jobs.probe)])
    throughput = [packed(jobs.throughput(study, model)) for model in study.models]
    return Bundle(SCHEMA, study.name, throughput, chains)


def _fill(folder: Path, study: Study, corpora: list[Path]) -> None:
    package = folder / "src" / PACKAGE_ROOT.name
    for source in sorted(PACKAGE_ROOT.rglob("*.py")):
        target = package / source.relative_to(PACKAGE_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    write_json(package / PACKED, to_json(git_state()))
    for corpus in corpora:
        manifest = load_manifest(corpus)
        expect_window(manifest.splits, str(corpus), study.longest_context())
        names = [MANIFEST]
        for split in SPLITS:
            verify_split(corpus, manifest.splits[split])
            names += [shard.file for shard in manifest.splits[split].shards]
        (folder / corpus).mkdir(parents=True)
        for name in names:
            shutil.copyfile(corpus / name, folder / corpus / name)
    write_json(folder / BUNDLE, to_json(bundle_of(study)))
    write_text(folder / "run.py", RUN)


@contextmanager
def results_of(source: Path, name: str) -> Iterator[Path]:
    """The folder of the study in what came back; what is published is unpacked for that long."""
    if (source / STUDY).is_file():
        RESULTS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=RESULTS, prefix=".merge.") as folder:
            unpack(source / STUDY, Path(folder))
            yield Path(folder)
        return
    for path in (source / RESULTS / name, source / name, source):
        if (path / "runs").is_dir() or (path / "throughput").is_dir():
            yield path
            return
    raise UserError(
        f"{source} has no results of study {name!r}: expected is the bundle's folder, or its "
        f"results/{name}"
    )


def folder_of(job: PackedJob, place: Path) -> RunFolder:
    """The run folder of a training job."""
    return RunFolder((place / job.output).parent)


def new_runs(runs: list[Chain], theirs: Path, ours: Path) -> list[PackedJob]:
    """The runs that are finished there and not here.

    Raises:
        UserError: a run there is another than the study's or damaged, or under way here.
    """
    new, refused = [], {}
    for train, _ in runs:
        there, here = folder_of(train, theirs), folder_of(train, ours)
        if there.begun_key() not in (None, train.digest):
            why = outdated(train.config(), None, there.record()) or "of another corpus"
            refused[train.config().run] = why
        elif there.finished_key() == train.digest != here.finished_key():
            if here.is_locked():
                raise UserError(f"{here.path} is being trained here: stop that first")
            if damaged := there.damage(there.summary()):
                raise UserError(f"{damaged} is damaged: bring it back again")
            new.append(train)
    if refused:
        names = ", ".join(list(refused)[:SHOWN]) + ", ..." * (len(refused) > SHOWN)
        raise UserError(
            f"{theirs}: {len(refused)} of {len(runs)} runs ({names}) are "
            f"{next(iter(refused.values()))} than here; merge where that is as it was packed, "
            "or pack again and train anew"
        )
    return new


def take(theirs: RunFolder, ours: RunFolder) -> None:
    """Copy a finished run; what is here of it, or of another run of its name, gives way."""
    incoming = ours.path.with_name(f".{ours.path.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    for name in RUN_FILES:
        if (theirs / name).exists():
            shutil.copyfile(theirs / name, incoming / name)
    shutil.rmtree(ours.path, ignore_errors=True)
    incoming.replace(ours.path)


def is_new(job: PackedJob, key: str, theirs: Path, ours: Path, made_of: dict[str, str]) -> bool:
    """Whether a probe or a throughput measurement that came back is of what is here, and is new.

    Args:
        key: of the run that is probed. Of its probe the rule asks the rest.
        made_of: receipts of the bundle; what is published has none.
    """
    source, target = theirs / job.output, ours / job.output
    if not source.is_file():
        return False
    if job.step == jobs.PROBE.name:
        here = target.is_file() and read_probe(target, target.stem).key == key
        return not here and read_probe(source, source.stem).key == key
    if made_of.get(job.output, job.digest) != job.digest:
        log.warning("%s is of other settings or code than are here now: left out", source)
    same = target.is_file() and target.read_bytes() == source.read_bytes()
    return made_of.get(job.output) == job.digest and not same


def merge(study_file: Path, source: Path) -> str:
    """Merge what a bundle has done. Returns a line for the reader.

    Raises:
        UserError: a run of other settings, code or corpus, or a damaged one; nothing is changed.
    """
    study = load_study(study_file)
    bundle = bundle_of(study)
    ours, others = jobs.results_folder(study), 0
    with results_of(source, study.name) as theirs:
        new = new_runs(bundle.runs, theirs, ours)
        for train in new:
            take(folder_of(train, theirs), folder_of(train, ours))
        done = [job.output for job in new]
        made_of = receipts(theirs)
        finished = [
            (probe, train.digest)
            for train, probe in bundle.runs
            if folder_of(train, ours).finished_key() == train.digest
        ]
        for job, key in (*finished, *((job, "") for job in bundle.throughput)):
            target = ours / job.output
            if is_new(job, key, theirs, ours, made_of):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(theirs / job.output, target)
                others += 1
                # A probe that is right is taken as made by its rule.
                done += [] if key else [job.output]
    if done:
        # Snakemake records what they were made of: a later change reruns exactly what it should.
        snakemake(study_file, "--touch", "--force", *(f"{ours}/{output}" for output in done))
    return (
        f"study {study.name}: {len(new)} runs and {others} other files are new; "
        f"{len(finished)} of {len(bundle.runs)} runs are finished here"
    )
