"""The probe against matrices multiplied, losses summed and models changed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tiny import MIXING, MODEL, VARIANTS, configuration, connection, write_corpus, write_shards

from mhclite import cli
from mhclite.data.tokens import TokenSplit
from mhclite.errors import UserError
from mhclite.measure import probe as step
from mhclite.measure.measured import Mixing, Probe, Use, read_probe
from mhclite.measure.mixing import QUANTILE_LEVELS, knockouts, mixing
from mhclite.measure.probe import ProbeSettings, probe_runs, task_of
from mhclite.measure.trained import evaluation, held_out, read_trained
from mhclite.model import GPT
from mhclite.records import build, to_json
from mhclite.study.sections import Connections
from mhclite.training.loop import train

CPU = torch.device("cpu")
SEVERAL = tuple(name for name in VARIANTS if name != "residual")
ARMS = [(name, False) for name in SEVERAL] + [(name, True) for name in MIXING]
FINAL_NORMS = get_args(Connections.model_fields["final_norm"].annotation)
SETTINGS = ProbeSettings(sequences=3, evaluation_tokens=None, text=None)


def trained_like(variant: str, **changes: Any) -> GPT:
    """A model whose weights are far from the start, as if it had been trained."""
    model = GPT(MODEL, connection(variant, **changes), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def untrained(variant: str) -> list[torch.nn.Module]:
    return list(GPT(MODEL, connection(variant), seed=0).connections())


def some_windows(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, MODEL.vocab_size, size=(count, length))


# --- H_res --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["hc", "mhc", "jpmhc"])
def test_mixing_is_what_multiplying_by_hand_gives(variant: str) -> None:
    model, start = trained_like(variant), untrained(variant)
    windows = some_windows(1, 2)
    result = mixing(model, start, windows, CPU)
    geometry = result.geometry

    x = model.embed(torch.from_numpy(windows))
    products = [np.eye(4), np.eye(4)]  # one a token
    sums: list[list[np.ndarray]] = [[], []]
    for layer, sublayer in enumerate(model.sublayers):
        with torch.no_grad():
            H_res = sublayer.connection.coefficients(x).H_res[0].double().numpy()
            before = start[layer].coefficients(x).H_res[0].double().numpy()
            x = sublayer(x)
        products = [H @ product for H, product in zip(H_res, products, strict=True)]
        sums[0].append(np.array([[sum(H[t]) for t in range(4)] for H in H_res]))
        sums[1].append(np.array([[sum(H[:, s]) for s in range(4)] for H in H_res]))
        distance = np.mean([np.sqrt(((H - np.eye(4)) ** 2).sum()) for H in H_res])
        assert result.identity_distance[layer] == pytest.approx(distance)
        moved = np.mean([np.sqrt(((H - B) ** 2).sum()) for H, B in zip(H_res, before, strict=True)])
        assert geometry.start_distance[layer] == pytest.approx(moved)
        off = [np.sqrt(((H.T @ H - np.eye(4)) ** 2).sum()) for H in H_res]
        assert geometry.orthogonality[layer] == pytest.approx(np.mean(off))
        np.testing.assert_allclose(geometry.mean_matrix[layer], H_res.mean(0))
    columns = np.array([[sum(P[:, s]) for s in range(4)] for P in products])
    forward = [max(sum(abs(P[t])) for t in range(4)) for P in products]
    backward = [max(sum(abs(P[:, s])) for s in range(4)) for P in products]
    assert result.product.column_sum == [pytest.approx(np.quantile(columns, QUANTILE_LEVELS))]
    assert result.product.gain_forward == [pytest.approx(np.mean(forward))]
    assert result.product.gain_backward == [pytest.approx(np.mean(backward))]
    values = [np.sqrt(np.linalg.eigvalsh(P.T @ P).clip(0)[::-1]) for P in products]
    assert geometry.singular_values == [pytest.approx(np.mean(values, axis=0), abs=1e-6)]
    for found, by_hand in zip((result.single.row_sum_all, result.single.column_sum_all), sums):
        assert found == pytest.approx(np.quantile(by_hand, QUANTILE_LEVELS))
    deviation = np.array([abs(P.sum(1) - 1) for P in products])
    assert geometry.product_deviation.quantile_99 == pytest.approx(np.quantile(deviation, 0.99))
    assert geometry.single_deviation.quantile_99 == pytest.approx(
        np.quantile(np.abs(np.array(sums[0]) - 1), 0.99)
    )
    if variant == "mhc":
        inputs = result.sinkhorn_input
        assert inputs is not None
        assert inputs.max > 0
    else:
        assert result.sinkhorn_input is None


def test_nothing_depends_on_how_the_windows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows = trained_like("mhc_lite"), some_windows(5, 6)

    def measure() -> list[float]:
        found = mixing(model, untrained("mhc_lite"), windows[:, :-1], CPU)
        costs = knockouts(model, found, windows, CPU)
        assert found.single.error < 1e-5
        return [
            *found.product.gain_forward,
            *found.geometry.start_distance,
            costs.identity.mean,
            costs.token_mean.mean,
        ]

    whole = measure()
    monkeypatch.setattr("mhclite.measure.mixing.CHUNK_TOKENS", 12)
    assert measure() == pytest.approx(whole, rel=1e-4, abs=1e-6)


# --- what the loss depends on ---------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "frozen"), ARMS)
def test_what_changes_nothing_costs_exactly_nothing(variant: str, frozen: bool) -> None:
    changes = {"implementation": "fast"} | ({"freeze_mixing": True} if frozen else {})
    model, windows = trained_like(variant, **changes), some_windows(4, 7)
    found = mixing(model, untrained(variant), windows[:, :-1], CPU)
    result = knockouts(model, found, windows, CPU)
    if frozen or variant not in MIXING:
        costs = (result.identity, result.token_mean)
        assert {(cost.mean, cost.error) for cost in costs} == {(0.0, 0.0)}
    else:
        assert result.identity.mean != 0, "the change must be seen"


@pytest.mark.parametrize("final_norm", FINAL_NORMS)
@pytest.mark.parametrize("variant", MIXING)
def test_costs_are_those_of_a_changed_model(variant: str, final_norm: str) -> None:
    """Against forward passes in which H_res is replaced step by step, for every variant."""
    model, windows = trained_like(variant, final_norm=final_norm), some_windows(4, 6)
    tokens = torch.from_numpy(windows)
    found = mixing(model, untrained(variant), windows[:, :-1], CPU)
    result = knockouts(model, found, windows, CPU)

    def read(x: torch.Tensor) -> torch.Tensor:
        if final_norm == "per_stream":
            return model.ln_f(x).sum(-2)
        if final_norm == "after_sum":
            return model.ln_f(x.sum(-2))
        assert model.head is not None
        u = x.flatten(-2)
        u = u / (u.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        weights = torch.sigmoid(model.head.scale * (u @ model.head.w) + model.head.b) + 1e-6
        return model.ln_f((weights.unsqueeze(-1) * x).sum(-2))

    @torch.no_grad()
    def losses(changed: dict[int, torch.Tensor]) -> np.ndarray:
        x = model.embed(tokens[:, :-1])
        for layer, sublayer in enumerate(model.sublayers):
            H_pre, H_post, H_res = sublayer.connection.coefficients(x)
            y = sublayer.branch((H_pre.unsqueeze(-1) * x).sum(-2))
            x = changed.get(layer, H_res) @ x + H_post.unsqueeze(-1) * y.unsqueeze(-2)
        loss = torch.nn.functional.cross_entropy(
            (read(x) @ model.wte.weight.T).mT, tokens[:, 1:], reduction="none"
        )
        return loss.mean(-1).double().numpy()

    unchanged = losses({})
    identity, layers = torch.eye(4), range(len(model.sublayers))
    means = [torch.tensor(matrix) for matrix in found.geometry.mean_matrix]
    expected = {
        "identity": losses(dict.fromkeys(layers, identity)),
        "token_mean": losses(dict(enumerate(means))),
    }
    for name, values in expected.items():
        cost, difference = getattr(result, name), values - unchanged
        assert cost.mean == pytest.approx(difference.mean(), abs=1e-5), name
        assert cost.error == pytest.approx(difference.std(ddof=1) / 2, abs=1e-5), name
    assert abs(result.identity.mean) > 2e-5, "the change must be seen"


# --- the validation split -------------------------------------------------------------------------


def split_of(tmp_path: Path, tokens: list[int]) -> TokenSplit:
    return TokenSplit([tmp_path / s.file for s in write_shards(tmp_path, "validation", tokens, 20)])


@pytest.mark.parametrize("count", [37, 31])  # the last window: whole, one token
def test_every_token_is_predicted_once(count: int, tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, MODEL.vocab_size, size=count)
    model = trained_like("hc")
    result = evaluation(model, split_of(tmp_path, tokens.tolist()), None, CPU)
    total = 0.0
    for place in range(1, count):
        first = (place - 1) // 6 * 6
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens[None, first:place]))[0, -1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[place])).item()
    assert result.tokens == count - 1
    assert result.loss == pytest.approx(total / (count - 1), rel=1e-5)


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a corpus, and runs/ of two variants."""
    folder = tmp_path_factory.mktemp("study")
    corpus = write_corpus(folder / "corpus")
    for variant in ("residual", "kromhc"):
        train(configuration(variant), corpus, folder / "runs" / variant)
    return folder


def folders(study: Path) -> list[Path]:
    return [study / "runs" / name for name in ("residual", "kromhc")]


def test_probes_of_runs(study: Path, tmp_path: Path) -> None:
    made_of = probe_runs(folders(study), SETTINGS, tmp_path)
    residual, found = (read_probe(tmp_path / f"{name}.json", name) for name in made_of)
    assert residual.mixing is residual.use is None
    assert residual.evaluation is not None
    assert residual.evaluation.tokens == 299
    assert found.skipped is None
    assert found.mixing is not None
    assert len(found.mixing.identity_distance) == 4
    assert found.use is not None
    assert found.made_of == made_of["kromhc"]
    assert build(Probe, json.loads(json.dumps(to_json(found)))) == found


def test_knockouts_take_a_part_of_the_split_and_the_loss_all_of_it(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    def noted(model: GPT, found: Mixing, windows: np.ndarray, device: torch.device) -> Use:
        shapes.append(windows.shape)
        return knockouts(model, found, windows, device)

    monkeypatch.setattr(step, "knockouts", noted)
    for most, count in ((2 * MODEL.block_size, 2), (10**9, 299 // MODEL.block_size)):
        monkeypatch.setattr(step, "KNOCKOUT_TOKENS", most)
        probe_runs(folders(study), SETTINGS, tmp_path / str(most))
        assert shapes.pop() == (count, MODEL.block_size + 1)
        found = read_probe(tmp_path / str(most) / "kromhc.json", "kromhc")
        assert found.evaluation is not None
        assert found.evaluation.tokens == 299


def test_only_what_is_missing_or_wrong_is_made(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def count(settings: ProbeSettings = SETTINGS) -> list[str]:
        made.clear()
        probe_runs(folders(study), settings, tmp_path)
        return list(made)

    real = step.probe

    def noted(task: step.Task) -> Probe:
        made.append(task.trained.folder.name)
        return real(task)

    monkeypatch.setattr(step, "probe", noted)
    assert count() == ["residual", "kromhc"]
    assert count() == []
    path = tmp_path / "kromhc.json"
    path.write_text(path.read_text()[:100])
    assert count() == ["kromhc"], "a damaged file"
    assert count(replace(SETTINGS, sequences=2)) == ["residual", "kromhc"], "another setting"
    assert count() == ["residual", "kromhc"]
    summary = study / "runs/kromhc/summary.json"
    before = summary.read_text()
    key = json.loads(before)["key"]
    summary.write_text(before.replace(key, "0" * len(key)))
    try:
        assert count() == ["kromhc"], "trained again"
    finally:
        summary.write_text(before)


def test_a_broken_run_stops_no_other(study: Path, tmp_path: Path) -> None:
    weights = study / "runs/residual/weights.pt"
    before = weights.read_bytes()
    weights.write_bytes(before + b"x")
    try:
        with pytest.raises(UserError, match=r"residual/weights\.pt is missing or not"):
            probe_runs(folders(study), SETTINGS, tmp_path)
    finally:
        weights.write_bytes(before)
    assert (tmp_path / "kromhc.json").exists()
    assert not (tmp_path / "residual.json").exists()


def test_a_probe_that_cannot_be_made_again_is_kept(
    study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    probe_runs(folders(study), SETTINGS, tmp_path)
    path = tmp_path / "kromhc.json"
    before = path.read_text()
    weights = study / "runs/kromhc/weights.pt"
    content = weights.read_bytes()
    weights.unlink()  # a published run has none
    other = replace(SETTINGS, sequences=2)
    try:
        probe_runs(folders(study), other, tmp_path)
        assert f"{path}: kept; other code or settings made it" in caplog.text
        assert path.read_text() == before
        path.write_text(before.replace('"key": "', '"key": "another'))
        with pytest.raises(UserError, match=r"kromhc/weights\.pt is missing"):
            probe_runs(folders(study), other, tmp_path)
    finally:
        weights.write_bytes(content)


def test_a_corpus_that_was_prepared_again_is_refused(study: Path, tmp_path: Path) -> None:
    record = study / "runs/kromhc/run.json"
    before = record.read_text()
    digest = json.loads(before)["corpus"]["digest"]
    record.write_text(before.replace(digest, "0" * len(digest)))
    try:
        with pytest.raises(UserError, match="was prepared again after"):
            task_of(study / "runs/kromhc", SETTINGS, tmp_path)
    finally:
        record.write_text(before)


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a ...")


@pytest.mark.parametrize("step", ["train", "probe", "probe by two"])
def test_out_of_memory_is_one_line(
    step: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus, config = str(study / "corpus"), json.dumps(configuration("hc").to_json())
    probes = ["probe", "--runs", str(study / "runs"), "--run", "residual", "kromhc"]
    probes += ["--sequences", "2", "--out", str(tmp_path)]
    command = {
        "train": ["train", "--config", config, "--corpus", corpus, "--out", str(tmp_path / "run")],
        "probe": probes,
        "probe by two": [*probes, "--processes", "2"],
    }[step]
    # On a CPU beyond any address space: the allocator's own words.
    monkeypatch.setattr(GPT, "forward", full if step == "train" else lambda *_: torch.empty(2**52))
    assert cli.main(command) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line.lower())
    assert all(name in line for name in ("micro_batch_size", "n_embd", "block_size"))


@pytest.mark.parametrize("size", [60, MODEL.vocab_size])
def test_a_corpus_of_another_tokenizer_is_one_line(
    size: int, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For probe and train: of more ids, or of as many."""
    text = write_corpus(tmp_path / "other", size, "1" * 64)
    command = ["probe", "--runs", str(study / "runs"), "--run", "kromhc", "--corpus", str(text)]
    assert cli.main([*command, "--sequences", "2", "--out", str(tmp_path / "probes")]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert "another tokenizer" in line
    assert not list((tmp_path / "probes").glob("*"))
    if size > MODEL.vocab_size:
        with pytest.raises(UserError, match="60 ids, but the model's vocabulary ends at 30"):
            train(configuration("residual"), text, tmp_path / "run")


def test_where_nobody_knows_the_tokenizer_its_size_must_fit(
    study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As of an imported checkpoint, or of a run whose corpus is gone."""
    trained = replace(read_trained(study / "runs/kromhc"), corpus=None)
    fits = write_corpus(tmp_path / "fits", MODEL.vocab_size, "4" * 64)
    assert len(held_out(fits, trained)) == 300
    assert "is not known" in caplog.text
    with pytest.raises(UserError, match="another tokenizer"):
        held_out(write_corpus(tmp_path / "other", 20, "4" * 64), trained)
