"""Gains about the class: against whole rows drawn from the mixture and classified anew."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.classification import Classifier
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import LinearGaussian, mixture_posterior
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents

DIMS = {"a": 2, "b": 3, "c": 2}


def classifier(temperature: float = 1.0, floor: float = 0.0) -> Classifier:
    """Three classes along two directions of four latents, known exactly."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lg = LinearGaussian(
        {name: random(width, 4) for name, width in DIMS.items()},
        {name: random(width) for name, width in DIMS.items()},
        {name: 0.5 + random(width).square() for name, width in DIMS.items()},
    )
    half = 0.4 * random(3, 2, 2)
    components = LatentComponents(
        torch.tensor([0.5, 0.3, 0.2]).double().log(), 1.5 * random(3, 2), half @ half.mT + 0.2 * torch.eye(2).double()
    )
    found = cal.classify(lg, MultimodalData(lg.sample(40, generator).features, labels=np.arange(40) % 3), folds=2)
    return dataclasses.replace(
        found,
        directions=torch.linalg.qr(random(4, 2)).Q,
        components=components,
        temperature=temperature,
        patterns=found.patterns[:0],
        pattern_temperatures=found.pattern_temperatures[:0],
        floor=floor,
    )


def entropy(stated: np.ndarray) -> np.ndarray:
    found: np.ndarray = -(stated * np.log(stated)).sum(-1)
    return found


def by_whole_rows(found: Classifier, data: MultimodalData, name: str, draws: int) -> float:
    """The same of one row: draw z of a class and x of z, classify what was there and x."""
    generator, mixture = torch.Generator().manual_seed(5), found.mixture()
    stated = found.probabilities(data)
    given = mixture_posterior(mixture, data.blocks)
    kinds = torch.multinomial(torch.as_tensor(stated[0]), draws, replacement=True, generator=generator)
    drawn = torch.empty(draws, DIMS[name], dtype=torch.float64)
    lg = found.linear_gaussian
    for c in range(3):
        rows = kinds == c
        z = given.components[c].sample(int(rows.sum()), generator)[:, 0]
        noise = torch.randn(int(rows.sum()), DIMS[name], generator=generator, dtype=torch.float64)
        drawn[rows] = z @ lg.loadings[name].mT + lg.intercepts[name] + noise * lg.noise_variance[name].sqrt()
    values = {n: data.filled(n)[:1].double().expand(draws, -1) for n in data.names if bool(data.observed(n)[0])}
    return float(entropy(stated)[0] - entropy(found.probabilities(MultimodalData({**values, name: drawn}))).mean())


@pytest.mark.parametrize(("temperature", "floor"), [(1.0, 0.0), (0.6, 0.02)])
def test_gains_are_those_of_whole_rows(temperature: float, floor: float) -> None:
    found = classifier(temperature, floor)
    x = found.linear_gaussian.sample(3, torch.Generator().manual_seed(1)).features
    data = MultimodalData(x).mask(torch.tensor([[True, False, False], [False, False, True], [True, True, True]]))
    told = found.value_of_information(data, num_draws=4000)
    assert told.target == "class"
    assert np.isnan(told.gain[2]).all()
    assert np.isnan(told.gain[0, 0])
    for row, name in ((0, "b"), (0, "c"), (1, "a")):
        expected = by_whole_rows(found, data.subset([row]), name, 4000)
        m = data.names.index(name)
        assert told.gain[row, m] == pytest.approx(expected, abs=6 * told.standard_error[row, m])
        assert abs(expected) > 10 * told.standard_error[row, m]  # so that no gain at all would be seen


def test_draws_are_of_the_seed_and_too_few_are_refused() -> None:
    found = classifier()
    x = found.linear_gaussian.sample(5, torch.Generator().manual_seed(1)).features
    data = MultimodalData({"a": x["a"]})
    first, second = (found.value_of_information(data, seed=2).gain for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (5, 3)
    with pytest.raises(ArgumentError, match="num_draws"):
        found.value_of_information(data, num_draws=1)
