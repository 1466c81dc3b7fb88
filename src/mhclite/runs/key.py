"""What decides a run's numbers. Another key, another run.

A key is a digest of the settings, the code and the corpus that decide what `metrics.jsonl` and the
final weights hold, to the bit. A run whose key changed is trained again; `bundle merge` refuses it.
So what stands here costs every user their finished runs when it changes, and what is missing here
lets two different computations pass for one run. docs/reproducibility.md has a table of edits and
what each of them runs again.
"""

from __future__ import annotations

from typing import Any

from mhclite.config import RunConfig
from mhclite.files import digest_of
from mhclite.runs.code import PACKAGE, digest_of_modules, imported_modules

# The code of every run. tests/unit/runs/test_key.py compares it with what the trainer imports.
MODULES = (
    "connections",
    "connections.base",
    "connections.fast",
    "connections.fast.availability",
    "connections.fast.functions",
    "connections.fast.projected",
    "connections.frozen",
    "connections.head",
    "data.batches",
    "data.tokens",
    "model",
    "seeding",
    "training.ahead",
    "training.compiled",
    "training.group",
    "training.optimizer",
    "training.step",
    "training.streams",
    "training.trainer",
)
# Besides, of runs whose connections may be computed by Triton kernels.
FUSED_MODULES = (
    "connections.fast.fused",
    "connections.fast.kernel_parts",
    "connections.fast.kernels",
    "connections.fast.kernels_backward",
    "connections.fast.launch",
    "connections.fast.operators",
    "connections.fast.sinkhorn_kernels",
)

# Settings that do not decide the numbers: names, and how training is carried out.
NAMES = ("run", "corpus", "condition")
FREE_TRAINING = ("processes", "checkpoint_interval")


def may_be_fused(config: RunConfig) -> bool:
    """Whether a run's connections may be computed by the fused implementation, somewhere."""
    wanted = config.connection.implementation
    return config.connection.n_streams > 1 and (
        wanted == "fused" or (wanted == "auto" and config.training.device != "cpu")
    )


def modules_of(config: RunConfig) -> tuple[str, ...]:
    """The modules whose code decides a run: those of all runs, and what its variant imports."""
    variant = imported_modules(f"{PACKAGE}.connections.{config.connection.variant}")
    shared = {f"{PACKAGE}.{name}" for name in MODULES}
    kernels = {f"{PACKAGE}.{name}" for name in FUSED_MODULES}
    found = shared | set(variant)
    if may_be_fused(config):
        found |= kernels
    elif config.training.device == "cpu":
        found -= kernels  # a variant may import one for a GPU, as mHC does Sinkhorn-Knopp's
    return tuple(sorted(found))


def deciding(config: RunConfig) -> dict[str, Any]:
    """The settings of a run that decide its numbers, as JSON."""
    found = config.to_json()
    for name in NAMES:
        del found[name]
    del found["model"]["name"]
    for name in FREE_TRAINING:
        del found["training"][name]
    return found


def settings_digest(config: RunConfig) -> str:
    """Digest of the settings that decide a run's numbers."""
    return digest_of(deciding(config))[:16]


def code_digest(config: RunConfig) -> str:
    """Digest of the code that decides a run's numbers."""
    return digest_of_modules(modules_of(config))


def module_digests(config: RunConfig) -> dict[str, str]:
    """Module -> digest, of the code that decides a run's numbers: to say which was edited."""
    return {
        name.removeprefix(f"{PACKAGE}."): digest_of_modules((name,)) for name in modules_of(config)
    }


def run_key(config: RunConfig, corpus_digest: str) -> str:
    """Digest of settings, code and corpus.

    Args:
        corpus_digest: of the prepared corpus (`Manifest.digest`).
    """
    parts = {
        "settings": settings_digest(config),
        "code": code_digest(config),
        "corpus": corpus_digest,
    }
    return digest_of(parts)


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """The settings in which two configurations differ.

    Args:
        expected: as the study has it.
        found: as the run has it.
        where: the path of both.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for key in dict.fromkeys((*expected, *found))
            for line in differences(expected.get(key), found.get(key), f"{where}.{key}".lstrip("."))
        ]
    if expected == found:
        return []
    return [f"{where} is {expected!r} in the study and {found!r} in the run"]


def difference(expected: Any, found: Any) -> str:
    """The first of `differences`; empty if there are none."""
    return next(iter(differences(expected, found)), "")
