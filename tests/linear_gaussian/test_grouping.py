"""Features that are missing together as one group: what it computes, and that models are the same as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import FeatureBlocks, fit_em, fit_student_t_em, posterior
from calmrl_prob.linear_gaussian.grouping import Grouping
from tests.cases.linear_gaussian_cases import assert_close, dense_conditioning, random_model

DIMS = {"a": 6, "b": 5, "c": 4}


def some_missing(num_instances: int = 60, seed: int = 0) -> Tensor:
    """ "a" as a whole, features 1 and 3 of "b" together, each of "c" by itself; (N, D) bool, True = PRESENT."""
    generator = torch.Generator().manual_seed(seed)

    def coin(columns: int) -> Tensor:
        return torch.rand(num_instances, columns, generator=generator) < 0.7

    mask = torch.ones(num_instances, 15, dtype=torch.bool)
    mask[:, :6] = coin(1)
    mask[:, [7, 9]] = coin(1)
    mask[:, 11:] = coin(4)
    return mask


def blocks_of(mask: Tensor, *, by_feature: bool = False) -> FeatureBlocks:
    """Draws of a model; with ``by_feature`` every feature is a group of its own."""
    model = random_model(DIMS, 2, prior="standard")
    _, features = model.sample(len(mask), torch.Generator().manual_seed(1))
    blocks = FeatureBlocks(DIMS, torch.cat(list(features.values()), dim=1), mask)
    if by_feature:
        blocks.grouping = Grouping(torch.arange(15))  # type: ignore[misc]  # in place of what is cached
    return blocks


def test_groups_are_features_of_a_modality_with_equal_columns() -> None:
    found = blocks_of(some_missing()).grouping
    assert found.feature_group.tolist() == [0] * 6 + [1, 2, 1, 2, 1] + [3, 4, 5, 6]
    assert found.sizes.tolist() == [6, 3, 2, 1, 1, 1, 1]
    assert found.first.tolist() == [0, 6, 7, 11, 12, 13, 14]
    everything = Grouping.of_columns(DIMS, torch.ones(3, 15, dtype=torch.bool))
    assert (
        everything.feature_group.tolist()
        == Grouping.of_widths(DIMS).feature_group.tolist()
        == [0] * 6 + [1] * 5 + [2] * 4
    )


@pytest.mark.parametrize("kind", ["mixed", "modalities", "features"])
def test_products_sums_and_solutions_are_those_of_plain_loops(kind: str) -> None:
    grouping = {
        "mixed": blocks_of(some_missing()).grouping,
        "modalities": Grouping.of_widths(DIMS),
        "features": Grouping(torch.arange(15)),
    }[kind]
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.randn(15, width, generator=generator).double() for width in (3, 4))
    root = torch.randn(len(grouping), 3, 3, generator=generator).double()
    matrices = root @ root.mT + torch.eye(3).double()
    solved, times = grouping.solve(torch.linalg.cholesky(matrices), left), grouping.times(left, root)
    products, sums = grouping.products(left, right), grouping.sums(left[:, 0])
    assert len(grouping) == len(products) == len(sums)
    for g in range(len(grouping)):
        members = [d for d in range(15) if int(grouping.feature_group[d]) == g]
        assert_close(products[g], sum((left[d, :, None] * right[d] for d in members), torch.zeros(3, 4).double()))
        assert_close(sums[g], left[members, 0].sum())
        for d in members:
            assert_close(solved[d], torch.linalg.solve(matrices[g], left[d]))
            assert_close(times[d], left[d] @ root[g])


@pytest.mark.parametrize(
    "options",
    [
        {"noise": "diagonal"},
        {"noise": "isotropic", "pseudo_rows": 5.0},
        {"noise": "isotropic", "loadings_prior": "ard"},
        {"noise": "diagonal", "loadings_prior": "normal", "noise_pseudo_count": 2.0},
        {"noise": "isotropic", "support": torch.tensor([[True, True], [True, False], [True, True]])},
    ],
    ids=["plain", "pseudo-rows", "ard", "normal", "support"],
)
def test_fits_are_those_with_every_feature_a_group_of_its_own(options: dict[str, Any]) -> None:
    """The same steps in exact arithmetic: 20 of them agree to rounding, which each may grow a little (1e-13 seen).

    Without accelerated guesses: rounding may decide whether one is taken, and so how many steps are kept.
    """
    mask = some_missing()
    options = {**options, "anderson_memory": 0}
    one, other = (
        fit_em(blocks_of(mask, by_feature=by), 2, max_iterations=20, tolerance=0.0, **options) for by in (False, True)
    )
    assert_close(one.log_likelihood, other.log_likelihood, 1e-10)
    for name in DIMS:
        assert_close(one.linear_gaussian.loadings[name], other.linear_gaussian.loadings[name], 1e-8)
        assert_close(one.linear_gaussian.noise_variance[name], other.linear_gaussian.noise_variance[name], 1e-8)


def test_student_t_fits_too() -> None:
    mask = some_missing()
    one, other = (
        fit_student_t_em(blocks_of(mask, by_feature=by), 2, max_iterations=10, tolerance=0.0) for by in (False, True)
    )
    assert_close(one.log_likelihood, other.log_likelihood, 1e-10)


def test_the_posterior_is_dense_conditioning() -> None:
    mask = some_missing(12)
    blocks = blocks_of(mask)
    model = random_model(DIMS, 3, seed=4)
    found = posterior(model, blocks)
    for n in range(12):
        oracle = dense_conditioning(model, blocks.values[n], mask[n])
        assert_close(found.mean[n], oracle["mean"])
        assert_close(found.covariance[n], oracle["covariance"])
        assert_close(found.log_marginal[n], oracle["evidence"])


def test_order_of_features_changes_nothing() -> None:
    """Features of a modality that stand in another order are the same groups in other places."""
    mask = some_missing()
    order = torch.tensor([5, 3, 1, 0, 2, 4, 10, 7, 6, 9, 8, 14, 11, 13, 12])
    blocks = blocks_of(mask)
    moved = FeatureBlocks(DIMS, blocks.values[:, order], mask[:, order])
    model = random_model(DIMS, 3, seed=4)
    stacked = {
        part: torch.cat(list(getattr(model, part).values()))[order].split(list(DIMS.values()))
        for part in ("loadings", "intercepts", "noise_variance")
    }
    turned = type(model)(
        *(dict(zip(DIMS, values, strict=True)) for values in stacked.values()),  # type: ignore[arg-type]
        model.prior_mean,
        model.prior_covariance,
    )
    assert_close(posterior(turned, moved).mean, posterior(model, blocks).mean)
    assert_close(posterior(turned, moved).log_marginal, posterior(model, blocks).log_marginal)
    one, other = (
        fit_em(data, 3, start=start, max_iterations=10, tolerance=0.0)
        for data, start in ((blocks, model), (moved, turned))
    )
    assert_close(one.log_likelihood, other.log_likelihood, 1e-10)
