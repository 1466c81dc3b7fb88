"""Studies on a real SLURM, through the profiles as they are shipped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from slurm import Slurm, run, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))
from checkout import ROOT, Checkout

from mhclite.files import read_json, read_jsonl, sha256_of

# Polling as slow as the profile's would be most of the test's time.
QUICK = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "2")


def on_slurm(
    checkout: Checkout, *arguments: str, profile: str = "slurm", study: str = "config/smoke.yaml"
) -> subprocess.Popen[str]:
    """Snakemake as a user starts it on a login node."""
    options = ("--profile", f"profiles/{profile}", *QUICK, *arguments, "--configfile", study)
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", *options],
        cwd=checkout.folder,
        env=checkout.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def stop(process: subprocess.Popen[str]) -> None:
    """End it, if it has not ended; its jobs are SLURM's."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def finish(process: subprocess.Popen[str], seconds: float) -> str:
    """What it printed, once it has ended well."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        stop(process)
    assert process.returncode == 0, output[-6000:]
    return output


def write_study(checkout: Checkout, name: str, **changes: object) -> str:
    """config/smoke.yaml with one seed, two variants and no condition."""
    study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    study |= {"name": name, "variants": ["residual", "mhc_lite"], "seeds": [0], "conditions": {}}
    study |= changes
    (checkout.folder / f"{name}.yaml").write_text(yaml.safe_dump(study))
    return f"{name}.yaml"


@pytest.fixture(scope="module")
def finished(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, float]:
    """A checkout in which SLURM has run a whole study, and the seconds that it took."""
    checkout = Checkout(tmp_path_factory.mktemp("smoke"))
    study = write_study(checkout, "small")
    began = time.monotonic()
    finish(on_slurm(checkout, study=study), 1200)
    return checkout, time.monotonic() - began


def test_a_whole_study(
    slurm: Slurm, finished: tuple[Checkout, float], tell: Callable[[str], None]
) -> None:
    checkout, seconds = finished
    out = checkout.folder / "results/small"
    assert (out / "report.html").stat().st_size > 100_000
    assert (out / "mlflow.json").exists()
    runs = {path.parent.name for path in out.glob("runs/*/summary.json")}
    assert runs == {"sotu-d2-residual-s0", "sotu-d2-mhc_lite-s0"}

    jobs = [comment for comment, state in slurm.history("Comment,State") if state == "COMPLETED"]
    rules = Counter(re.sub(r"^rule_(.*?)(_wildcards.*)?$", r"\1", comment) for comment in jobs)
    assert rules["train"] == 2  # one job per run
    assert rules["probe"] == 1  # of all runs
    assert rules["prepare"] == rules["throughput"] == 1
    cheap = {"collect", "evidence", "track", "stability"}
    assert not cheap & rules.keys(), "these run on the login node"
    tell(f"SLURM: a study of 2 runs in {sum(rules.values())} jobs, {seconds:.0f} s")

    done = subprocess.run(
        [sys.executable, "-m", "mhclite", "status", "small.yaml"],
        cwd=checkout.folder,
        env=checkout.environment,
        capture_output=True,
        text=True,
    )
    assert "2 runs: 2 finished" in done.stdout


# What each run meets: four times the same run, since a condition that only changes how often a run
# is saved changes no bit of it.
DRILLS = ("limit", "preempted", "cancelled", "node_lost")
STEPS, HELD_AFTER = 1500, 150


def drill_study(checkout: Checkout) -> list[str]:
    study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    study |= {"name": "drill", "variants": ["residual"], "seeds": [0]}
    study["models"]["d2"]["learning_rate"] = 1e-3
    study["training"] |= {"steps": STEPS, "evaluation_interval": 500, "checkpoint_interval": 40}
    study["conditions"] = {
        name: {"title": name, "variants": ["residual"], "training": {"checkpoint_interval": every}}
        for name, every in zip(DRILLS[1:], (50, 60, 70))
    }
    (checkout.folder / "drill.yaml").write_text(yaml.safe_dump(study))
    return ["sotu-d2-residual-s0", *(f"sotu-d2-residual-{name}-s0" for name in DRILLS[1:])]


def train_here(checkout: Checkout, study: str, run: str, folder: Path) -> None:
    """A run of a study whose corpus is prepared, by the command alone."""
    (corpus,) = (checkout.folder / "results/corpora").glob("*/manifest.json")

    def mhclite(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "mhclite", *arguments],
            cwd=checkout.folder,
            env={**checkout.environment, "PYTHONPATH": "src"},
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout

    lines = mhclite("check", "--runs", study).splitlines()
    (config,) = (line for line in lines if json.loads(line)["run"] == run)
    mhclite("train", "--config", config, "--corpus", str(corpus.parent), "--out", str(folder))


def test_preemption_cancellation_lost_node_time_limit(
    slurm: Slurm, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """All at once; each run ends with the bits of an undisturbed one.

    Each is stopped amid its steps, so that what it meets finds it there however fast the machine
    is; SLURM continues (SIGCONT) what it ends.
    """
    checkout = Checkout(tmp_path / "cluster")
    runs = dict(zip(DRILLS, drill_study(checkout)))
    folders = {drill: checkout.folder / "results/drill/runs" / run for drill, run in runs.items()}
    # The node that is lost is not the one on which the limit is waited for: none has the memory for
    # both.
    apart = [runs["limit"], runs["node_lost"]]
    memory = f"train:mem_mb=40000 if wildcards.run in {apart} else 10000"
    targets = [f"results/drill/runs/{run}/summary.json" for run in runs.values()]
    process = on_slurm(checkout, *targets, "--set-resources", memory, study="drill.yaml")
    held: set[str] = set()

    def hold() -> bool:
        """Stop each run that has come far enough; whether all are stopped."""
        for drill in sorted(set(DRILLS) - held):
            metrics = folders[drill] / "metrics.jsonl"
            if metrics.exists() and metrics.read_bytes().count(b"\n") > HELD_AFTER:
                os.kill(int((folders[drill] / "lock").read_text()), signal.SIGSTOP)
                held.add(drill)
        return held == set(DRILLS)

    def job_of(drill: str) -> str:
        return slurm.jobs()[f"rule_train_wildcards_{runs[drill]}"]

    try:
        wait_until(hold, "all four train", 400)
        for folder in folders.values():
            assert not (folder / "summary.json").exists()
        # A minute is the shortest limit that there is.
        run("scontrol", "update", f"jobid={job_of('limit')}", "timelimit=1")
        run("scontrol", "requeue", job_of("preempted"))
        run("scancel", job_of("cancelled"))
        # Before a node is lost: if the job is on that one, it fails with it and is never requeued.
        wait_until(
            lambda: ["REQUEUED"] in slurm.history("State"), "the requeued job has left its node", 60
        )
        node = run("squeue", "-h", "-j", job_of("node_lost"), "-o", "%N").strip()
        slurm.kill_node(node)
        wait_until(
            lambda: not run("sinfo", "-h", "-n", node, "-t", "alloc,mix,idle", "-o", "%N").strip(),
            "the node counts as down",
            120,
        )
        slurm.start_node(node)
        finish(process, 500)
    finally:
        stop(process)

    expected = tmp_path / "undisturbed"
    train_here(checkout, "drill.yaml", runs["limit"], expected)
    lines = []
    for drill, folder in folders.items():
        for name in ("metrics.jsonl", "weights.pt"):
            assert sha256_of(folder / name) == sha256_of(expected / name), (drill, name)
        attempts = read_json(folder / "run.json")["attempts"]
        assert len(attempts) >= 2, f"{drill}: it was not disturbed"
        steps = [line["step"] for line in read_jsonl(folder / "timing.jsonl")]
        assert steps == list(range(1, STEPS + 1))
        lines.append(f"{drill.replace('_', ' ')} ({len(attempts)} attempts)")
    tell(f"SLURM: {', '.join(lines)}: each ended with the undisturbed run's bits")
    states = {state.split()[0] for _, state in slurm.history("JobID,State")}
    assert {"CANCELLED", "TIMEOUT", "REQUEUED", "COMPLETED"} <= states


def test_gpus_as_gres_and_several_processes_in_one_job(
    slurm: Slurm, finished: tuple[Checkout, float]
) -> None:
    """profiles/slurm-gres asks for the same as profiles/slurm, and for GPUs by --gres; torchrun
    inside a job has the CPUs of all its processes."""
    plain, gres = (
        yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text())
        for name in ("slurm", "slurm-gres")
    )
    wanted = gres.pop("set-resources")
    for rule in ("train", "probe", "throughput"):
        assert (wanted[rule].pop("gpu"), wanted[rule].pop("gres")) == (0, "'gpu:1'")
    wanted = {rule: resources for rule, resources in wanted.items() if resources}
    assert plain.pop("set-resources") == wanted
    assert plain == gres

    checkout, _ = finished
    training = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())["training"]
    study = write_study(checkout, "gres", training=training | {"processes": 2}, seeds=[1])
    target = "results/gres/runs/sotu-d2-mhc_lite-s1/summary.json"
    finish(on_slurm(checkout, target, profile="slurm-gres", study=study), 600)
    record = json.loads((checkout.folder / target).with_name("run.json").read_text())
    assert record["config"]["training"]["processes"] == 2
    (allocated,) = [
        tres.split(",")
        for comment, tres in slurm.history("Comment,AllocTRES")
        if comment == "rule_train_wildcards_sotu-d2-mhc_lite-s1"
    ]
    assert {"gres/gpu=1", "cpu=2"} <= set(allocated)
