"""Shifts and scales of batches against the dense log density of the rows as they are, differentiated by torch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import (
    BatchMoves,
    LinearGaussian,
    ObservedBlocks,
    improved_moves,
    log_marginal,
    start_moves,
)

DIMS = {"rna": 4, "adt": 3}
NOISES = ("diagonal", "full")


def model(noise: str, seed: int = 0) -> LinearGaussian:
    """A model of two latents whose prior is not the standard normal."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factor = {n: 0.5 * normal(d, d) for n, d in DIMS.items()} if noise == "full" else None
    variance = {n: 0.3 + normal(d).square() for n, d in DIMS.items()}
    if factor is not None:
        variance = {n: variance[n] + factor[n].square().sum(1) for n in DIMS}
    mean, half = normal(2), normal(2, 2)
    prior = half @ half.mT + torch.eye(2, dtype=torch.float64)
    return LinearGaussian(
        {n: normal(d, 2) for n, d in DIMS.items()},
        {n: normal(d) for n, d in DIMS.items()},
        variance,
        mean,
        prior,
        factor,
    )


def rows(lg: LinearGaussian, seed: int = 1) -> tuple[ObservedBlocks, Tensor]:
    """Rows of four batches: both modalities in several patterns, the first alone, one cell, and the second alone."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.tensor([0] * 12 + [1] * 9 + [2] + [3] * 6)
    observed = torch.ones(len(batch), 2, dtype=torch.bool)
    observed[3:7, 0], observed[7:9, 1], observed[batch == 1, 1], observed[batch == 3, 0] = False, False, False, False
    values = lg.sample(len(batch), generator).features
    for name, value in values.items():
        shift = 4 * torch.randn(4, value.shape[1], generator=generator, dtype=torch.float64)
        scale = torch.tensor([1.0, 1.5, 1.0, 0.7], dtype=torch.float64)
        values[name] = shift[batch] + scale[batch, None] * value
    return ObservedBlocks.from_arrays(values, observed), batch


def dense(lg: LinearGaussian, moves: BatchMoves, blocks: ObservedBlocks, batch: Tensor) -> Tensor:
    """log p(rows) + log p(shifts) + log p(scales), but for constants, from the joint covariance of all features."""
    loadings = torch.cat([lg.loadings[n] for n in DIMS])
    noise = torch.block_diag(
        *(
            torch.diag(lg.noise_variance[n])
            if lg.noise_factor is None
            else lg.noise_factor[n] @ lg.noise_factor[n].mT
            + torch.diag(lg.noise_variance[n] - lg.noise_factor[n].square().sum(1))
            for n in DIMS
        )
    )
    covariance = loadings @ lg.prior_covariance @ loadings.mT + noise
    mean = torch.cat([lg.intercepts[n] for n in DIMS]) + loadings @ lg.prior_mean
    centre = torch.cat([moves.centre[n] for n in DIMS])
    place = {n: {int(r): k for k, r in enumerate(blocks.rows[n])} for n in DIMS}
    stops = {"rna": slice(0, 4), "adt": slice(4, 7)}
    total = torch.zeros((), dtype=torch.float64)
    for row, b in enumerate(batch.tolist()):
        here = [n for n in DIMS if row in place[n]]
        index = torch.cat([torch.arange(7)[stops[n]] for n in here])
        x = torch.cat([blocks.values[n][place[n][row]] for n in here])
        shift = torch.cat([moves.shift[n][b] for n in here])
        scale = torch.cat([moves.scale[n][b].expand(DIMS[n]) for n in here])
        location = centre[index] + shift + scale * (mean - centre)[index]
        own = covariance[index][:, index] * torch.outer(scale, scale)
        total = total + torch.distributions.MultivariateNormal(location, own).log_prob(x)
    for n in DIMS:
        u = 1 / moves.scale[n]
        total = total - 0.5 * (moves.shift[n].square() / moves.variance[n]).sum()
        total = total + 10 * DIMS[n] * (u.log() - u.square() / 2).sum()
    return total


def leaves(moves: BatchMoves) -> BatchMoves:
    """The same with gradients."""
    shift = {n: value.clone().requires_grad_() for n, value in moves.shift.items()}
    scale = {n: value.clone().requires_grad_() for n, value in moves.scale.items()}
    return dataclasses.replace(moves, shift=shift, scale=scale)


def put_back(moves: BatchMoves, before: LinearGaussian, after: LinearGaussian) -> BatchMoves:
    """The moves with what went to the model in shifts and scales again."""
    size = {n: (after.loadings[n] / before.loadings[n]).mean() for n in DIMS}
    shift, scale = {}, {}
    for n, centre in moves.centre.items():
        there = moves.count[n] > 0
        own = torch.where(there, moves.scale[n], 0.0)
        scale[n] = torch.where(there, moves.scale[n] * size[n], 1.0)
        common = after.intercepts[n] - centre - size[n] * (before.intercepts[n] - centre)
        shift[n] = moves.shift[n] + own[:, None] * common
    return dataclasses.replace(moves, shift=shift, scale=scale)


@pytest.mark.parametrize("noise", NOISES)
def test_the_best_shifts_and_the_last_scale_have_no_gradient_left(noise: str) -> None:
    lg = model(noise)
    blocks, batch = rows(lg)
    start = start_moves(blocks, batch, 4, scaled=True)
    moves, after = improved_moves(start, lg, blocks, batch, scaled=False)
    shifted = leaves(put_back(moves, lg, after))
    dense(lg, shifted, blocks, batch).backward()
    for name in DIMS:
        # conjugate gradients leave 1e-12 of a right-hand side of order 1e2
        assert float(shifted.shift[name].grad[:-1].abs().max()) < 1e-8
    moves, after = improved_moves(start, lg, blocks, batch, scaled=True)
    both = leaves(put_back(moves, lg, after))
    dense(lg, both, blocks, batch).backward()
    assert float(both.scale["adt"].grad[:-1].abs().max()) < 1e-8  # the last that was improved


def test_what_shifts_have_in_common_is_moved_for_nothing_in_the_evidence() -> None:
    lg = model("diagonal")
    blocks, batch = rows(lg)
    moves, after = improved_moves(start_moves(blocks, batch, 4, scaled=True), lg, blocks, batch, scaled=True)
    back = put_back(moves, lg, after)
    gain = float(dense(after, moves, blocks, batch) - dense(lg, back, blocks, batch))
    assert gain == pytest.approx(moves.log_prior() - back.log_prior(), abs=1e-9)
    assert gain > 0


@pytest.mark.parametrize("noise", NOISES)
def test_each_step_raises_what_is_maximised_and_its_accounts_add_up(noise: str) -> None:
    lg = model(noise)
    blocks, batch = rows(lg)
    moves = start_moves(blocks, batch, 4, scaled=True)
    values = []
    for _ in range(4):
        values.append(float(dense(lg, moves, blocks, batch)))
        rest = values[-1] - float(log_marginal(lg, moves.blocks(blocks, batch)).sum())
        prior = moves.log_prior() - 10 * 5 / 2 * sum(DIMS.values())  # its constant: 0 where nothing moves
        assert rest == pytest.approx(prior + moves.log_volume(), abs=1e-8)
        moves, lg = improved_moves(moves, lg, blocks, batch, scaled=True)
    assert values[1] > values[0]
    assert values[2] >= values[1] - 1e-9
    assert values[3] >= values[2] - 1e-9


def test_a_batch_without_a_modality_is_not_moved_in_it_and_states_the_spread_between_batches() -> None:
    lg = model("diagonal")
    blocks, batch = rows(lg)
    moves, lg = improved_moves(start_moves(blocks, batch, 4, scaled=True), lg, blocks, batch, scaled=True)
    assert not bool(moves.shift["adt"][1].any())
    assert float(moves.scale["adt"][1]) == pytest.approx(1, abs=1e-12)
    own = moves.structure(lg, 1)
    torch.testing.assert_close(own.noise_variance["adt"], lg.noise_variance["adt"] + moves.variance["adt"])
    torch.testing.assert_close(own.intercepts["adt"], lg.intercepts["adt"])
    unknown = moves.structure(lg, 4)
    torch.testing.assert_close(unknown.noise_variance["rna"], lg.noise_variance["rna"] + moves.variance["rna"])
    one = moves.shift["rna"][2].abs() / (blocks.values["rna"][-1:] - moves.centre["rna"]).abs()
    assert bool(torch.isfinite(one).all())


def test_adjusting_and_moving_are_inverse() -> None:
    lg = model("diagonal")
    blocks, batch = rows(lg)
    moves = start_moves(blocks, batch, 4, scaled=True)
    own = batch[blocks.rows["rna"]]
    there = moves.adjusted("rna", blocks.values["rna"], own)
    torch.testing.assert_close(moves.moved("rna", there, own), blocks.values["rna"])
