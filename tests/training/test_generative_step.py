"""When step 1 is done and of what: every so many epochs or steps, by a pass over the rows or online."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from calmrl_prob.alignment.calibration import CALIBRATIONS
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError
from calmrl_prob.linear_gaussian import LinearGaussian, SufficientStatistics, fit_em
from calmrl_prob.training import Alignment, AlignmentModule, GenerativeStep, align
from calmrl_prob.training.batches import InMemory
from calmrl_prob.training.generative_step import gather_statistics
from calmrl_prob.training.rows import TrainingRows
from calmrl_prob.training.trainer import quiet_lightning
from tests.cases.training_cases import DIMS, data, encoders, environment, weights


def run(options: dict[str, Any], **settings: Any) -> Alignment:
    settings = {"latent_dim": 4, "max_epochs": 3, "batch_size": 32} | settings
    return align(data(), encoders(), OBJECTIVES["pairwise"](), "imputed_mean", em_options=options, **settings)


def same(one: SufficientStatistics, other: SufficientStatistics) -> None:
    moved = other.shifted(dict(zip(one.names, one.shift.split(list(one.dims.values())), strict=True)))
    assert set(one.scatters) == set(moved.scatters)
    for present, scatter in one.scatters.items():
        assert torch.allclose(scatter, moved.scatters[present], rtol=1e-10, atol=1e-10)


class Recorder(GenerativeStep):
    """Keeps the statistics that each fit was of."""

    def fit(self, statistics: SufficientStatistics, start: LinearGaussian | None) -> LinearGaussian:
        self.__dict__.setdefault("fits", []).append(statistics)
        return super().fit(statistics, start)


def trained(step: GenerativeStep, epochs: int, learning_rate: float = 0.0) -> AlignmentModule:
    """A module in float64, trained by the trainer itself, its encoders frozen if the learning rate is 0."""
    module = AlignmentModule(
        encoders().double(),
        OBJECTIVES["pairwise"](),
        CALIBRATIONS["imputed_mean"](),
        learning_rate=learning_rate,
        weight_decay=0.0,
    )
    rows = step.batches
    assert isinstance(rows, TrainingRows)
    with quiet_lightning():
        trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[step], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", devices=1, use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )  # fmt: skip
        trainer.fit(module, datamodule=rows)
    return module


def rows() -> TrainingRows:
    return TrainingRows(InMemory(data().to(torch.float64)), tuple(DIMS), 32, seed=0)


@pytest.mark.parametrize("waiting", [40, 4096])
def test_online_statistics_of_a_frozen_encoder_are_those_of_a_full_pass(
    waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calmrl_prob.training.generative_step._ROWS_AT_ONCE", waiting)
    step = Recorder(rows(), 4, decay=1.0)
    module = trained(step, 2)
    whole = gather_statistics(module, rows())
    assert len(step.fits) == 1  # type: ignore[attr-defined]
    same(step.fits[0], whole)  # type: ignore[attr-defined]
    assert step.statistics is not None
    same(step.statistics.scaled(0.5), whole)  # two epochs, nothing forgotten
    direct = fit_em(whole, 4, max_iterations=20, tolerance=1e-4).linear_gaussian
    assert module.generative is not None
    for name in DIMS:
        one, other = (lg.loadings[name] @ lg.loadings[name].mT for lg in (module.generative, direct))
        assert torch.allclose(one, other, atol=1e-8)


def test_what_is_older_counts_by_powers_of_the_decay() -> None:
    step = Recorder(rows(), 4, decay=0.25, period_steps=2)
    trained(step, 2)
    counts = [sum(float(scatter[-1, -1]) for scatter in found.scatters.values()) for found in step.fits]  # type: ignore[attr-defined]
    # 160 rows in batches of 32: a fit before every second step, of 64 rows and what is left of the older ones
    assert counts == pytest.approx([64, 64 + 64 / 4, 64 + 64 / 4 + 64 / 16, 64 * (1 + 1 / 4 + 1 / 16 + 1 / 64)])
    assert trained(Recorder(rows(), 4, decay=0.0), 3).generative is not None


def test_a_fit_every_so_many_steps_is_of_the_encoders_as_they_then_are() -> None:
    step = Recorder(rows(), 4, period_steps=3)
    module = trained(step, 2, learning_rate=1e-2)
    fits: list[SufficientStatistics] = step.fits  # type: ignore[attr-defined]
    assert len(fits) == 4  # before steps 0, 3, 6 and 9 of 10
    fresh = AlignmentModule(encoders().double(), OBJECTIVES["pairwise"](), CALIBRATIONS["none"]())
    same(fits[0], gather_statistics(fresh, rows()))
    last, now = fits[-1], gather_statistics(module, rows())
    assert last.num_instances == now.num_instances == 160
    assert not torch.allclose(last.shift, now.shift, atol=1e-6)


def test_warm_up_comes_before_the_first_fit_by_steps_too() -> None:
    found = run({"period_steps": 2}, warmup_epochs=2)
    assert found.history["em_seconds"].iloc[:2].sum() == 0
    assert found.history["em_seconds"].iloc[2] > 0


@pytest.mark.parametrize("options", [{"decay": 0.5}, {"decay": 0.5, "period_steps": 3}, {"period_steps": 3}])
def test_a_run_that_resumes_ends_in_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    whole = run(options, max_epochs=4)
    run(options, max_epochs=2, folder=tmp_path)
    resumed = run(options, max_epochs=4, folder=tmp_path, resume=tmp_path / "checkpoints/last.ckpt")
    assert torch.equal(weights(whole), weights(resumed))
    one, other = whole.generative_model, resumed.generative_model
    assert one is not None
    assert other is not None
    assert all(torch.equal(one.loadings[name], other.loadings[name]) for name in DIMS)


def test_statistics_come_back_from_tensors_in_the_same_bits() -> None:
    blocks: Any = data().blocks
    statistics = SufficientStatistics.from_blocks(blocks)
    again = SufficientStatistics.from_tensors(statistics.to_tensors())
    assert torch.equal(again.shift, statistics.shift)
    for part in (statistics, again):
        part.update(blocks)
    assert all(torch.equal(scatter, again.scatters[present]) for present, scatter in statistics.scatters.items())
    same(SufficientStatistics.from_blocks(blocks).scaled(2.0), statistics)


def test_a_modality_that_is_rare_is_waited_for_and_one_that_is_nowhere_named() -> None:
    some = data().subset(data().complete_rows())
    rare = torch.ones(len(some), 3, dtype=torch.bool)
    rare[1:, 2] = False
    found = align(
        some.mask(rare), encoders(), OBJECTIVES["pairwise"](), "imputed_mean", latent_dim=2, max_epochs=3,
        batch_size=8, em_options={"decay": 0.0, "period_steps": 1},
    )  # fmt: skip
    assert found.generative_model is not None
    rare[0, 2] = False
    with pytest.raises(DataError, match="no training row has the modality 'audio'"):
        align(
            some.mask(rare), encoders(), OBJECTIVES["pairwise"](), "imputed_mean", latent_dim=2, max_epochs=2,
            em_options={"decay": 0.5},
        )  # fmt: skip


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match=r"decay: expected a number from 0 to 1, or None, got 1\.5"):
        run({"decay": 1.5})
    with pytest.raises(ArgumentTypeError, match="decay"):
        run({"decay": "slow"})
    with pytest.raises(ArgumentError, match="period_steps: expected a whole number of at least 1, got 0"):
        run({"period_steps": 0})


def test_mixed_precision_trains_all_kinds_of_calibration() -> None:
    plain = run({}, max_epochs=2)
    for calibration, options in (("imputed_mean", {}), ("imputed_draw", {"decay": 0.5}), ("weighted_mean", {})):
        found = align(
            data(), encoders(), OBJECTIVES["pairwise"](), calibration, latent_dim=4, max_epochs=2, batch_size=32,
            em_options=options, trainer_options={"precision": "bf16-mixed"}, validation=data(seed=2),
        )  # fmt: skip
        assert bool(found.history["loss"].notna().all())
        assert found.generative_model is not None
        assert all(value.dtype == torch.float32 for value in found.module.encoders.parameters())
        if calibration == "imputed_mean":
            assert found.history["loss"].tolist() == pytest.approx(plain.history["loss"].tolist(), rel=0.02)
            assert found.history["loss"].tolist() != plain.history["loss"].tolist()


_PROCESS = """
import sys, torch
from tests.cases.training_cases import data, encoders
from calmrl_prob.alignment.objectives import OBJECTIVES
from calmrl_prob.training import align
out, processes, batch_size, epochs = sys.argv[1], *map(int, sys.argv[2:])
rows, validation = (data(seed=seed).to(torch.float64) for seed in (0, 2))
found = align(rows, encoders().double(), OBJECTIVES["pairwise"](), "imputed_mean", latent_dim=4, max_epochs=epochs,
              batch_size=batch_size // processes, validation=validation,
              trainer_options={"devices": processes, **({"strategy": "ddp"} if processes > 1 else {})})
lg = found.generative_model
if found.module.global_rank == 0:
    parts = {name: [lg.loadings[name] @ lg.loadings[name].mT, lg.intercepts[name], lg.noise_variance[name]]
             for name in lg.names}
    torch.save({"model": parts, "loss": found.history["loss"].tolist()}, out)
"""


def _align_in_processes(count: int, batch_size: int, epochs: int, folder: Path) -> dict[str, Any]:
    script, out = folder / "process.py", folder / f"{count}.pt"
    script.write_text(_PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone", str(script)]
    arguments = [str(out), str(count), str(batch_size), str(epochs)]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


@pytest.mark.slow
def test_aligning_in_two_processes_begins_as_in_one(tmp_path: Path) -> None:
    one, two = (_align_in_processes(count, 32, 1, tmp_path) for count in (1, 2))
    for name in DIMS:
        for part, other in zip(one["model"][name], two["model"][name], strict=True):
            assert torch.allclose(part, other, rtol=1e-10, atol=1e-10)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-9)  # all processes' views are contrasted together


@pytest.mark.slow
def test_a_process_may_lack_a_modality_in_a_batch(tmp_path: Path) -> None:
    found = _align_in_processes(2, 4, 2, tmp_path)
    assert all(torch.isfinite(torch.tensor(found["loss"])))
