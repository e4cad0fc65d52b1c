"""Regression on the latent, and the class Gaussians that have its log odds: against plain ascent and plain algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.classification.folds import canonical_order, fewer
from calmrl_prob.classification.regression import class_coefficients, consistent_classes, explained
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian import posterior
from calmrl_prob.linear_gaussian.mixture.labelled import standardized
from tests.cases.class_cases import drawn, in_batches, named

C, K = 4, 6


def test_the_classes_have_the_log_odds_and_the_latents_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    coefficients = 2 * torch.randn(C, K, generator=generator, dtype=torch.float64)
    counts = torch.tensor([10.0, 3.0, 0.0, 40.0]).double()
    axes, classes = consistent_classes(coefficients, counts, C - 1)
    weights = classes.log_weights.exp()
    torch.testing.assert_close(weights, (counts + 1) / 57)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(C - 1).double())
    odds = classes.natural @ axes.mT  # S_c^-1 m_c, in the latent
    torch.testing.assert_close(odds - odds[0], coefficients - coefficients[0])
    torch.testing.assert_close(weights @ classes.means, torch.zeros(C - 1).double(), atol=1e-12, rtol=0)
    outer = torch.einsum("c,cr,cs->rs", weights, classes.means, classes.means)
    total = torch.einsum("c,crs->rs", weights, classes.covariances) + outer
    torch.testing.assert_close(total, torch.eye(C - 1).double())


def test_no_coefficients_leave_the_latent_as_it_is() -> None:
    _, classes = consistent_classes(torch.zeros(C, K).double(), torch.ones(C).double(), 2)
    assert bool((classes.means == 0).all())
    torch.testing.assert_close(classes.covariances, torch.eye(2).double().expand(C, 2, 2))


@pytest.mark.parametrize("kinds", [["u", "v", "w"], ["u", "v"]])
def test_coefficients_maximise_the_penalised_likelihood(kinds: list[str]) -> None:
    data, lg = drawn(200)
    lg = standardized(lg)
    given, variance = posterior(lg, data.blocks), 0.1
    labels = torch.tensor([{"u": 0, "v": 1, "w": 3}[k] if k in kinds else -1 for k in data.labels.tolist()])
    found = class_coefficients(given, labels, 4, variance)
    assert bool((found[2] == 0).all())  # of no instance
    known = labels >= 0
    inverse = torch.linalg.inv(explained(lg))
    used = [{"u": 0, "v": 1, "w": 3}[k] for k in kinds]

    def loss(weights: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        scores = given.mean[known] @ weights[used].mT + offset
        codes = torch.tensor([used.index(int(label)) for label in labels[known]])
        # with two classes the coefficients of the difference have the prior
        drawn_to = weights[used] if len(used) > 2 else (weights[used[1]] - weights[used[0]])[None]
        penalty = (drawn_to @ inverse * drawn_to).sum() / (2 * variance)
        return torch.nn.functional.cross_entropy(scores, codes, reduction="sum") + penalty

    weights = torch.zeros(4, 3).double().requires_grad_()
    offset = torch.zeros(len(used)).double().requires_grad_()
    optimiser = torch.optim.LBFGS([weights, offset], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss(weights, offset)
        value.backward()
        return value

    optimiser.step(closure)
    expected = weights.detach()
    differences = [(a[used[1:]] - a[used[0]]) for a in (found, expected)]
    torch.testing.assert_close(differences[0], differences[1], atol=0.03, rtol=0.03)


def test_modalities_are_dropped_to_every_smaller_number_and_none_is_added() -> None:
    mask = np.array([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    rows, kept = fewer(mask, np.random.default_rng(0))
    assert sorted(zip(rows.tolist(), kept.sum(1).tolist(), strict=True)) == [(0, 1), (0, 2), (1, 1)]
    assert (kept <= mask[rows]).all()


@pytest.mark.parametrize("with_ids", [True, False])
def test_the_order_of_the_rows_is_of_no_account(with_ids: bool) -> None:
    data, lg = named() if with_ids else drawn()[0], drawn()[1]
    turned = np.random.default_rng(1).permutation(len(data))
    groups = np.arange(len(data)) // 4
    same = np.zeros(len(data), dtype=np.int64)
    assert (canonical_order(data.subset(turned), same) == np.argsort(turned)[canonical_order(data, same)]).all()
    for options in ({}, {"groups": True}):
        one, other = (
            cal.classify(lg, part, folds=3, **({"groups": shared} if options else {}))
            for part, shared in ((data, groups), (data.subset(turned), groups[turned]))
        )
        assert one.table.equals(other.table)
        np.testing.assert_array_equal(one.probabilities(data), other.probabilities(data))


def test_rows_that_hold_the_same_are_in_the_order_of_labels_and_groups() -> None:
    x = np.array([[0.0, 1.0], [np.nan, 1.0], [0.0, 1.0], [0.0, 1.0]])
    data = MultimodalData({"a": x}, missing="features")
    codes, groups = np.array([1, 1, 0, 1]), np.array(["v", "v", "w", "u"])
    seen = set()
    for turned in map(list, itertools.permutations(range(4))):
        order = canonical_order(data.subset(turned), codes[turned], groups[turned])
        seen.add(tuple(np.array(turned)[order].tolist()))
    (order,) = seen  # a 0 that is there is not one that is missing
    assert [row for row in order if row != 1] == [2, 3, 0]


def test_regression_serves_where_latents_outnumber_the_rows() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=90)
    latent = 1.2 * np.eye(3)[labels] @ generator.normal(size=(3, 40)) * (np.arange(40) < 6)
    x = latent + generator.normal(size=(90, 40))
    data = MultimodalData({"a": x[:, ::2], "b": x[:, 1::2]}, labels=labels)
    fit = cal.fit(cal.SharedLatentModel(data.dims, 4, noise="full"), data, pseudo_rows=30)
    found = cal.classify(fit, data, folds=3)
    assert found.linear_gaussian.latent_dim > 40
    assert found.setting.regression > 0


def test_a_classifier_is_the_same_from_its_file(tmp_path: object) -> None:
    _, moved = in_batches()
    fit = cal.fit(cal.SharedLatentModel(moved.dims, latent_dim=3, batch="site"), moved)
    found = cal.classify(fit, moved, folds=3)
    path = f"{tmp_path}/classes.safetensors"
    cal.save(found, path)
    again = cal.load(path)
    np.testing.assert_array_equal(again.probabilities(moved), found.probabilities(moved))
    assert again.classes.tolist() == found.classes.tolist()
    assert again.setting == found.setting
    assert repr(again) == repr(found)


def test_a_classifier_stands_where_a_model_does_as_its_mixture() -> None:
    data, lg = drawn()
    found = cal.classify(lg, data, folds=2)
    one, other = cal.impute(found, data), cal.impute(found.mixture(), data)
    for name in data.names:
        torch.testing.assert_close(one.mean[name], other.mean[name])
    candidates = data.subset(data.rows_with("a")).select(["a"])
    queries = data.subset(data.rows_with("b")).select(["b"])
    scores = [cal.retrieve(model, queries, candidates).top_scores for model in (found, found.mixture())]
    np.testing.assert_allclose(*scores)
    with pytest.raises(ArgumentError, match="has none, got"):
        cal.posterior(found, data, num_draws=3)
    for model in (found, cal.RetrievalIndex.build(lg, data)):
        with pytest.raises(ArgumentTypeError, match=r"expected a SharedLatentModel or a LinearGaussian"):
            cal.classify(model, data)
