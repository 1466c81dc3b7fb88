# The only helpers of the workflow: the study, its runs, and what each job's result depends on.
import fcntl
import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

SOURCE = Path(workflow.basedir) / "src"
sys.path.insert(0, str(SOURCE))

from mhclite.data.lock import LOCK_FILE
from mhclite.data.prepare import PREPARATION
from mhclite.errors import UserError
from mhclite.evidence import captions
from mhclite.evidence.captions import shown
from mhclite.evidence.claims import load_claims
from mhclite.files import write_json, write_text
from mhclite.runs.code import digest_of_modules
from mhclite.runs.provenance import code_digest
from mhclite.study.reading import parse_study
from mhclite.training import live

try:
    STUDY = parse_study(config)
    CLAIMS = load_claims(Path(workflow.basedir) / "config/claims.yaml")
except UserError as error:
    # Not WorkflowError: its place in this file would hide the one line that matters.
    sys.exit(f"error: {error}")

RUNS = STUDY.runs()
FIGURES = shown(captions.FIGURES, STUDY.model_dump())
TABLES = shown(captions.TABLES, STUDY.model_dump())
OUT = f"results/{STUDY.name}"
# Jobs run the Python that runs Snakemake, with this checkout's source; those that train send their
# curves to the study's MLflow server, if it has one. Not as parameters: the results do not depend
# on these.
JOB_ENVIRONMENT = {"PYTHONPATH": str(SOURCE)} | live.environment(STUDY.tracking.uri, STUDY.name)
JOB_PREFIX = (
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
    + " ".join(f"{key}={shlex.quote(value)}" for key, value in JOB_ENVIRONMENT.items())
    + "; "
)
shell.prefix(JOB_PREFIX.replace("{", "{{").replace("}", "}}"))  # Snakemake formats it
GPUS = 0 if STUDY.training.device == "cpu" else 1  # of a measuring job


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


def code_of(entry, *variants):
    """Digest of the source that a step uses; a change of what it computes reruns the job.

    Snakemake alone sees neither imported modules nor the difference between an edit and a touch.
    """
    return code_digest(
        entry, *(f"mhclite.connections.{variant}" for variant in variants)
    )


def corpus_folder(corpus):
    """Folder of a prepared corpus."""
    return f"results/{STUDY.corpus_folder(corpus)}"


def manifest_of_run(wildcards):
    """Manifest of the corpus that a run trains on."""
    return f"{corpus_folder(RUNS[wildcards.run]['corpus'])}/manifest.json"


def variant_of_run(wildcards):
    """Residual variant of a run."""
    return RUNS[wildcards.run]["connection"]["variant"]


def training_of(wildcards):
    """Training settings of a run."""
    return RUNS[wildcards.run]["training"]


def gpus_of(training):
    """GPUs of a training job."""
    return 0 if training["device"] == "cpu" else training["processes"]


def torchrun(processes):
    """What stands between `python -m` and the module for a run of several processes."""
    if processes == 1:
        return ""
    return f"torch.distributed.run --standalone --nproc-per-node {processes} -m"


def run_folder(wildcards):
    """Run folder: undeclared, so that a failed job keeps its checkpoints."""
    return f"{OUT}/runs/{wildcards.run}"


def resolved_study():
    """The study, its runs and the folders of its corpora, as `collect` reads them."""
    return {
        "study": STUDY.model_dump(mode="json"),
        "runs": RUNS,
        "corpora": {name: corpus_folder(name) for name in STUDY.corpora},
        "claims": [claim.model_dump(mode="json") for claim in CLAIMS],
    }


def figure(name):
    """A figure with its caption, under its heading of the report."""
    return report(
        f"{OUT}/figures/{name}.png",
        caption=f"../report/{name}.rst",
        category=FIGURES[name].heading,
        labels={"item": name.replace("_", " ")},
    )


def table(name):
    """A table with its caption, under its heading of the report."""
    return report(
        f"{OUT}/tables/{name}.html",
        caption=f"../report/{name}.rst",
        category=TABLES[name].heading,
        labels={"item": f"table of {name}"},
    )


onstart:
    # Snakemake's own lock stays behind when it is killed, and the next invocation fails. This one
    # falls with the process. profiles/default switches the other off.
    os.makedirs(".snakemake", exist_ok=True)
    workflow_lock = open(".snakemake/mhclite.lock", "a")
    try:
        fcntl.flock(workflow_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(
            f"another snakemake is working in {os.getcwd()}: wait for it to end, or stop it"
        )
