"""The approximate routes of ``calmrl_prob.posterior``: variational and by NUTS, both checked by importance weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from calmrl_prob._arguments import checked_seed, whole_number
from calmrl_prob._randomness import seeded, spread_seeds
from calmrl_prob._warnings import warn_unreliable
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ModelError, NumericalError
from calmrl_prob.inference.chains import run_chains
from calmrl_prob.inference.guides import AmortizedGuide, PerInstanceGuide
from calmrl_prob.inference.importance import MIN_DRAWS, ImportanceWeights, importance_weights
from calmrl_prob.inference.instances import InstanceModel
from calmrl_prob.inference.linearize import linearize
from calmrl_prob.inference.sampled import SampledPosterior
from calmrl_prob.inference.svi import Guide, GuideKind, SVIResult, fit_svi, guide_of
from calmrl_prob.tracing import BoundModel, PyroModel

#: Chains of NUTS start this many (approximate) posterior standard deviations out.
_OVERDISPERSION = 1.5


def svi_posterior(
    model: PyroModel | BoundModel,
    data: MultimodalData,
    *,
    guide: GuideKind | Guide | SVIResult = "full",
    num_draws: int = 200,
    seed: int = 0,
    **options: Any,
) -> SampledPosterior:
    """The posterior of the latents by a normal guide, corrected by importance weights.

    Args:
        model: a Pyro model; its parameters stay as they are.
        data: N instances.
        guide: "full" or "diagonal" to fit a normal to each instance, "amortized" to fit a network; a guide, or what
            :func:`~calmrl_prob.inference.svi.fit_svi` returned, to use as it is. One by instance knows only the
            instances that it was fitted to.
        num_draws: S, draws from the guide of each instance; at least 25.
        seed: of all that is drawn.
        **options: of ``fit_svi``, where a guide has to be fitted.

    Returns:
        Weighted draws. Its diagnostics: ``k_hat`` (N,), ``max_k_hat``, ``effective_draws`` (N,),
        ``log_marginal_error`` (N,) in nats, ``elbo`` in nats, and of a fit ``num_iterations``, ``converged``,
        ``stop_reason``.

    Raises:
        ModelError: the model breaks the form that every route needs.
        ArgumentError: an option is out of range, or the guide is of other data.

    Warns:
        ReliabilityWarning: Pareto k-hat is above 0.7 for some instances.

    Example:
        >>> from calmrl_prob.model import SharedLatentModel
        >>> model = SharedLatentModel({"x": 3}, latent_dim=2, seed=1)
        >>> found = svi_posterior(model, MultimodalData({"x": torch.ones(4, 3)}), num_draws=100)
        >>> found
        PosteriorResult(4 instances, 2 latents, route='svi')
        >>> bool((found.diagnostics["k_hat"] < 0.7).all())
        True
    """
    fit_seed, draw_seed = spread_seeds(checked_seed(seed), 2)
    num_draws = whole_number("num_draws", num_draws, least=MIN_DRAWS)
    instances = InstanceModel(model, data)
    data = instances.conform(data)
    diagnostics: dict[str, Any] = {}
    if isinstance(guide, str):
        fitted = fit_svi(instances, data, guide=guide, train_model=False, seed=fit_seed, **options)
        guide = fitted.guide
        diagnostics |= {
            "num_iterations": fitted.num_iterations,
            "converged": fitted.converged,
            "stop_reason": fitted.stop_reason,
        }
    elif options:
        raise ArgumentError(f"options: {sorted(options)} are of fitting a guide, but one was given.")
    guide = guide.guide if isinstance(guide, SVIResult) else guide
    if isinstance(guide, PerInstanceGuide) and len(guide.mean) != len(data):
        raise ArgumentError(
            f"guide: it has {len(guide.mean)} instances, the data {len(data)}; fit one to these data, or an amortized "
            "one to any."
        )
    with torch.no_grad():
        q = guide_of(guide, data, torch.arange(len(data), device=data.device))
        latents, ratio = draw_and_weigh(instances, data, q, num_draws, draw_seed)
    weights = importance_weights(ratio)
    diagnostics |= {"elbo": float(ratio.mean(dim=0).sum()), **_report(weights)}
    warn_unreliable(weights.problems())
    return SampledPosterior(instances, data, latents, weights.log_weights, weights.log_evidence, "svi", diagnostics)


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
        evidence_draws: draws of each instance for the evidence; at least 25.
        seed: of all that is drawn.
        **options: of :func:`~calmrl_prob.inference.chains.run_chains`, such as ``target_accept`` and ``callback``.

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
        >>> found = nuts_posterior(model, data, num_draws=200, num_warmup=100, num_chains=2)
        >>> tuple(found.latents.shape), found.diagnostics["num_divergences"]
        ((400, 2, 1), 0)
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
    _require_finite(instances, data, centre)

    def place(u: Tensor) -> Tensor:
        moved: Tensor = (scale @ u[..., None]).squeeze(-1)
        placed: Tensor = centre + moved
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
    evidence = weights.problems("evidence", "do not compare models by it")
    warn_unreliable([*found.problems(), *evidence])
    equal = flat.new_full(flat.shape[:2], -math.log(len(flat)))
    diagnostics = {**found.summary(), **_report(weights)}
    return SampledPosterior(instances, data, flat, equal, weights.log_evidence, "nuts", diagnostics)


@torch.no_grad()
def draw_and_weigh(
    model: InstanceModel, data: MultimodalData, q: MultivariateNormal, num_draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draws (S, N, K) from q, and log p(x_n, z) - log q(z) of each, (S, N), nats."""
    with seeded(seed, data.device):
        latents = q.rsample((num_draws,))
    ratios = [model.log_joint(data, draw)[0] for draw in latents]
    return latents, torch.stack(ratios) - q.log_prob(latents)


def _covariance(draws: Tensor) -> Tensor:
    """Covariance over the first of (S, N, K), (N, K, K), kept away from singular."""
    centred = draws - draws.mean(dim=0)
    covariance: Tensor = torch.einsum("snj,snk->njk", centred, centred) / (len(draws) - 1)
    return covariance + 1e-6 * torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))


def _require_finite(model: InstanceModel, data: MultimodalData, latents: Tensor) -> None:
    joint, _ = model.log_joint(data, latents)
    if not bool(joint.isfinite().all()):
        raise NumericalError(f"model: its density is not finite for row {int((~joint.isfinite()).nonzero()[0])}.")


def _report(weights: ImportanceWeights) -> dict[str, Any]:
    return {
        "k_hat": weights.k_hat.cpu().numpy(),
        "max_k_hat": float(weights.k_hat.max()),
        "effective_draws": weights.effective_draws.cpu().numpy(),
        "log_marginal_error": weights.standard_error.cpu().numpy(),
    }
