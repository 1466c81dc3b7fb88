"""Studies on a real SLURM, through the profiles as they are shipped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
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


def finish(process: subprocess.Popen[str], seconds: float) -> str:
    """What it printed, once it has ended well."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        stop(process)
    assert process.returncode == 0, output[-6000:]
    return output


def stop(process: subprocess.Popen[str]) -> None:
    """End it, if it has not ended; its jobs are SLURM's."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def mhclite(checkout: Checkout, *arguments: str) -> str:
    """What a command prints, on the login node."""
    return subprocess.run(
        [sys.executable, "-m", "mhclite", *arguments],
        cwd=checkout.folder,
        env={**checkout.environment, "PYTHONPATH": "src"},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout


def train_here(checkout: Checkout, study: str, run: str, folder: Path) -> None:
    """A run of a study whose corpus is prepared, by the command alone."""
    (corpus,) = (checkout.folder / "results/corpora").glob("*/manifest.json")
    lines = mhclite(checkout, "check", "--runs", study).splitlines()
    (config,) = (line for line in lines if json.loads(line)["run"] == run)
    given = ("--config", config, "--corpus", str(corpus.parent), "--out", str(folder))
    mhclite(checkout, "train", *given)


def held(folder: Path, step: int) -> int | None:
    """Stop the main process of a run, if it is past a step; its id."""
    metrics = folder / "metrics.jsonl"
    if not metrics.exists() or metrics.read_bytes().count(b"\n") <= step:
        return None
    main = int((folder / "lock").read_text())
    os.kill(main, signal.SIGSTOP)
    return main


def end_what_slurm_left() -> None:
    """This SLURM knows a job's processes by their parents alone, without cgroups: of a job that it
    ended (limit, requeue, scancel) the inner Snakemake may stay, and nobody kills it."""
    stop_leftovers()


# What each run meets: the same run as often, since a condition that only changes how often a run is
# saved changes no bit of it.
DRILLS = ("limit", "preempted", "node_lost")
OUT = "results/drill"
TARGETS = [f"{OUT}/runs.csv"]
if "EXHAUSTIVE" in os.environ:
    DRILLS += ("cancelled",)
    TARGETS.append(f"{OUT}/throughput/d2.json")
RUNS = dict(
    zip(DRILLS, ["sotu-d2-residual-s0", *(f"sotu-d2-residual-{name}-s0" for name in DRILLS[1:])])
)
STEPS, HELD_AFTER = 300, 100


def write_drills(checkout: Checkout) -> None:
    study = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    study |= {"name": "drill", "variants": ["residual"], "seeds": [0]}
    study["models"]["d2"]["learning_rate"] = 1e-3
    study["training"] |= {"steps": STEPS, "evaluation_interval": 100, "checkpoint_interval": 40}
    study["conditions"] = {
        name: {"title": name, "variants": ["residual"], "training": {"checkpoint_interval": every}}
        for name, every in zip(DRILLS[1:], (50, 60, 70))
    }
    (checkout.folder / "drill.yaml").write_text(yaml.safe_dump(study))


@pytest.fixture(scope="module")
def drilled(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, Path]:
    """A checkout in which SLURM has run a study all of whose runs were disturbed, at once; and the
    folder of a run that was not.

    Each is stopped amid its steps, so that what it meets finds it there however fast the machine
    is; SLURM continues (SIGCONT) what it ends.
    """
    checkout = Checkout(tmp_path_factory.mktemp("cluster"))
    write_drills(checkout)
    folders = {drill: checkout.folder / OUT / "runs" / run for drill, run in RUNS.items()}
    # The node that is lost is not the one on which the limit is waited for: none has the memory for
    # both.
    apart = [RUNS["limit"], RUNS["node_lost"]]
    memory = f"train:mem_mb=40000 if wildcards.run in {apart} else 10000"
    process = on_slurm(checkout, *TARGETS, "--set-resources", memory, study="drill.yaml")

    def job_of(drill: str) -> str:
        return slurm.jobs()[f"rule_train_wildcards_{RUNS[drill]}"]

    try:
        wait_until(
            lambda: None not in [held(folder, HELD_AFTER) for folder in folders.values()],
            "all of them train",
            400,
            every=0.02,
        )
        for folder in folders.values():
            assert not (folder / "summary.json").exists()
        # A minute is the shortest limit that there is.
        run("scontrol", "update", f"jobid={job_of('limit')}", "timelimit=1")
        run("scontrol", "requeue", job_of("preempted"))
        if "cancelled" in DRILLS:
            run("scancel", job_of("cancelled"))
        # Before a node is lost: if the job is on that one, it fails with it and is never requeued.
        wait_until(
            lambda: ["REQUEUED"] in slurm.history("State"), "the requeued job has left its node", 60
        )
        slurm.lose_node(run("squeue", "-h", "-j", job_of("node_lost"), "-o", "%N").strip())
        # While the limit is waited for.
        train_here(checkout, "drill.yaml", RUNS["limit"], checkout.folder / "undisturbed")
        finish(process, 500)
    finally:
        stop(process)
    end_what_slurm_left()
    return checkout, checkout.folder / "undisturbed"


def test_preemption_cancellation_lost_node_time_limit(
    slurm: Slurm, drilled: tuple[Checkout, Path], tell: Callable[[str], None]
) -> None:
    """Each run ends with the bits of an undisturbed one."""
    checkout, expected = drilled
    lines = []
    for drill, name in RUNS.items():
        folder = checkout.folder / OUT / "runs" / name
        for file in ("metrics.jsonl", "weights.pt"):
            assert sha256_of(folder / file) == sha256_of(expected / file), (drill, file)
        attempts = read_json(folder / "run.json")["attempts"]
        assert len(attempts) >= 2, f"{drill}: it was not disturbed"
        steps = [line["step"] for line in read_jsonl(folder / "timing.jsonl")]
        assert steps == list(range(1, STEPS + 1))
        lines.append(f"{drill.replace('_', ' ')} ({len(attempts)} attempts)")
    tell(f"SLURM: {', '.join(lines)}: each ended with the undisturbed run's bits")
    states = {state.split()[0] for _, state in slurm.history("JobID,State")}
    # REQUEUED was seen above; in the end accounting may have another word for that attempt.
    assert {"TIMEOUT", "COMPLETED", *["CANCELLED"] * ("cancelled" in DRILLS)} <= states


def test_what_a_study_asks_of_slurm(slurm: Slurm, drilled: tuple[Checkout, Path]) -> None:
    checkout, _ = drilled
    jobs = [comment for comment, state in slurm.history("Comment,State") if state == "COMPLETED"]
    assert {job for job in jobs if "train" in job} == {
        f"rule_train_wildcards_{name}" for name in RUNS.values()
    }
    rules = Counter(re.sub(r"^rule_(.*?)(_wildcards.*)?$", r"\1", comment) for comment in jobs)
    rules.pop("train")
    # One job probes all runs. What is cheap runs on the login node.
    assert rules == dict.fromkeys(["prepare", "probe", *["throughput"] * (len(TARGETS) - 1)], 1)
    assert f"{len(RUNS)} runs: {len(RUNS)} finished" in mhclite(checkout, "status", "drill.yaml")


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


# Sums over a batch are taken in another order (tests/faults/test_processes.py).
ROUNDING = 1e-4
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
    smoke |= {"name": "spread", "variants": ["mhc_lite"], "seeds": [1], "conditions": {}}
    (checkout.folder / "spread.yaml").write_text(yaml.safe_dump(smoke))
    return "spread.yaml"


@pytest.mark.exhaustive
def test_a_run_on_two_nodes_then_on_one(
    slurm: Slurm, drilled: tuple[Checkout, Path], tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """Two processes on two nodes are requeued, go on, are cancelled, and go on upon one node: the
    losses are those of one process, up to rounding."""
    checkout, _ = drilled
    out = checkout.folder / "results/spread"
    folder, log = out / "runs" / RUN, out / f"logs/train/{RUN}.log"
    target = f"results/spread/runs/{RUN}/summary.json"

    process = on_slurm(checkout, target, study=spread(checkout, processes=2, nodes=2))
    try:
        main = wait_until(lambda: held(folder, 20), "step 20", 300, 0.02)
        words = Path(f"/proc/{main}/environ").read_text().split("\0")
        assert {"WORLD_SIZE=2", "LOCAL_WORLD_SIZE=1"} <= set(words)
        assert f"TORCHINDUCTOR_CACHE_DIR={out}/compiled" in words
        run("scontrol", "requeue", slurm.jobs()[f"rule_train_wildcards_{RUN}"])
        wait_until(
            lambda: log.exists() and "continuing at step" in log.read_text(), "it goes on", 300
        )
        (first,) = set(map(int, re.findall(r"continuing at step (\d+) of", log.read_text())))
        assert first > 20, "the requeued job did not save its step"
        wait_until(lambda: held(folder, first + 20), "20 more", 300, 0.02)
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
