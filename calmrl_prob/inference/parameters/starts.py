"""Good values of global latents to start from: those whose linear-Gaussian form is nearest to what EM finds.

Which site holds loadings or noise, and how, is the user's own affair, so nothing is assigned. Instead theta maximises

    log p(theta) - 1/2 sum_m n_m sum_d ((|w_d - w*_d|^2 + (mu_d - mu*_d)^2) / psi*_d + (log psi_d - log psi*_d)^2 / 2)

with w, mu, psi the form at theta and starred values EM's, by L-BFGS: a normal approximation of the likelihood. Scales
of the loadings' prior come out as that prior wants them for such loadings. It takes calls of the model on K + 1 rows,
and no evidence.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from calmrl_prob.errors import CalmrlError
from calmrl_prob.inference.parameters.collapsed import CollapsedModel
from calmrl_prob.linear_gaussian import FeatureBlocks, LinearGaussian, ObservedBlocks, SufficientStatistics, fit_em
from calmrl_prob.linear_gaussian.em.parameters import Parameters

#: L-BFGS steps of the match: it need not be exact.
_STEPS = 100


def starting_points(model: CollapsedModel, count: int, seed: int) -> Iterator[Tensor]:
    """Values of theta (n,) to start from: EM's with a normal prior on loadings, EM's with ARD, then prior draws.

    Args:
        model: the joint density.
        count: how many.
        seed: of what is drawn.
    """
    given = 0
    for prior in ("normal", "ard"):
        start = from_em(model, prior, seed) if given < count else None
        if start is not None:
            given += 1
            yield start
    for number in range(count - given):
        yield model.draw(seed + number + 1)


def from_em(model: CollapsedModel, loadings_prior: str, seed: int) -> Tensor | None:
    """theta (n,) nearest to EM's fit; None where the form is not one linear-Gaussian model, or EM cannot fit it.

    Args:
        model: the joint density.
        loadings_prior: of EM, "normal" or "ard".
        seed: of EM's spectral start.
    """
    structure = model.form.structures[0]
    if model.form.route != "exact" or not isinstance(structure, LinearGaussian):
        return None
    blocks: ObservedBlocks | FeatureBlocks | SufficientStatistics = model.data.conform(structure.dims).blocks
    if model.statistics is not None:
        blocks = model.statistics
    isotropic = all(bool((part == part[0]).all()) for part in structure.noise_variance.values())
    try:
        fitted = fit_em(
            blocks,
            structure.latent_dim,
            noise="isotropic" if isotropic else "diagonal",
            loadings_prior=loadings_prior,
            prior_mean=structure.prior_mean,
            prior_covariance=structure.prior_covariance,
            max_iterations=200,
            tolerance=1e-5,
            noise_floor=1e-3,
            seed=seed,
        )
    except CalmrlError:  # more latents than features, say: the model may still be a sensible one
        return None
    counts = {name: float(model.data.observed(name).sum()) for name in structure.names}
    return _nearest(model, fitted.linear_gaussian, counts, seed)


@torch.enable_grad()
def _nearest(model: CollapsedModel, target: LinearGaussian, counts: dict[str, float], seed: int) -> Tensor:
    zero = torch.zeros(sum(target.dims.values()), dtype=torch.float64, device=target.device)
    goal = Parameters.from_linear_gaussian(target, zero)
    weight = torch.cat([zero.new_full((width,), counts[name]) for name, width in target.dims.items()])
    generator = torch.Generator().manual_seed(seed)
    noise = 0.01 * torch.randn(model.dim, generator=generator, dtype=torch.float64)  # off saddles where factors are 0
    theta = noise.to(target.device).requires_grad_()
    optimiser = torch.optim.LBFGS([theta], max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        (structure,), log_prior = model.form.read_with_prior(model.values(theta))
        assert isinstance(structure, LinearGaussian)
        now = Parameters.from_linear_gaussian(structure.to(torch.float64), zero)
        misfit = (now.loadings - goal.loadings).square().sum(1) + (now.intercepts - goal.intercepts).square()
        misfit = misfit / goal.noise_variance + (now.noise_variance.log() - goal.noise_variance.log()).square() / 2
        value = ((weight * misfit).sum() / 2 - log_prior) / weight.sum()
        value.backward()
        return value

    best = theta.detach().clone()
    try:
        optimiser.step(loss)
    except CalmrlError:  # a line search went out of all range
        return best
    found = theta.detach()
    return found.clone() if bool(found.isfinite().all()) else best
