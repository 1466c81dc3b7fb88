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

from leftovers import stop_leftovers

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


def end_what_slurm_left() -> None:
    """This SLURM knows a job's processes by their parents alone, without cgroups: of a job that it
    ended (limit, requeue, scancel) the inner Snakemake may stay, and nobody kills it."""
    stop_leftovers()


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


# Sums over a batch are taken in another order (tests/faults/test_processes.py).
ROUNDING = 1e-4
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
    end_what_slurm_left()
    states = {state.split()[0] for _, state in slurm.history("JobID,State")}
    # REQUEUED was seen above; in the end accounting may have another word for that attempt.
    assert {"CANCELLED", "TIMEOUT", "COMPLETED"} <= states


def test_gpus_as_gres() -> None:
    """profiles/slurm-gres asks for the same as profiles/slurm, and for GPUs by --gres."""
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


RUN = "sotu-d2-mhc_lite-s1"
LONG = 120  # steps; the run is held twice on its way


def spread(checkout: Checkout, processes: int, nodes: int) -> str:
    """A study of one run. It may use GPUs, so asks for some; there are none, and it trains without.

    Its only checkpoints are those of signals.
    """
    smoke = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    training, models = smoke["training"], smoke["models"]
    training |= {"steps": LONG, "evaluation_interval": 50, "checkpoint_interval": 10 * LONG}
    training |= {"processes": processes, "nodes": nodes, "device": "auto"}
    models["d2"]["learning_rate"] = 1e-3  # at smoke's own, rounding grows tenfold every few steps
    return write_study(
        checkout, "spread", training=training, models=models, variants=["mhc_lite"], seeds=[1]
    )


def held(folder: Path, step: int) -> int:
    """Stop the main process of a run once it has done a step; its id."""
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not metrics.exists() or metrics.read_bytes().count(b"\n") <= step:
        assert time.monotonic() < deadline, f"step {step} is not reached"
        time.sleep(0.01)
    main = int((folder / "lock").read_text())
    os.kill(main, signal.SIGSTOP)
    return main


@pytest.mark.exhaustive
def test_a_run_on_two_nodes_then_on_one(
    slurm: Slurm, finished: tuple[Checkout, float], tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Two processes on two nodes are requeued, go on, are cancelled, and go on upon one node: the
    losses are those of one process, up to rounding."""
    checkout, _ = finished
    out = checkout.folder / "results/spread"
    folder, log = out / "runs" / RUN, out / f"logs/train/{RUN}.log"
    target = f"results/spread/runs/{RUN}/summary.json"

    process = on_slurm(checkout, target, study=spread(checkout, processes=2, nodes=2))
    try:
        main = held(folder, 20)
        words = Path(f"/proc/{main}/environ").read_text().split("\0")
        assert {"WORLD_SIZE=2", "LOCAL_WORLD_SIZE=1"} <= set(words)
        assert f"TORCHINDUCTOR_CACHE_DIR={out}/compiled" in words
        run("scontrol", "requeue", slurm.jobs()[f"rule_train_wildcards_{RUN}"])
        wait_until(
            lambda: log.exists() and "continuing at step" in log.read_text(), "it goes on", 300
        )
        (first,) = set(map(int, re.findall(r"continuing at step (\d+) of", log.read_text())))
        assert first > 20, "the requeued job did not save its step"
        held(folder, first + 20)
    finally:
        stop(process)  # or it would submit the job again
    run("scancel", slurm.jobs()[f"rule_train_wildcards_{RUN}"])
    wait_until(lambda: not slurm.jobs("running,completing"), "the job has left")
    end_what_slurm_left()
    (second,) = set(map(int, re.findall(r"SIGTERM after step (\d+) of", log.read_text())))
    assert second > first

    study = spread(checkout, processes=2, nodes=1)
    finish(on_slurm(checkout, target, profile="slurm-gres", study=study), 600)
    assert f"continuing at step {second} of" in log.read_text()
    assert read_json(folder / "summary.json")["attempts"] == 3
    comments = [entry for entry in slurm.history("Comment,AllocTRES") if entry[0].endswith(RUN)]
    two, one = (set(tres.split(",")) for tres in dict.fromkeys(tres for _, tres in comments))
    assert {"gres/gpu=2", "node=2", "cpu=2", "mem=32000M"} <= two
    assert {"gres/gpu=1", "node=1", "cpu=2", "mem=24000M"} <= one

    train_here(checkout, spread(checkout, processes=1, nodes=1), RUN, tmp_path)
    pairs = zip(*(read_jsonl(at / "metrics.jsonl") for at in (folder, tmp_path)), strict=True)
    difference = max(
        abs(a[name] - b[name]) / abs(b[name]) for a, b in pairs for name in a if a[name]
    )
    assert difference < ROUNDING
    tell(
        f"SLURM: two processes on two nodes, requeued at {first}, cancelled at {second}, on one: "
        f"differ from one process by at most {difference:.1e} in any metric of {LONG} steps"
    )
