# The only helpers of the workflow: the study, its runs, and what each job's result depends on.
import fcntl
import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import RerunTrigger

SOURCE = Path(workflow.basedir) / "src"
sys.path.insert(0, str(SOURCE))

from mhclite import jobs
from mhclite.data.corpora import content
from mhclite.data.lock import LOCK_FILE
from mhclite.data.prepare import PREPARATION
from mhclite.errors import UserError
from mhclite.evidence.claims import load_claims
from mhclite.evidence.exhibits import HEADINGS, declared
from mhclite.files import write_json, write_text
from mhclite.planning.keys import outdated_in_words, outdated_runs
from mhclite.records import to_json
from mhclite.runs.code import digest_of_modules, step_digest
from mhclite.study.reading import parse_study, read_yaml
from mhclite.study.resolved import resolve
from mhclite.study.sections import RESULTS
from mhclite.training import compiled, live
from mhclite.training.torchrun import launcher

try:
    for path in workflow.configfiles:
        read_yaml(
            path, "study file"
        )  # Snakemake has read it and dropped keys given twice
    STUDY = parse_study(config)
    CLAIMS = load_claims(Path(workflow.basedir) / "config/claims.yaml")
    # Snakemake knows what a result was made with only as long as its own records are there: not in
    # another clone, not without .snakemake, not after --touch. The run folders know it themselves.
    OUTDATED = outdated_runs(STUDY, RESULTS) if workflow.is_main_process else {}
except UserError as error:
    # Not WorkflowError: its place in this file would hide the one line that matters.
    sys.exit(f"error: {error}")

RUNS = STUDY.runs()
NODES = STUDY.nodes()
if OUTDATED:
    print(outdated_in_words(OUTDATED, len(RUNS)), file=sys.stderr)
EXHIBITS = [exhibit for exhibit in declared() if exhibit.shown_in(STUDY.model_dump())]
OUT = f"results/{STUDY.name}"
GPUS = 0 if STUDY.training.device == "cpu" else 1  # of a measuring job
# Jobs run the Python that runs Snakemake, with this checkout's source; those that train send their
# curves to the study's MLflow server, if it has one. Not as parameters: the results do not depend
# on these. One folder for what is compiled spares each job of a cluster its minutes; not for CPUs,
# whose code is compiled for the very processor of a node and would not run on another kind.
JOB_ENVIRONMENT = (
    {"PYTHONPATH": str(SOURCE)}
    | live.environment(STUDY.tracking.uri, STUDY.name)
    | (compiled.environment(Path(OUT)) if GPUS else {})
)
JOB_PREFIX = (
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
    + " ".join(f"{key}={shlex.quote(value)}" for key, value in JOB_ENVIRONMENT.items())
    + "; "
)
shell.prefix(JOB_PREFIX.replace("{", "{{").replace("}", "}}"))  # Snakemake formats it


# A limit such as `gpu: 1` of profiles/default is for jobs on this machine, not for a cluster's.
resource_scopes:
    gpu="local",


wildcard_constraints:
    run="[a-z0-9_-]+",
    model="[a-z0-9_]+",
    corpus="[a-z0-9_-]+",


def as_json(value):
    """A setting as it stands on a job's command line; a change of it reruns the job."""
    return json.dumps(value, sort_keys=True)


def quoted(job):
    """Arguments of a job for the shell."""
    return shlex.join(job.arguments)


def corpus_folder(corpus):
    """Folder of a prepared corpus."""
    return str(jobs.corpus_folder(STUDY, corpus))


def text_of(corpus):
    """What identifies the text of a corpus besides its settings."""
    settings = STUDY.corpora[corpus].model_dump(mode="json")
    return content(settings, jobs.corpus_folder(STUDY, corpus))


def manifest_of_run(wildcards):
    """Manifest of the corpus that a run trains on.

    Snakemake asks while it builds the DAG: the moment to force a run that is outdated.
    """
    if wildcards.run in OUTDATED and RerunTrigger.PARAMS in workflow.rerun_triggers:
        workflow.dag.forcefiles.add(
            f"{OUT}/{jobs.TRAIN.output.format(run=wildcards.run)}"
        )
    return f"{corpus_folder(RUNS[wildcards.run].corpus)}/manifest.json"


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
    return " ".join(launcher(training.processes, nodes_of(wildcards), training.threads))


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


# The file that is locked must stay open: this block is a function, whose own variables are dropped at
# its end, and the lock with them.
HELD = []


onstart:
    # Snakemake's own lock stays behind when it is killed, and the next invocation fails. This one
    # falls with the process. profiles/default switches the other off.
    os.makedirs(".snakemake", exist_ok=True)
    HELD.append(open(".snakemake/mhclite.lock", "a"))
    try:
        fcntl.flock(HELD[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(
            f"another snakemake is working in {os.getcwd()}: wait for it to end, or stop it"
        )
