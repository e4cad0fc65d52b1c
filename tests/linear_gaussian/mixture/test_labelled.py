"""Class Gaussians along directions of the latent: ratios, directions, EM, against oracles that share no code."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, posterior
from calmrl_prob.linear_gaussian.em.forms import ROW_FORMS, prepare
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents, MixtureStep
from calmrl_prob.linear_gaussian.mixture.labelled import (
    DirectionEvidence,
    LabelledEM,
    class_directions,
    predictive_classes,
    standardized,
)
from calmrl_prob.linear_gaussian.mixture.maximization import ComponentModel
from tests.cases.linear_gaussian_cases import random_mask, random_model

DIMS = {"a": 4, "b": 3, "c": 3}
C, R = 3, 2


def model(seed: int = 0) -> LinearGaussian:
    """A model with correlated noise and a prior that is not standard."""
    return random_model(DIMS, 2, seed, noise="low_rank")


def rows(count: int = 60, seed: int = 0) -> tuple[ObservedBlocks, dict[str, Tensor], Tensor]:
    _, values = model().sample(count, torch.Generator().manual_seed(seed))
    mask = random_mask(count, len(DIMS), 0.4, seed)
    return ObservedBlocks.from_arrays(values, mask), values, mask


def random_classes(seed: int = 3) -> LatentComponents:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(C, R, R, generator=generator, dtype=torch.float64)
    weights = torch.randn(C, generator=generator, dtype=torch.float64).log_softmax(0)
    means = torch.randn(C, R, generator=generator, dtype=torch.float64)
    return LatentComponents(weights, means, 0.3 * half @ half.mT + 0.2 * torch.eye(R).double())


def axes(lg: LinearGaussian) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.linalg.qr(torch.randn(lg.latent_dim, R, generator=generator, dtype=torch.float64)).Q


def dense_moments(lg: LinearGaussian, names: list[str], mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of stacked modalities under z ~ N(mean, covariance), diagonal noise."""
    loadings = torch.cat([lg.loadings[name] for name in names])
    intercept = torch.cat([lg.intercepts[name] for name in names])
    noise = torch.cat([lg.noise_variance[name] for name in names])
    return loadings @ mean + intercept, loadings @ covariance @ loadings.mT + torch.diag(noise)


def test_standardized_is_the_same_density() -> None:
    before, after = model().joint(), standardized(model()).joint()
    torch.testing.assert_close(after, before)


def test_ratios_are_those_of_dense_normals() -> None:
    lg, classes = standardized(model()), random_classes()
    blocks, values, mask = rows()
    u = axes(lg)
    ratios = DirectionEvidence.of(posterior(lg, blocks), u).log_ratios(classes)
    whole = torch.eye(lg.latent_dim).double()
    for n in range(len(mask)):
        names = [name for name, here in zip(DIMS, mask[n].tolist(), strict=True) if here]
        x = torch.cat([values[name][n] for name in names])
        base = MultivariateNormal(*dense_moments(lg, names, whole[0] * 0, whole)).log_prob(x)
        for c in range(C):
            covariance = whole + u @ (classes.covariances[c] - torch.eye(R)) @ u.mT
            found = MultivariateNormal(*dense_moments(lg, names, u @ classes.means[c], covariance)).log_prob(x)
            assert float(ratios[n, c]) == pytest.approx(float(found - base), abs=1e-6)


def test_evidence_is_what_pyro_enumerates() -> None:
    """Pyro sums over classes itself; given a class the data are one normal."""
    lg, classes = standardized(model()), random_classes()
    blocks, values, mask = rows(20)
    u, whole = axes(lg), torch.eye(lg.latent_dim).double()
    keep = mask.all(1).nonzero().squeeze(1)
    x = torch.cat([values[name][keep] for name in DIMS], dim=1)
    covariances = whole + u @ (classes.covariances - torch.eye(R)) @ u.mT
    stacked = [dense_moments(lg, list(DIMS), u @ classes.means[c], covariances[c]) for c in range(C)]
    means, spreads = (torch.stack(part) for part in zip(*stacked, strict=True))

    @config_enumerate  # type: ignore[untyped-decorator]
    def pyro_model() -> None:
        with pyro.plate("rows", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=classes.log_weights))
            pyro.sample("x", dist.MultivariateNormal(means[c], spreads[c]), obs=x)

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(pyro_model, lambda: None)
    given_rows = posterior(lg, blocks)
    ratios = DirectionEvidence.of(given_rows, u).log_ratios(classes)[keep] + classes.log_weights
    found = ratios.logsumexp(1) + given_rows.log_marginal[keep]
    assert float(found.sum()) == pytest.approx(-loss, rel=1e-6)


def test_ratios_are_what_draws_of_the_latent_say() -> None:
    lg, classes = standardized(model()), random_classes()
    blocks, _, _ = rows(8)
    u, given_rows = axes(lg), posterior(lg, blocks)
    drawn = given_rows.sample(200_000, torch.Generator().manual_seed(0)) @ u
    base = MultivariateNormal(torch.zeros(R).double(), torch.eye(R).double()).log_prob(drawn)
    ratios = DirectionEvidence.of(given_rows, u).log_ratios(classes)
    for c in range(C):
        weights = (MultivariateNormal(classes.means[c], classes.covariances[c]).log_prob(drawn) - base).exp()
        error = weights.std(0) / len(weights) ** 0.5
        assert bool(((weights.mean(0) - ratios[:, c].exp()).abs() < 6 * error + 1e-9).all())


def known_labels(count: int, share: float, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(C, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < share, labels, -1)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("nu", [0.0, 5.0, math.inf])
def test_no_step_lowers_the_objective(share: float, nu: float) -> None:
    lg = standardized(model())
    blocks, _, _ = rows(90)
    prior = ComponentModel(1.0, 0.0 if math.isinf(nu) else nu, math.isinf(nu))
    em = LabelledEM(DirectionEvidence.of(posterior(lg, blocks), axes(lg)), known_labels(90, share), prior, 0.7)
    classes, values = random_classes(), []
    classes = prior.admit(classes)
    for _ in range(12):
        found = em.expect(classes)
        values.append(em.objective(found, classes))
        classes = em.maximize(found, classes)
    assert min(torch.tensor(values).diff().tolist()) > -1e-8 * abs(values[0])


def test_without_labels_it_is_the_mixture_em() -> None:
    """The E-step of the engine's own mixture, of all latents, and the M-step of its components."""
    lg = standardized(model())
    blocks, _, _ = rows(90)
    whole = torch.eye(lg.latent_dim).double()
    generator = torch.Generator().manual_seed(2)
    means = torch.randn(C, lg.latent_dim, generator=generator, dtype=torch.float64)
    start = LatentComponents(torch.full((C,), -math.log(C)).double(), means, 0.5 * whole.repeat(C, 1, 1))
    prior = ComponentModel(1.0, 3.0)
    em = LabelledEM(DirectionEvidence.of(posterior(lg, blocks), whole), torch.full((90,), -1), prior, 0.0)
    prepared = prepare(blocks, lg.latent_dim, "modality", forms=ROW_FORMS)
    step = MixtureStep.of_mixture(prepared.rows(), C, blocks.num_patterns)
    moments = step(Parameters.from_linear_gaussian(lg, prepared.shift), start).components
    found = em.expect(start)
    torch.testing.assert_close(found.moments, moments, atol=1e-5, rtol=1e-5)
    ours, theirs = em.maximize(found, start), prior.maximize(moments, start)
    torch.testing.assert_close(ours.covariances, theirs.covariances, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.means, theirs.means, atol=1e-5, rtol=1e-5)


def test_with_all_labels_and_nothing_missing_it_is_the_supervised_estimate() -> None:
    """Noise next to nothing: the latents are seen, and class means and covariances are those of the rows."""
    generator = torch.Generator().manual_seed(0)
    lg = LinearGaussian(
        {"x": torch.eye(R).double()}, {"x": torch.zeros(R).double()}, {"x": torch.tensor(1e-7).double()}
    )
    x, labels = torch.randn(60, R, generator=generator).double(), known_labels(60, 1.0)
    blocks = ObservedBlocks.from_arrays({"x": x}, torch.ones(60, 1).bool())
    evidence = DirectionEvidence.of(posterior(standardized(lg), blocks), torch.eye(R).double())
    classes = LabelledEM(evidence, labels, ComponentModel(), 0.0).fit(C)
    for c in range(C):
        torch.testing.assert_close(classes.means[c], x[labels == c].mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(classes.covariances[c], x[labels == c].mT.cov(correction=0), atol=1e-4, rtol=1e-4)
    shares = torch.bincount(labels).double() / 60
    torch.testing.assert_close(classes.log_weights.exp(), shares)
    wider = predictive_classes(classes, torch.tensor([4.0, 9.0, 0.0]).double(), 1.0)
    torch.testing.assert_close(wider.covariances / classes.covariances, torch.tensor([1.2, 1.1, 2.0]).double()
                               [:, None, None].expand(C, R, R))  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20))
def test_rows_and_modalities_may_come_in_any_order(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(40, generator=generator)
    names = [list(DIMS)[i] for i in torch.randperm(3, generator=generator).tolist()]
    _, values, mask = rows(40)
    labels, found = known_labels(40, 0.7), []
    for keep, chosen in ((torch.arange(40), list(DIMS)), (order, names)):
        columns = [list(DIMS).index(name) for name in chosen]
        blocks = ObservedBlocks.from_arrays({n: values[n][keep] for n in chosen}, mask[keep][:, columns])
        lg = standardized(model().select(chosen))
        given_rows = posterior(lg, blocks)
        evidence = DirectionEvidence.of(given_rows, class_directions(given_rows, labels[keep], C, R, 1.0))
        em = LabelledEM(evidence, labels[keep], ComponentModel(1.0, 2.0), 1.0)
        ratios = evidence.log_ratios(em.fit(C))
        found.append(ratios if keep is not order else ratios[order.argsort()])
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_directions_span_the_class_means_row_by_row() -> None:
    """The formula summed instance by instance, each with a covariance of its own; a is of weight here."""
    lg = standardized(model())
    blocks, _, _ = rows()
    found, labels, pseudo_count = posterior(lg, blocks), known_labels(60, 0.7), 3.0
    covariance = found.pattern_covariance[found.pattern_index]
    identity = torch.eye(found.mean.shape[1]).to(found.mean)
    means, sizes = [], []
    for c in range(C):
        own = labels == c
        precision = pseudo_count * identity + (identity - covariance[own]).sum(0)
        means.append(torch.linalg.solve(precision, found.mean[own].sum(0)))
        sizes.append(own.sum().to(precision))
    size = torch.stack(sizes)
    centred = torch.stack(means) - (size @ torch.stack(means)) / size.sum()
    scatter = (centred * size[:, None]).mT @ centred
    expected = torch.linalg.eigh(scatter).eigenvectors[:, -R:]
    axes = class_directions(found, labels, C, R, pseudo_count)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(R).to(axes), rtol=0, atol=1e-10)
    torch.testing.assert_close(axes @ axes.mT, expected @ expected.mT, rtol=0, atol=1e-8)
