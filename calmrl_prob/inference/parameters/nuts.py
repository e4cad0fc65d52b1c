"""The posterior of global latents by NUTS, latents of instances integrated out: the method "nuts" of ``fit``.

Each leapfrog step costs one call of the model on K + 1 rows and one evidence with its gradient, from sufficient
statistics where these serve; so the sampler is as fast on a million instances as on a thousand.

Chains that sit in different rotations of the latent disagree about the loadings and about nothing else. So R-hat and
effective sample sizes are of quantities that no rotation changes: entries of W S0 W^T, means, noise variances, the
evidence and the log prior.

Source: Hoffman & Gelman, The No-U-Turn Sampler (2014).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.progress import Callback
from calmrl_prob._support.randomness import spread_seeds
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.arviz.adapter import to_container
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import NumericalError
from calmrl_prob.inference.optimisers.chains import MAX_R_HAT, ChainOptions, Chains, run_chains
from calmrl_prob.inference.parameters.collapsed import CollapsedModel, marginalize
from calmrl_prob.inference.parameters.parameter_draws import DrawsPosterior, ParameterDraws
from calmrl_prob.inference.parameters.starts import starting_points
from calmrl_prob.linear_gaussian import LinearGaussian, Trace
from calmrl_prob.linear_gaussian.em.convergence import Traced
from calmrl_prob.programs.bound import BoundModel

#: Entries of each kind of quantity that R-hat is computed of; more than this are picked at random, always the same.
_ENTRIES = 50
#: Standard deviation of what is added to the start of each chain, on the unconstrained scale.
_JITTER = 0.1
#: Differences between draws below this many of a feature's standard deviations are rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DrawsReport(Traced):
    """Draws of the global latents, and how they were made.

    Attributes:
        draws: of all chains, one after another.
        theta: the same, unconstrained, (C, S, n).
        quantities: what no rotation of the latent changes, (C, S, ...) each.
        trace: ``log_likelihood`` (C S,) is the evidence at each draw and ``objective`` (C S,) the log joint density
            there, nats; of a guide, the bound at each step. It has converged if chains agree and no transition diverged
            (a guide: if k-hat is low enough), and ``stop_reason`` says what is wrong if not; ``criterion`` is the
            largest R-hat (k-hat), ``tolerance`` what it should not exceed.
        diagnostics: R-hat, effective sample sizes, divergences.
        warned: whether a warning has said so.
    """

    draws: ParameterDraws
    theta: Tensor
    quantities: Mapping[str, Tensor]
    trace: Trace
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    warned: bool = False

    @classmethod
    def of(
        cls,
        model: CollapsedModel,
        theta: Tensor,
        quantities: Mapping[str, Tensor],
        trace: Trace,
        *,
        route: str,
        diagnostics: Mapping[str, Any],
        statistics: Mapping[str, Tensor] | None = None,
        independent: bool = False,
    ) -> DrawsReport:
        """The report of draws (C, S, n), with the parameters that they stand for.

        Args:
            model: whose global latents they are.
            theta: the draws.
            quantities: from :func:`rotation_free`.
            trace: how they were made.
            route: its name, for the posteriors of latents to come.
            diagnostics: of the draws.
            statistics: of each draw, (C S,), besides its log joint density.
            independent: whether the draws are, as those of a guide, so that they are no chains.
        """
        values = {name: drawn.detach() for name, drawn in model.values(theta.flatten(0, 1)).items()}
        log_joint = (quantities["log_evidence"] + quantities["log_prior"]).flatten()
        draws = ParameterDraws(
            model.bound,
            values,
            route,
            int(log_joint.argmax()),
            diagnostics,
            None if independent else len(theta),
            {name: drawn.flatten(0, 1) for name, drawn in quantities.items()},
            {"lp": log_joint, **(statistics or {})},
        )
        return cls(
            draws=draws,
            theta=theta,
            quantities=quantities,
            trace=trace,
            diagnostics=diagnostics,
            warned=not trace.converged,
        )

    def posterior(self, data: MultimodalData, **options: Any) -> DrawsPosterior:
        """Recover the latents of some instances; options as :meth:`ParameterDraws.posterior` has them."""
        return self.draws.posterior(data, **options)

    def to_arviz(self) -> Any:  # noqa: ANN401 - the type depends on the ArviZ installed
        """Draws of the global latents alone for ArviZ, chain by chain, and of what no rotation changes.

        Look at the quantities first: the loadings themselves may disagree between chains by a rotation.
        """
        posterior, statistics = self.draws.variables()
        return to_container({"posterior": posterior, "sample_stats": statistics})


def run_nuts(
    bound: BoundModel,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    *,
    num_draws: int = 500,
    num_warmup: int = 500,
    num_chains: int = 4,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    full_mass: bool = False,
) -> DrawsReport:
    """Draw from the posterior of the global latents.

    Args:
        bound: a model that is conjugate given its global latents; its parameters stay as they are.
        data: N instances.
        seed: of everything.
        callback: called after each draw, warm-up included, with its number over all chains and the log joint, nats.
        num_draws: S, kept draws of each chain.
        num_warmup: draws of each chain before.
        num_chains: C, one after another.
        target_accept: acceptance probability that the step size is adapted to.
        max_tree_depth: a trajectory has at most 2^max_tree_depth steps.
        full_mass: adapt a dense mass matrix.

    Raises:
        NotConjugateError, ModelError: as :func:`~calmrl_prob.inference.parameters.collapsed.marginalize` does.
        ArgumentError, ArgumentTypeError: an option is out of range or of another type.
        NumericalError: the density is not finite where a chain starts.

    Warns:
        ReliabilityWarning: chains disagree, or transitions diverged.
    """
    start_seed, jitter_seed, chain_seed = spread_seeds(seed, 3)
    options = ChainOptions(
        num_draws=num_draws,
        num_warmup=num_warmup,
        num_chains=num_chains,
        seed=chain_seed,
        target_accept=target_accept,
        max_tree_depth=max_tree_depth,
        full_mass=full_mass,
    )
    model = marginalize(bound, data)
    chains = run_chains(
        potential=lambda at: -model.log_joint(at["theta"]),
        initial={"theta": chain_starts(model, num_chains, start_seed, jitter_seed)},
        options=options,
        device=data.device,
        callback=callback,
    )
    return _report(model, chains, (num_draws + num_warmup) * num_chains)


def _report(model: CollapsedModel, chains: Chains, num_iterations: int) -> DrawsReport:
    """The report of chains of the unconstrained globals; warns if they cannot be trusted."""
    theta = chains.draws["theta"]
    quantities = rotation_free(model, theta)
    found = chains.diagnose(moving(model, theta, quantities))
    problems = found.problems()
    warn_unreliable(problems)
    evidence = quantities["log_evidence"].flatten()
    trace = Trace(
        log_likelihood=evidence,
        objective=evidence + quantities["log_prior"].flatten(),
        num_iterations=num_iterations,
        converged=not problems,
        stop_reason="; ".join(problems) or "chains agree",
        criterion=found.max_r_hat,
        tolerance=MAX_R_HAT,
        form=model.form.route,
    )
    diagnostics = {
        **found.summary(),
        "acceptance": chains.acceptance,
        "step_size": chains.step_size,
        "divergences_by_chain": chains.divergences,
        "seconds": chains.seconds,
    }
    return DrawsReport.of(
        model,
        theta,
        quantities,
        trace,
        route="collapsed nuts",
        diagnostics=diagnostics,
        statistics={"diverging": torch.from_numpy(chains.diverging).flatten()},
    )


@torch.no_grad()
def chain_starts(model: CollapsedModel, num_chains: int, start_seed: int, jitter_seed: int) -> Tensor:
    """Starts of the chains, (C, n): about EM's fit where there is one, else about a draw from the prior.

    Raises:
        NumericalError: the density is finite at none of the places tried.
    """
    generator = torch.Generator().manual_seed(jitter_seed)
    for start in starting_points(model, 20, start_seed):
        if not bool(model.log_joint(start).isfinite()):
            continue
        found = []
        for _ in range(num_chains):
            noise = torch.randn(model.dim, generator=generator, dtype=torch.float64).to(start.device)
            size = _JITTER
            while size > 1e-6 and not bool(model.log_joint(start + size * noise).isfinite()):
                size /= 2
            found.append(start + size * noise)
        return torch.stack(found)
    raise NumericalError(
        "model: the density of the data is finite at none of the places where chains could start. Bring the data to "
        "the scale that the priors expect."
    )


@torch.no_grad()
def rotation_free(model: CollapsedModel, theta: Tensor) -> dict[str, Tensor]:
    """Quantities of draws theta (C, S, n) that are the same for all rotations of the latent, (C, S, ...) each.

    "log_evidence" and "log_prior"; for a linear-Gaussian form also, at up to 50 entries each, "signal_covariance"
    (W S0 W^T), "signal_mean" (W m0 + mu) and "noise_variance".
    """
    rows: dict[str, list[Tensor]] = {}
    picks = None
    for point in theta.flatten(0, 1):
        terms = model.terms(point)
        here = {"log_evidence": terms.evidence, "log_prior": terms.log_prior}
        structure = terms.structures[0]
        if isinstance(structure, LinearGaussian):
            picks = picks or Picks.of(structure)
            here |= picks.quantities(structure)
        for name, value in here.items():
            rows.setdefault(name, []).append(value.detach())
    return {name: torch.stack(values).reshape(*theta.shape[:2], *values[0].shape) for name, values in rows.items()}


@torch.no_grad()
def moving(model: CollapsedModel, theta: Tensor, quantities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of :func:`rotation_free` that differ between draws by more than rounding, (C, S, ...) each.

    What is known, such as a noise variance that is given, has no R-hat. It is computed anew for each draw all the same,
    and R-hat, being of ranks, would be of its last digits. What counts as rounding is measured by a feature's standard
    deviation under the model: no data are so many that a posterior would be that narrow.
    """
    structure = model.structures(theta[0, 0])[0]
    scales = Picks.of(structure).scales(structure) if isinstance(structure, LinearGaussian) else {}
    found = {}
    for name, values in quantities.items():
        flat = values.flatten(2) if values.ndim > 2 else values[..., None]
        moves = flat.amax((0, 1)) - flat.amin((0, 1)) > _ROUNDING * scales.get(name, flat.new_zeros(()))
        if bool(moves.all()):
            found[name] = values
        elif bool(moves.any()):
            found[name] = flat[..., moves]
    return found


@dataclass(frozen=True)
class Picks:
    """Choice of features, and of pairs of them, that are monitored: the same ones whatever the draw."""

    features: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, lg: LinearGaussian) -> Picks:
        """Up to 50 of each."""
        width = sum(lg.dims.values())
        generator = np.random.default_rng(0)
        features = np.sort(generator.permutation(width)[:_ENTRIES])
        first, second = np.triu_indices(width)
        chosen = np.sort(generator.permutation(len(first))[:_ENTRIES])
        return cls(torch.as_tensor(features), torch.as_tensor(first[chosen]), torch.as_tensor(second[chosen]))

    def quantities(self, lg: LinearGaussian) -> dict[str, Tensor]:
        """Entries of W S0 W^T, of W m0 + mu and of the noise variances."""
        loadings = torch.cat(list(lg.loadings.values()))
        left = loadings[self.first] @ lg.prior_covariance
        mean = loadings[self.features] @ lg.prior_mean + torch.cat(list(lg.intercepts.values()))[self.features]
        return {
            "signal_covariance": (left * loadings[self.second]).sum(1),
            "signal_mean": mean,
            "noise_variance": torch.cat(list(lg.noise_variance.values()))[self.features],
        }

    def scales(self, lg: LinearGaussian) -> dict[str, Tensor]:
        """Scales of these quantities, from the variance of each feature under the model."""
        loadings = torch.cat(list(lg.loadings.values()))
        noise = torch.cat(list(lg.noise_variance.values()))
        variance = ((loadings @ lg.prior_covariance) * loadings).sum(1) + noise
        deviation = variance.sqrt()
        return {
            "signal_covariance": deviation[self.first] * deviation[self.second],
            "signal_mean": deviation[self.features],
            "noise_variance": variance[self.features],
        }
