# The only helpers of the workflow: the study, its runs, and what each job's result depends on.
import fcntl
import json
import os
import shlex
import sys
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from snakemake.settings.types import RerunTrigger

# Of this file, and not workflow.basedir: another workflow may import this one as a module.
ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]
SOURCE = ROOT / "src"
sys.path.insert(0, str(SOURCE))
modifier = workflow.modifier.path_modifier
if modifier.prefix or modifier.modifies_prefixes:
    sys.exit(
        "error: mhclite as a module: `prefix` and `replace_prefix` are not supported, since results "
        "name files below results/; leave them out, or set `workdir`"
    )

from mhclite import jobs
from mhclite.data.corpora import content
from mhclite.data.prepare import PREPARATION
from mhclite.errors import UserError
from mhclite.evidence.claims import load_claims
from mhclite.evidence.exhibits import HEADINGS, declared
from mhclite.files import digest_of, lock, write_json, write_text
from mhclite.planning import status
from mhclite.planning.check import check_windows
from mhclite.planning.keys import (
    lost_files,
    lost_in_words,
    outdated_runs,
)
from mhclite.records import to_json
from mhclite.runs.code import digest_of_modules, step_digest
from mhclite.study.load import parse_study, read_resolved, read_yaml, resolve
from mhclite.study.sections import RESULTS
from mhclite.training import compiler_caches, torchrun

try:
    for path in workflow.configfiles:
        read_yaml(path, "study file")  # Snakemake has, and dropped keys given twice
    STUDY = parse_study(config)
    check_windows(STUDY)
    CLAIMS = load_claims(ROOT / "config/claims.yaml")
    # Snakemake knows what a result was made with only as long as its own records are there: not in
    # another clone, not without .snakemake, not after --touch. The run folders know it themselves.
    OUTDATED = outdated_runs(STUDY, RESULTS) if workflow.is_main_process else {}
    LOST = lost_files(STUDY, RESULTS) if workflow.is_main_process else {}
except UserError as error:
    # Not WorkflowError: its place in this file would hide the one line that matters.
    sys.exit(f"error: {error}")

OUT = f"results/{STUDY.name}"
RUNS = STUDY.runs()
ARMS = STUDY.arms() if STUDY.sweep else {}
RESOLVED = to_json(resolve(STUDY, CLAIMS))
NODES = STUDY.nodes()
CORPORA = {STUDY.corpus_folder(name).split("/")[1]: name for name in STUDY.corpora}
if OUTDATED:
    print(
        f"{len(OUTDATED)} of {len(RUNS)} runs were made otherwise "
        f"({', '.join(sorted(set(OUTDATED.values())))}) and are trained again; `python -m mhclite "
        f"keys STUDY.yaml --why {next(iter(OUTDATED))}` says more",
        file=sys.stderr,
    )
# A workflow that imports this one as a module keeps Snakemake's words.
TERMINAL = None
if workflow.is_main_process and not workflow.modifier.namespace:
    if not workflow.output_settings.verbose:
        TERMINAL = status.attach(Path(OUT))
EXHIBITS = [exhibit for exhibit in declared() if exhibit.shown_in(STUDY.model_dump())]
GPUS = 0 if STUDY.training.device == "cpu" else 1  # of a measuring job
# Jobs run the Python that runs Snakemake, with this checkout's source. Not as parameters: the results
# do not depend on these. One folder for what is compiled spares each job its minutes.
JOB_ENVIRONMENT = (
    {"PYTHONPATH": str(SOURCE)}
    | torchrun.environment()
    | (compiler_caches.environment(Path(OUT)) if GPUS or STUDY.training.compile else {})
)
JOB_PREFIX = (
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
    + " ".join(f"{key}={shlex.quote(value)}" for key, value in JOB_ENVIRONMENT.items())
    + "; "
)
# Of jobs that train or time training: glibc keeps freed memory instead of giving it back to the system
# and asking again in every step. The same bits.
KEEP_MEMORY = "MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=4294967296"
shell.prefix(JOB_PREFIX.replace("{", "{{").replace("}", "}}"))  # Snakemake formats it


# A limit such as `gpu: 1` of profiles/default is for jobs on this machine, not for a cluster's.
resource_scopes:
    gpu="local",


wildcard_constraints:
    run="[a-z0-9_-]+",
    arm="[a-z0-9_-]+",
    model="[a-z0-9_]+",
    corpus="[a-z0-9_-]+",


def as_json(value):
    """A setting as it stands on a job's command line."""
    return json.dumps(value, sort_keys=True)


def quoted(job):
    """Arguments of a job for the shell."""
    return shlex.join(job.arguments)


def made_of(job):
    """What decides a job's output.

    A digest, as in every rule: Snakemake keeps what is given as a parameter, compares it, and prints
    it where it changed. Not so with a parameter that is a function of `output` as well.
    """
    return digest_of([job.arguments, job.code])


def prepared(corpus):
    """Snakemake's receipt of a prepared corpus."""
    return f"{jobs.corpus_folder(STUDY, corpus)}/{jobs.PREPARED}"


def made_of_corpus(corpus):
    """What decides a corpus: its settings, the content of its files, code."""
    settings = STUDY.corpora[corpus].model_dump(mode="json")
    files = content(settings, jobs.corpus_folder(STUDY, corpus))
    return digest_of(
        [STUDY.corpus_settings(corpus), files, digest_of_modules(PREPARATION)]
    )


def is_another_study():
    """Whether the results that are there were made by a study with other settings."""
    try:
        return read_resolved(Path(OUT, "resolved.json")).study != RESOLVED["study"]
    except UserError:  # none, damaged, or of another version
        return False


def look_for_what_is_lost(*made):
    """Say what is missing of a study that is as it was, and has been made.

    Snakemake does not miss a file if all that is made from it is there. Where the study changed, its
    rules run again, and Snakemake itself sees what they lack.

    Args:
        made: rules, each with what it is made from.
    """
    if not is_another_study():
        for step in made:
            if any(map(os.path.exists, step.output)):
                files = map(str, (*step.input, *step.output))
                LOST.update((file, file) for file in files if not os.path.exists(file))
    if LOST:
        print(lost_in_words(LOST), file=sys.stderr)


@cache
def begin():
    """What must be done once and when the DAG is built, before anything is compared.

    What is outdated or lost is forced; nothing is where the user typed what he may not mean.
    """
    if workflow.config_settings.config and is_another_study():
        line = (
            f"--config would change the study whose results are in {OUT}: name a folder for "
            "others with `--config name=NAME`, or change the study file"
        )
        if not workflow.dryrun:
            sys.exit(f"error: {line}")
        print(line, file=sys.stderr)
    if workflow.touch:  # which takes what is there as made
        return
    workflow.dag.forcefiles.update(LOST.values())
    if RerunTrigger.PARAMS in workflow.rerun_triggers:
        trained = expand(f"{OUT}/{jobs.TRAIN.output}", run=OUTDATED)
        workflow.dag.forcefiles.update(trained)


def asked(wildcards):
    """No file. Snakemake asks while it builds the DAG, for each job whose output has a wildcard."""
    begin()
    for kind, name in wildcards.items():
        names = {"run": RUNS, "arm": ARMS, "model": STUDY.models, "corpus": CORPORA}[
            kind
        ]
        if name not in names:
            close = get_close_matches(name, names, n=1) or list(names)[:3]
            # Not an exception: Snakemake's words around it are longer than what it says.
            sys.exit(
                f"error: study {STUDY.name!r} has no {kind} {name!r}; of its {len(names)}: "
                f"{', '.join(close)}"
            )
    return []


def corpus_of_run(wildcards):
    """Receipt of the corpus that a run trains on."""
    return prepared(RUNS[wildcards.run].corpus)


def training_of(wildcards):
    """Training settings of a run."""
    return RUNS[wildcards.run].training


def nodes_of(wildcards):
    """Nodes of a training job."""
    return NODES[RUNS[wildcards.run].condition]


def share_of(wildcards):
    """Processes of a training job on each of its nodes."""
    return training_of(wildcards).processes // nodes_of(wildcards)


def cpus_of(wildcards):
    """CPUs of a training job on each of its nodes."""
    return training_of(wildcards).threads * share_of(wildcards)


def torchrun_of(wildcards):
    """What starts the processes of a training job."""
    training = training_of(wildcards)
    return " ".join(
        torchrun.launcher(training.processes, nodes_of(wildcards), training.threads)
    )


def gpus_of(wildcards):
    """GPUs of a training job on each of its nodes."""
    return 0 if training_of(wildcards).device == "cpu" else share_of(wildcards)


def over_nodes(resource):
    """A resource of training jobs that have several nodes; others do without it."""
    return lambda wildcards: resource(wildcards) if nodes_of(wildcards) > 1 else None


def in_report(exhibit):
    """The file of a figure or table that stands under its heading of Snakemake's report.

    Its caption is text, written beside it; Snakemake reads it when it makes the report.
    """
    return report(
        f"{OUT}/{exhibit.files[0]}",
        caption=os.path.abspath(f"{OUT}/{exhibit.caption_file}"),
        category=HEADINGS[exhibit.heading],
        labels={"item": f"{exhibit.kind}: {exhibit.title}"},
    )


onstart:
    # Snakemake's own lock stays behind when it is killed, and the next invocation fails. This one
    # falls with the process, which keeps the file open by its number: this block is a function, at
    # whose end a file object would be closed. profiles/default switches the other off.
    os.makedirs(".snakemake", exist_ok=True)
    held = os.open(".snakemake/mhclite.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(
            f"error: another snakemake is working in {os.getcwd()}: wait for it to end, or stop it"
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    if TERMINAL:
        TERMINAL.left = sum(
            job.rule.name == jobs.TRAIN.name for job in workflow.dag.needrun_jobs()
        )


onsuccess:
    # What the study found, as `evidence` has just written it: no output of the rule, since whoever
    # deletes it wants nothing made again.
    if any(job.rule.name == "evidence" for job in workflow.dag.finished_jobs):
        print(f"\n{Path(OUT, 'found.txt').read_text(encoding='utf-8')}")
