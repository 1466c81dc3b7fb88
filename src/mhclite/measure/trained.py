"""A trained model, held-out text, and the model's loss on it."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.data.batches import Tokens
from mhclite.data.manifest import TokenizerEntry, expect_window, load_manifest, open_split
from mhclite.data.tokens import TokenSplit
from mhclite.errors import UserError
from mhclite.files import sha256_of
from mhclite.measure.measured import Evaluation
from mhclite.measure.mixing import chunks
from mhclite.model import GPT
from mhclite.records import read_record
from mhclite.runs.folder import WEIGHTS, CorpusRecord, RunFolder
from mhclite.training.group import deterministic
from mhclite.training.processes import choose_device

log = logging.getLogger(__name__)

SCHEMA = 1  # of imported.json
IMPORTED = "imported.json"


@dataclass(frozen=True)
class Trained:
    """A model whose training has ended, here or elsewhere (`exchange`)."""

    folder: Path
    model: ModelConfig
    connection: ConnectionConfig
    steps: int
    weights_sha256: str | None
    seed: int = 0
    device: str = "auto"  # as in the study
    # None for an imported one:
    best_validation_loss: float | None = None
    key: str | None = None  # of the run
    corpus: CorpusRecord | None = None  # that it was trained on

    @property
    def has_weights(self) -> bool:
        """Whether there are final weights: a diverged run has none."""
        return self.weights_sha256 is not None


@dataclass(frozen=True)
class ImportedModel:
    """imported.json: a model of the authors' repository, in a folder with its weights."""

    schema: int
    source: str  # their checkpoint
    source_sha256: str
    steps: int
    model: ModelConfig
    connection: ConnectionConfig
    weights_sha256: str


def read_trained(path: Path) -> Trained:
    """The model in a run folder, or in one that `exchange` imported into; `UserError` if none."""
    if (path / IMPORTED).is_file():
        found = read_record(
            ImportedModel, path / IMPORTED, "the imported model", SCHEMA, "import it again"
        )
        return Trained(path, found.model, found.connection, found.steps, found.weights_sha256)
    folder = RunFolder(path)
    summary, record = folder.summary(), folder.record()
    config = record.config
    return Trained(
        path,
        config.model,
        config.connection,
        summary.steps,
        summary.weights_sha256,
        config.seed,
        config.training.device,
        summary.best_validation_loss,
        summary.key,
        record.corpus,
    )


def load_trained(trained: Trained) -> tuple[GPT, torch.device]:
    """The model in evaluation mode, in float32, and its device."""
    weights = trained.folder / WEIGHTS
    if not weights.exists() or sha256_of(weights) != trained.weights_sha256:
        raise UserError(
            f"{weights} is missing or not what was recorded beside it; delete {trained.folder} and "
            "train or import the model again"
        )
    device = choose_device(trained.device)
    deterministic(device)
    model = GPT(trained.model, trained.connection, trained.seed)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.to(device).eval(), device


def held_out(text: Path, trained: Trained) -> TokenSplit:
    """Validation split of a prepared corpus.

    Raises:
        UserError: not there, damaged, made with another tokenizer than the model's, or shorter than
            one window of the model.
    """
    manifest, own = load_manifest(text), tokenizer_of(trained)
    theirs = manifest.tokenizer
    if own is None:  # nanoGPT rounds the vocabulary up, or does not
        same = trained.model.vocab_size in (theirs.n_tokens, theirs.vocab_size)
    else:
        same = own.sha256 == theirs.sha256
    if not same:
        raise UserError(
            f"{text} has tokens of another tokenizer ({theirs.kind}, {theirs.vocab_size} ids) than "
            f"{trained.folder} was trained on ({own.kind if own else 'unknown'}, "
            f"{trained.model.vocab_size} ids): prepare that text with the model's tokenizer"
        )
    if own is None:
        log.warning(
            "the tokenizer of %s is not known: that of %s is believed", trained.folder, text
        )
    expect_window({"validation": manifest.validation}, str(text), trained.model.block_size)
    return open_split(text, "validation")


def tokenizer_of(trained: Trained) -> TokenizerEntry | None:
    """The tokenizer of the corpus that a model was trained on; None where it is not there."""
    if trained.corpus is None:
        return None
    with suppress(UserError):
        manifest = load_manifest(Path(trained.corpus.manifest).parent)
        if manifest.digest == trained.corpus.digest:
            return manifest.tokenizer
    return None


def windows_over(split: TokenSplit, length: int, most: int | None) -> list[Tokens]:
    """Windows that lie side by side: (count, length + 1), and (1, shorter) for what is left.

    Each token but the first of the split is predicted once, from at most `length` tokens before it.

    Args:
        split: the text.
        length: tokens predicted in a window.
        most: predicted tokens, as whole windows spread evenly over the split; None: all.
    """
    predicted = len(split) - 1
    whole = predicted // length
    chosen, end = np.arange(whole), whole * length
    if most is not None and most < predicted:
        spread = np.linspace(0, whole - 1, min(whole, max(1, most // length)))
        chosen, end = np.unique(spread.round().astype(np.int64)), predicted
    windows = [split.windows(chosen * length, length + 1)]
    return windows + ([split.read(end, len(split) - end)[None]] if end < predicted else [])


@torch.no_grad()
def evaluation(model: GPT, split: TokenSplit, most: int | None, device: torch.device) -> Evaluation:
    """Mean loss over `windows_over` the split.

    Args:
        model: in evaluation mode on `device`.
        split: validation split.
        most: predicted tokens; None: all.
        device: where to compute.
    """
    total, tokens = 0.0, 0
    for windows in windows_over(split, model.block_size, most):
        for chunk in chunks(windows):
            ids = torch.from_numpy(chunk).to(device)
            logits = model(ids[:, :-1]).flatten(0, 1)
            losses = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
            total += losses.double().sum().item()
            tokens += len(losses)
    return Evaluation(total / tokens, tokens)
