"""What decides a run's result. Another key, another run."""

from __future__ import annotations

from typing import Any

from mhclite.files import digest_of
from mhclite.runs.provenance import code_digest

# Settings that do not decide the result: a run may be continued with others.
FREE_SETTINGS = ("processes", "checkpoint_interval")


def deciding(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without the settings that do not decide its result."""
    training = {k: v for k, v in config["training"].items() if k not in FREE_SETTINGS}
    return {**config, "training": training}


def code_of(config: dict[str, Any]) -> str:
    """Digest of the source that decides a run's result."""
    variant = config["connection"]["variant"]
    return code_digest("mhclite.training.loop", f"mhclite.connections.{variant}")


def run_key(config: dict[str, Any], corpus_digest: str) -> str:
    """Digest of configuration, code and corpus."""
    return digest_of({"config": deciding(config), "code": code_of(config), "corpus": corpus_digest})
