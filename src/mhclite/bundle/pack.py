"""Make a bundle: code, tokens and resolved jobs of a study, for a machine without the pipeline.

A bundle is a folder laid out like a checkout, so that jobs have there the paths that they have
here, with `bundle.json` (the jobs) and `run.py` (what is started there) beside `src/`.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from mhclite import jobs
from mhclite.bundle.drive import BUNDLE, SCHEMA, Bundle, PackedJob
from mhclite.data.manifest import MANIFEST, SPLITS, expect_window, load_manifest, verify_split
from mhclite.errors import UserError
from mhclite.files import write_json, write_text
from mhclite.records import to_json
from mhclite.runs.code import PACKAGE_ROOT
from mhclite.runs.key import run_key
from mhclite.runs.provenance import PACKED, git_state
from mhclite.study.reading import load_study
from mhclite.study.settings import Study

ARCHIVES = (".tar.gz", ".tgz")
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
    """Write the bundle of a study: a folder, or an archive if `out` ends with .tar.gz.

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
    archive = out.name.endswith(ARCHIVES)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        name = out.name.partition(".tar")[0].removesuffix(".tgz") if archive else out.name
        folder = Path(work) / name
        _fill(folder, study, corpora)
        if study.critical_rate:
            log.warning(
                "the search for critical learning rates is not packed: after `bundle merge`, "
                "snakemake makes it on the machine that it runs on"
            )
        if archive:
            with tarfile.open(Path(work) / out.name, "w:gz") as tar:
                tar.add(folder, arcname=name)
            (Path(work) / out.name).replace(out)
        else:
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
