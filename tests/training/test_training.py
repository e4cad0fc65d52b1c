"""The alternating loop: both steps against what they are made of, resuming, processes, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from calmrl_prob.alignment.calibration import ImputedDraw
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.alignment.views import Views
from calmrl_prob.data import MultimodalData
from calmrl_prob.encoders import build_encoders
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, NumericalError, SchemaError
from calmrl_prob.evaluation.retrieval.representations import cosine_recall
from calmrl_prob.linear_gaussian import SufficientStatistics, fit_em, posterior
from calmrl_prob.training import Alignment, Batch, Collate, GenerativeStep, InputImputation, align
from calmrl_prob.training.batches import EpochSampler, InMemory
from calmrl_prob.training.generative_step import gather_statistics
from calmrl_prob.training.rows import TrainingRows
from tests.cases.training_cases import DIMS, data, encoders, environment, make_module, run, weights


def test_training_aligns_what_it_never_saw() -> None:
    before = cosine_recall(Alignment(make_module(), None, 0, "").represent(data(seed=1)))["R@1"].mean()  # type: ignore[arg-type]
    found = run(max_epochs=30, learning_rate=5e-3)
    after = cosine_recall(found.represent(data(seed=1)))["R@1"].mean()
    assert after > before + 0.2
    assert found.history["loss"].iloc[-1] < found.history["loss"].iloc[0]
    assert found.generative_model is not None
    assert list(found.generative_model.dims.values()) == [6, 6, 6]


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (weights(run(seed=seed, dropout=0.1)) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_run_that_resumes_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = run(max_epochs=5, dropout=0.1, folder=tmp_path / "whole")
    run(max_epochs=2, dropout=0.1, folder=tmp_path / "part")
    resumed = run(max_epochs=5, dropout=0.1, folder=tmp_path / "part", resume=tmp_path / "part/checkpoints/last.ckpt")
    assert torch.equal(weights(whole), weights(resumed))
    assert resumed.history["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert (tmp_path / "whole/csv/metrics.csv").exists()


def test_step_one_fits_the_representations_of_all_rows_from_where_it_was() -> None:
    module, rows = make_module(), data()
    batches = TrainingRows(InMemory(rows), tuple(DIMS), 32, 0)
    statistics = gather_statistics(module, batches)
    shown = Alignment(module, None, 0, "").represent(rows)  # type: ignore[arg-type]
    direct = SufficientStatistics.from_blocks(shown.blocks)  # type: ignore[arg-type]
    step = GenerativeStep(batches, 4, max_iterations=4)
    one, other = step.fit(statistics, None), fit_em(direct, 4, max_iterations=16, tolerance=1e-4).linear_gaussian
    for name in DIMS:
        product = one.loadings[name] @ one.loadings[name].mT
        assert torch.allclose(product, other.loadings[name] @ other.loadings[name].mT, atol=1e-6)
    again = step.fit(statistics, one)
    blocks: Any = shown.to(torch.float64).blocks  # of float32 the sums round by 1e-4, forty times what the step gains
    assert float(posterior(again, blocks).log_marginal.sum()) >= float(posterior(one, blocks).log_marginal.sum()) - 1e-6


def test_warm_up_sees_complete_rows_alone() -> None:
    rows = TrainingRows(InMemory(data()), tuple(DIMS), 32, 0, warmup_epochs=2)
    assert rows.complete == data().observed_mask.all(1).nonzero().flatten().tolist()
    found = run(warmup_epochs=2, max_epochs=3)
    assert found.history["em_seconds"].iloc[:2].sum() == 0
    assert found.history["em_seconds"].iloc[2] > 0


def test_validation_recall_stops_and_chooses_the_epoch() -> None:
    found = run("none", validation=data(seed=2), patience=2, max_epochs=40, learning_rate=2e-2)
    assert found.stop_reason == "early stopping"
    assert found.best_epoch == found.history["validation_recall"].idxmax()
    shown = cosine_recall(found.represent(data(seed=2)))["R@1"].mean()
    assert shown == pytest.approx(found.history["validation_recall"].max())


def test_imputed_inputs_are_the_posterior_of_the_inputs() -> None:
    rows = data()
    blocks: Any = rows.blocks
    lg = fit_em(blocks, 4).linear_gaussian
    batch = InMemory(rows).__getitems__(range(len(rows)))
    completed = InputImputation(lg, "mean").complete(batch, tuple(DIMS))
    given = posterior(lg, blocks)
    for m, name in enumerate(DIMS):
        mean = given.mean @ lg.loadings[name].mT + lg.intercepts[name]
        absent = ~rows.observed_mask[:, m]
        assert torch.allclose(completed.inputs[name][absent].double(), mean[absent].double(), atol=1e-4)
        assert torch.equal(completed.inputs[name][~absent], batch.inputs[name])
    found = align(
        rows, encoders(), OBJECTIVES["pairwise"](), input_imputation=InputImputation(lg, "draw", 0.5), max_epochs=2
    )
    assert bool(found.history["loss"].notna().all())


def test_drawn_inputs_have_the_moments_of_dense_conditioning() -> None:
    blocks: Any = data().blocks
    lg = fit_em(blocks, 3).linear_gaussian
    count = 20_000
    x = torch.randn(DIMS["image"], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = {name: torch.empty(0, width, dtype=torch.float64) for name, width in DIMS.items()}
    inputs["image"] = x.expand(count, -1)
    mask = torch.zeros(count, 3, dtype=torch.bool)
    mask[:, 0] = True
    generator = torch.Generator().manual_seed(1)
    drawn = InputImputation(lg, "draw").complete(Batch(inputs, mask), tuple(DIMS), generator).inputs
    draws = torch.cat([drawn["text"], drawn["audio"]], dim=1)
    seen = lg.loadings["image"]
    loadings = torch.cat([lg.loadings["text"], lg.loadings["audio"]])
    noise = torch.cat([lg.noise_variance["text"], lg.noise_variance["audio"]])
    gain = loadings @ seen.mT @ torch.linalg.inv(seen @ seen.mT + lg.noise_variance["image"].diag())
    mean = torch.cat([lg.intercepts["text"], lg.intercepts["audio"]]) + gain @ (x - lg.intercepts["image"])
    covariance = loadings @ loadings.mT - gain @ seen @ loadings.mT + noise.diag()
    variance = covariance.diagonal()
    assert bool(((draws.mean(0) - mean).abs() < 6 * (variance / count).sqrt()).all())
    spread = ((variance[:, None] * variance + covariance.square()) / count).sqrt()
    assert bool(((draws.mT.cov() - covariance).abs() < 6 * spread).all())


class Raw(Dataset[Any]):
    """Items are dicts that lack modalities; images have a shape."""

    def __init__(self, rows: MultimodalData) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        item = {name: self.rows[name][row] for name in DIMS if bool(self.rows.observed(name)[row])}
        if "image" in item:
            item["image"] = item["image"].view(3, 2, 2)
        return item


def test_raw_inputs_of_any_shape_and_any_module() -> None:
    own = nn.ModuleDict({**encoders(), "image": nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 6))})
    found = align(Raw(data()), own, OBJECTIVES["pairwise"](), "imputed_mean", latent_dim=4, max_epochs=2)
    shown = found.represent(Raw(data()))
    assert torch.equal(shown.observed_mask, data().observed_mask)


def test_orders_depend_on_seed_and_epoch_and_processes_share_rows() -> None:
    orders = {tuple(EpochSampler(range(50), seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(50)) for order in orders)
    parts = [EpochSampler(range(11), seed=1, rank=rank, world_size=3, even=False) for rank in range(3)]
    assert sorted(row for part in parts for row in part) == list(range(11))
    even = [list(EpochSampler(range(11), seed=1, rank=rank, world_size=3)) for rank in range(3)]
    assert {len(part) for part in even} == {3}


def test_what_cannot_work_is_refused_by_name() -> None:
    rows = data()
    with pytest.raises(ArgumentError, match=r"calibration: expected one of .*imputed_mean"):
        run("imputed")
    with pytest.raises(SchemaError, match="encoders are of"):
        align(rows.subset(rows.complete_rows()).select(["image", "text"]), encoders(), OBJECTIVES["pairwise"]())
    own = nn.ModuleDict({**encoders(), "text": nn.Linear(10, 7)})
    with pytest.raises(SchemaError, match="same width"):
        align(rows, own, OBJECTIVES["pairwise"](), max_epochs=1)
    with pytest.raises(DataError, match=r"'image' of item 1 .* NaN"):
        Collate(DIMS)([{"text": torch.ones(2)}, {"image": torch.tensor([torch.nan])}])
    with pytest.raises(SchemaError, match="modality 'video'"):
        Collate(DIMS)([{"video": torch.ones(2)}])
    with pytest.raises(DataError, match="warmup_epochs: only 0"):
        align(rows.mask(_pairs(rows)), encoders(), OBJECTIVES["pairwise"](), warmup_epochs=1)
    fitted = fit_em(rows.blocks, 2).linear_gaussian  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"calibration: 'imputed_mean' .* use one of the two"):
        align(rows, encoders(), OBJECTIVES["pairwise"](), "imputed_mean", input_imputation=InputImputation(fitted))
    complete = rows.subset(rows.complete_rows())
    alone = complete.mask(torch.eye(3, dtype=torch.bool)[torch.arange(len(complete)) % 3])
    with pytest.raises(DataError, match="validation: no row has two modalities"):
        align(rows, encoders(), OBJECTIVES["pairwise"](), validation=alone, max_epochs=1)
    with pytest.raises(DataError, match="no instance of a batch has any modality"):
        make_module().encode(Collate(DIMS)([{}, {}]))
    with pytest.raises(DataError, match="at least 2"):
        align(rows.subset([0]), encoders(), OBJECTIVES["pairwise"]())
    none = complete.observed_mask.clone()
    none[:, 2] = False
    with pytest.raises(DataError, match="no training row has the modality 'audio'"):
        align(complete.mask(none), encoders(), OBJECTIVES["pairwise"](), "imputed_mean", latent_dim=2, max_epochs=1)


def _pairs(rows: MultimodalData) -> Tensor:
    mask = rows.observed_mask.clone()
    mask[mask.all(1), 2] = False
    return mask


def test_a_loss_that_leaves_the_numbers_stops_at_once() -> None:
    class Bad(nn.Module):
        def forward(self, views: Views) -> Tensor:
            return views.values.sum() * torch.inf

    with pytest.raises(NumericalError, match="at step 0; lower the learning rate"):
        align(data(), encoders(), Bad(), max_epochs=1)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :6] * torch.nan

    with pytest.raises(NumericalError, match="encoder 'text': its output is not finite at step 0"):
        align(data(), nn.ModuleDict({**encoders(), "text": Broken()}), OBJECTIVES["pairwise"](), max_epochs=1)


_PROCESS = """
import sys, torch, torch.distributed as distributed
from tests.cases.training_cases import DIMS, make_module, data
from calmrl_prob.training.generative_step import GenerativeStep, all_reduced, gather_statistics
from calmrl_prob.training.batches import EpochSampler, InMemory, batch_loader
distributed.init_process_group("gloo")
rank, world = distributed.get_rank(), distributed.get_world_size()
sampler = EpochSampler(range(len(data())), shuffle=False, rank=rank, world_size=world, even=False)
module = make_module().double()
rows = data().to(torch.float64)
statistics = all_reduced(gather_statistics(module, batch_loader(InMemory(rows), tuple(DIMS), sampler, 32)))
lg = GenerativeStep([], 4, max_iterations=10).fit(statistics, None)
if rank == 0:
    torch.save({name: lg.loadings[name] @ lg.loadings[name].mT for name in DIMS}, sys.argv[1])
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_and_one_fit_the_same_model(tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(_PROCESS)
    found = []
    for count in (1, 2):
        out = tmp_path / f"{count}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone"]
        done = subprocess.run([*command, str(script), str(out)], capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        found.append(torch.load(out, weights_only=True))
    for name in DIMS:
        assert torch.allclose(found[0][name], found[1][name], rtol=1e-10, atol=1e-10)


def test_the_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run(max_epochs=1, folder=tmp_path)
    checkpoint = tmp_path / "checkpoints/last.ckpt"
    own = build_encoders("mlp", DIMS, 9, hidden=(16,))
    options: dict[str, Any] = {"latent_dim": 4, "max_epochs": 2, "resume": checkpoint}
    with pytest.raises(ArgumentError, match=r"resume: .* other encoders"):
        align(data(), own, OBJECTIVES["pairwise"](), "imputed_draw", batch_size=32, **options)
    with pytest.raises(ArgumentError, match=r"resume: the checkpoint was made with batch_size=32, and this run has 64"):
        align(data(), encoders(), OBJECTIVES["pairwise"](), "imputed_draw", batch_size=64, **options)
    for other, part in (("temperature", OBJECTIVES["pairwise"](temperature=0.5)), ("pmrl", OBJECTIVES["pmrl"]())):
        with pytest.raises(ArgumentError, match=rf"resume: .* made with objective='Pairwise.*(?i:{other})"):
            align(data(), encoders(), part, "imputed_draw", batch_size=32, **options)
    with pytest.raises(ArgumentError, match=r"made with calibration='imputed_draw\(.* weight=1.0\)'.* weight=0.5"):
        align(data(), encoders(), OBJECTIVES["pairwise"](), ImputedDraw(weight=0.5), batch_size=32, **options)
    for argument in ("folder", "resume"):
        with pytest.raises(ArgumentTypeError, match=rf"{argument}: expected a path, got .*3"):
            run(**{argument: 3})
    with pytest.raises(ArgumentError, match=r"resume: .* does not exist"):
        run(resume=tmp_path / "none.ckpt")
