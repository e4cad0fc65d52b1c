"""The posterior of the latents by NUTS: for few instances of any Pyro model, and to check other routes against."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob._support.arguments import checked_seed, whole_number
from calmrl_prob._support.randomness import seeded, spread_seeds
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError
from calmrl_prob.inference.approximate.guides import AmortizedGuide
from calmrl_prob.inference.approximate.linearize import linearize
from calmrl_prob.inference.optimisers.chains import run_chains
from calmrl_prob.posteriors.importance import MIN_DRAWS, importance_weights
from calmrl_prob.posteriors.instances import InstanceModel
from calmrl_prob.posteriors.sampled import SampledPosterior, draw_and_weigh, weight_report
from calmrl_prob.programs.bound import BoundModel, PyroModel

#: Chains start this many (approximate) posterior standard deviations out.
_OVERDISPERSION = 1.5


def nuts_posterior(
    model: PyroModel | BoundModel,
    data: MultimodalData,
    *,
    num_draws: int = 500,
    num_warmup: int = 300,
    num_chains: int = 4,
    evidence_draws: int = 200,
    seed: int = 0,
    **options: Any,
) -> SampledPosterior:
    """The posterior of the latents by the No-U-Turn Sampler, for few instances.

    All latents are sampled together, on the scale of the posterior of the nearest linear-Gaussian model,
    z_n = m_n + L_n u_n, so that the sampler meets unit variances. The evidence comes from importance weights of a
    normal with the moments of each instance's draws.

    Args:
        model: a Pyro model; its parameters stay as they are.
        data: N instances; cost grows with N, since trajectories become longer and R-hat has N K entries.
        num_draws: S, draws of each chain.
        num_warmup: draws of each chain before.
        num_chains: C.
        evidence_draws: draws of each instance for the evidence; at least 100.
        seed: of all that is drawn.
        **options: of :func:`~calmrl_prob.inference.optimisers.chains.run_chains`, such as ``target_accept`` and
            ``callback``.

    Returns:
        C S equally weighted draws. Its diagnostics: ``r_hat``, ``ess``, ``num_divergences``, R-hat and effective
        sample sizes by entry; ``k_hat`` (N,), ``max_k_hat`` and ``log_marginal_error`` (N,) of the evidence alone.

    Raises:
        ModelError: the model breaks the form that every route needs.
        ArgumentError: an option is out of range.
        NumericalError: the density is not finite where a chain starts.

    Warns:
        ReliabilityWarning: chains disagree, transitions diverged, or k-hat of the evidence is above 0.7.

    Example:
        >>> from calmrl_prob.model import SharedLatentModel
        >>> model = SharedLatentModel({"x": 3}, latent_dim=1, seed=1)
        >>> data = MultimodalData({"x": torch.ones(2, 3)})
        >>> found = nuts_posterior(model, data, num_draws=400, num_warmup=100, num_chains=2)
        >>> tuple(found.latents.shape), found.diagnostics["num_divergences"]
        ((800, 2, 1), 0)
    """
    chain_seed, start_seed, draw_seed = spread_seeds(checked_seed(seed), 3)
    whole_number("evidence_draws", evidence_draws, least=MIN_DRAWS)
    num_chains = whole_number("num_chains", num_chains, least=1)
    instances = InstanceModel(model, data)
    data = instances.conform(data)
    with torch.no_grad():
        nearest = linearize(instances, data).to(dtype=instances.dtype, device=data.device)
        q = AmortizedGuide(nearest, ())(data)
        with seeded(start_seed, data.device):
            starts = _OVERDISPERSION * torch.randn(num_chains, *q.mean.shape).to(q.mean)
    centre, scale = q.mean, q.scale_tril
    instances.log_joint(data, centre)  # raises, naming the site, where the model has no density even there

    def place(u: Tensor) -> Tensor:
        placed: Tensor = centre + (scale @ u[..., None]).squeeze(-1)
        return placed

    def potential(at: dict[str, Tensor]) -> Tensor:
        try:
            return -instances.log_joint(data, place(at["u"]))[0].sum()
        except ModelError:  # a density that is not finite out there: the trajectory ends, as a divergence
            return at["u"].sum() * 0 + math.inf

    chains = run_chains(
        potential=potential,
        initial={"u": starts},
        num_draws=num_draws,
        num_warmup=num_warmup,
        num_chains=num_chains,
        seed=chain_seed,
        device=data.device,
        **options,
    )
    with torch.no_grad():
        latents = place(chains.draws["u"])
        found = chains.diagnose({"z": latents})
        flat = latents.flatten(0, 1)
        moments = MultivariateNormal(flat.mean(dim=0), _covariance(flat), validate_args=False)
        _, ratio = draw_and_weigh(instances, data, moments, evidence_draws, draw_seed)
    weights = importance_weights(ratio)
    evidence = weights.problems("do not compare models by it", "evidence")
    warn_unreliable([*found.problems(), *evidence])
    equal = flat.new_full(flat.shape[:2], -math.log(len(flat)))
    diagnostics = {**found.summary(), **weight_report(weights)}
    return SampledPosterior(instances, data, flat, equal, weights.log_evidence, "nuts", diagnostics)


def _covariance(draws: Tensor) -> Tensor:
    """Covariance over the first of (S, N, K), (N, K, K), kept away from singular."""
    centred = draws - draws.mean(dim=0)
    covariance: Tensor = torch.einsum("snj,snk->njk", centred, centred) / (len(draws) - 1)
    return covariance + 1e-6 * torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
