"""Guides: the amortised one against exact posteriors, which its form holds, and against what must not change it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.approximate.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.linear_gaussian import LinearGaussian
from tests.cases.approximate_cases import linear_case
from tests.cases.model_cases import jittered


def trained(guide: AmortizedGuide, size: float = 0.3) -> AmortizedGuide:
    """The guide with all its parameters moved at random: networks that are not zero any more."""
    return jittered(guide, size, seed=2)


def moments(guide: AmortizedGuide, data: MultimodalData) -> tuple[Tensor, Tensor]:
    q = guide(data)
    return q.mean.detach(), q.covariance_matrix.detach()


@pytest.mark.parametrize("hidden", [(), (8,), (8, 5)])
def test_the_amortised_guide_starts_as_the_exact_posterior(hidden: tuple[int, ...]) -> None:
    model, data, exact = linear_case(90)
    assert len(data.patterns) == 7
    mean, covariance = moments(AmortizedGuide(model.linear_gaussian(), hidden), data)
    torch.testing.assert_close(mean, exact.mean)
    torch.testing.assert_close(covariance, exact.covariance)


def test_a_trained_guide_sees_only_what_is_present() -> None:
    model, data, _ = linear_case(30)
    guide = trained(AmortizedGuide(model.linear_gaussian(), (8,)))
    spoilt = MultimodalData(
        {n: torch.where(data.observed(n)[:, None], data[n], 1e6) for n in data.names}, observed_mask=data.observed_mask
    )
    for before, after in zip(moments(guide, data), moments(guide, spoilt), strict=True):
        assert torch.equal(before, after)


def test_a_trained_guide_does_not_depend_on_other_instances_or_their_order() -> None:
    model, data, _ = linear_case(30)
    guide, rows = trained(AmortizedGuide(model.linear_gaussian(), (8,))), torch.tensor([7, 3, 7])
    for all_rows, some in zip(moments(guide, data), moments(guide, data.subset(rows)), strict=True):
        torch.testing.assert_close(some, all_rows[rows])


def test_evidence_of_modalities_adds_up_whatever_their_order() -> None:
    """h and P of an instance are those of each of its modalities alone, the prior counted once."""
    model, _, _ = linear_case()
    guide = trained(AmortizedGuide(model.linear_gaussian(), (8,)))
    x = {n: torch.randn(1, d, generator=torch.Generator().manual_seed(d)).double() for n, d in guide.dims.items()}
    whole = guide.natural_parameters(MultimodalData(x))
    turned = guide.natural_parameters(MultimodalData(dict(reversed(x.items()))))
    parts = [guide.natural_parameters(MultimodalData({name: value})) for name, value in x.items()]
    for i, both in enumerate(zip(whole, turned, strict=True)):
        torch.testing.assert_close(*both)
        prior = (guide.prior_natural[None], (guide.prior_factor.tril() @ guide.prior_factor.tril().mT)[None])[i]
        torch.testing.assert_close(whole[i], sum(part[i] for part in parts) - 2 * prior)


def test_every_parameter_of_the_amortised_guide_gets_a_gradient_that_is_right() -> None:
    generator = torch.Generator().manual_seed(1)
    loadings, zeros = torch.randn(2, 2, generator=generator, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    lg = LinearGaussian({"x": loadings}, {"x": zeros}, {"x": zeros + 1})
    guide = trained(AmortizedGuide(lg, (3,)), 0.1)
    data = MultimodalData({"x": torch.randn(3, 2, generator=generator, dtype=torch.float64)})
    names, values = zip(*guide.named_parameters(), strict=True)

    def density(*parameters: Tensor) -> Tensor:
        q = torch.func.functional_call(guide, dict(zip(names, parameters, strict=True)), data)
        return q.log_prob(torch.ones(3, 2, dtype=torch.float64)).sum()

    assert torch.autograd.gradcheck(density, values)


def test_a_guide_by_instance_starts_where_it_is_told_to() -> None:
    model, data, exact = linear_case()
    factor = torch.linalg.cholesky(exact.covariance)
    full, diagonal = (PerInstanceGuide(exact.mean, factor, kind) for kind in ("full", "diagonal"))
    rows = torch.tensor([5, 1])
    torch.testing.assert_close(full(rows).mean.detach(), exact.mean[rows])
    torch.testing.assert_close(full(rows).covariance_matrix.detach(), exact.covariance[rows])
    expected = torch.diag_embed(factor[rows].diagonal(dim1=-2, dim2=-1).square())
    torch.testing.assert_close(diagonal(rows).covariance_matrix.detach(), expected)
    assert sum(p.numel() for p in diagonal.parameters()) == len(data) * 4
    assert full.mean.data_ptr() != exact.mean.data_ptr()
    assert model.latent_dim == 2
