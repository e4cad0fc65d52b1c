"""Posterior and predictive draws for ArviZ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._arguments import checked_seed, chosen_names, whole_number
from calmrl_prob._versions import installed_version
from calmrl_prob.arviz_adapter import Group, Variable, to_container
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.collapsed_nuts import DrawsReport
from calmrl_prob.inference.exact import GaussianPosterior
from calmrl_prob.inference.parameter_draws import DrawsPosterior
from calmrl_prob.inference.posterior import Model, posterior
from calmrl_prob.inference.predictive import normal_log_density
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.results import Draw, PosteriorResult, checked_draws, seeded_generator
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.tracing import BoundModel

_DRAWS = ("chain", "draw")
#: Packages whose versions are written into the attributes.
_VERSIONS_OF = ("calmrl-prob", "torch", "pyro-ppl", "arviz", "xarray", "numpy")


@torch.no_grad()
def to_arviz(
    model: Model | PosteriorResult,
    data: MultimodalData,
    num_draws: int | None = None,
    seed: int = 0,
    *,
    num_chains: int | None = None,
    names: Sequence[str] | None = None,
) -> Any:  # noqa: ANN401 - the type depends on the ArviZ installed
    """Draw from the posterior, by whatever route, and lay the draws out for ArviZ.

    Where the parameters were sampled (the result of a fit by "nuts"), chains are the sampler's, and each draw of z
    comes under its own draw of the parameters: R-hat of ArviZ is that of the fit. Otherwise draws are independent and
    chains a formality: ArviZ compares chains, and with the S draws dealt to several of them its diagnostics run (and
    should find nothing). The groups, with draws as (chain, draw, ...):

    - posterior: ``z`` (instance, latent). Its axes are defined up to a rotation only, so also what no rotation
      changes: ``signal_<name>`` (instance, feature), W z + mu, and, by the exact route, ``z_distance`` (instance),
      (z - m0)^T S0^-1 (z - m0). Under draws of the parameters (fits by "nuts" and "svi") also these, by site; what no
      rotation changes and the fit's R-hat is of: ``log_evidence``, ``log_prior`` and, at some entries,
      ``signal_covariance``, ``signal_mean``, ``noise_variance``; and ``communality_<name>`` (feature).
    - posterior_predictive: each modality, ``signal`` plus noise (instance, feature), missing or observed. All
      modalities of a draw come from the same latent.
    - log_likelihood: each modality, log p(x_n^m | z_n) (instance), nats, NaN where missing.
    - observed_data: each modality (instance, feature), NaN where missing.
    - sample_stats: of a fit by "nuts" ``lp``, the log joint density, and ``diverging``; of "svi" ``lp``.
    - constant_data: ``observed_mask`` (instance, modality), True = PRESENT; ``log_marginal`` (instance), nats;
      by the exact route ``communality_<name>`` (feature), the share of a feature's variance that the latent explains,
      diag(W S0 W^T) / (diag(W S0 W^T) + psi); the labels, if there are any; and global latents that were fitted as one
      value (by "map"), by site.

    Where the parameters are fixed at their fitted values, ``arviz.loo`` of ``log_likelihood`` (over the instances that
    have the modality: drop the NaN) estimates the sum of log p(x_n^m | the other modalities of n): how well a held-out
    cell is predicted, not a held-out instance. For wide modalities its importance weights are unreliable, and ArviZ
    says so; the exact value is the difference of ``log_marginal`` with and without that modality.

    Memory: the draws of one modality take 2 S N D_m numbers in the data's type, z takes S N K. For much data take
    ``data.subset`` of the instances to look at, and ``names``.

    Args:
        model: whatever :func:`calmrl_prob.posterior` takes, or a result of it for the same data.
        data: N instances. Modalities of the model that they do not have at all count as missing.
        num_draws: S, over all chains; by default 500, or all that a sampler kept. Of a sampler's at most those are
            taken, evenly spaced in each chain, and R-hat is of those.
        seed: the same seed gives the same draws.
        num_chains: how many chains independent draws are dealt to, a divisor of ``num_draws``; 4 by default. A sampler
            has its own.
        names: modalities to draw signals and predictions of; all by default, none with ``()``. The other groups hold
            all modalities.

    Returns:
        An ``arviz.InferenceData`` before ArviZ 1.0, an ``xarray.DataTree`` since; both have ``to_netcdf``.

    Raises:
        ArgumentError: ``num_draws`` is not a multiple of ``num_chains``, ``num_chains`` is not the sampler's, one of
            them is below 1, ``seed`` is negative, or ``names`` has one twice.
        SchemaError: a modality that the model does not know, or one of another width.
        ArgumentTypeError: an argument is of another type (``names`` a string, say).

    Warns:
        UnfittedWarning: the model still has the random parameters that it started from.

    Example:
        >>> lg = LinearGaussian({"image": torch.ones(3, 1)}, {"image": torch.zeros(3)}, {"image": torch.tensor(1.0)})
        >>> idata = to_arviz(lg, MultimodalData({"image": torch.ones(2, 3)}), num_draws=20)
        >>> dict(idata["posterior_predictive"]["image"].sizes)
        {'chain': 4, 'draw': 5, 'instance': 2, 'feature_image': 3}
    """
    seed = checked_seed(seed)
    result = _result(model, data, num_draws, seed)
    num_draws, num_chains, numbers = _layout(result, num_draws, num_chains)
    data = data.conform(result.dims)
    known = tuple(result.dims)
    drawn = known if names is None else chosen_names(names, known, least=0)
    generator = seeded_generator(seed, data.device)
    if isinstance(result, DrawsPosterior) and numbers is not None:
        source = result.draws_under(numbers, generator, known)
    else:
        source = result.draws(num_draws, generator, known)
    latents, signals, predictions, densities, under = _draw(source, result, data, num_draws, generator, drawn)

    def draws(values: Tensor, *dims: str) -> Variable:
        shaped = values.view(num_chains, num_draws // num_chains, *values.shape[1:])
        return (*_DRAWS, *dims), _numpy(shaped)

    quantities = {"z": draws(latents, "instance", "latent")}
    quantities |= {f"signal_{n}": draws(value, "instance", f"feature_{n}") for n, value in signals.items()}
    predicted = {name: draws(value, "instance", f"feature_{name}") for name, value in predictions.items()}
    log_likelihood = {name: draws(value, "instance") for name, value in densities.items()}
    observed: dict[str, Variable] = {name: (("instance", f"feature_{name}"), _numpy(data[name])) for name in known}
    constant: dict[str, Variable] = {
        "observed_mask": (("instance", "modality"), _numpy(data.observed_mask)),
        "log_marginal": (("instance",), _numpy(result.log_marginal)),
    }
    if isinstance(result, GaussianPosterior):
        lg = result.linear_gaussian
        quantities["z_distance"] = draws(_distance(result, latents), "instance")
        constant |= {
            f"communality_{n}": ((f"feature_{n}",), _numpy(share)) for n, share in _communalities(lg, known).items()
        }
    statistics: Mapping[str, Variable] = {}
    if isinstance(result, DrawsPosterior):
        parameters, sampler = result.parameters.variables(torch.tensor(under), num_chains)
        quantities = {**parameters.variables, **quantities}
        statistics = sampler.variables
        shares = [_communalities(result.structure(number), known) for number in under]
        quantities |= {
            f"communality_{n}": draws(torch.stack([share[n] for share in shares]), f"feature_{n}")
            for n in known
            if all(n in share for share in shares)
        }
    bound = model.model if isinstance(model, FitResult) else model
    if isinstance(bound, BoundModel):
        constant |= {
            site: (tuple(f"{site}_{i}" for i in range(value.ndim)), _numpy(value))
            for site, value in bound.values.items()
        }
    if data.labels is not None:
        constant["labels"] = (("instance",), data.labels)
    coords: dict[str, NDArray[Any]] = {"modality": np.array(known)}
    if data.ids is not None:
        coords["instance"] = data.ids
    groups = {
        "posterior": quantities,
        "sample_stats": statistics,
        "posterior_predictive": predicted,
        "log_likelihood": log_likelihood,
        "observed_data": observed,
        "constant_data": constant,
    }
    attributes: dict[str, str | int | float] = {
        "inference_library": "calmrl-prob",
        "route": result.route,
        "seed": seed,
        "configuration": json.dumps(
            {
                "model": type(model).__name__,
                "noise": getattr(model, "noise", None),
                "dims": dict(result.dims),
                "latent_dim": latents.shape[-1],
                "num_instances": len(data),
                "num_draws": num_draws,
                "num_chains": num_chains,
            }
        ),
        **{f"version_{name}": installed_version(name) for name in _VERSIONS_OF},
    }
    filled = {name: Group(variables, coords) for name, variables in groups.items() if variables}
    return to_container(filled, attributes)


def _result(model: Model | PosteriorResult, data: MultimodalData, num_draws: int | None, seed: int) -> PosteriorResult:
    """The posterior; of a fit that drew parameters, over as many of these draws as are asked for."""
    if isinstance(model, PosteriorResult):
        return model
    if isinstance(model, FitResult) and isinstance(model.report, DrawsReport):
        return model.report.posterior(data, num_draws=num_draws or len(model.report.draws))
    return posterior(model, data, seed=seed)


def _layout(
    result: PosteriorResult, num_draws: int | None, num_chains: int | None
) -> tuple[int, int, Sequence[int] | None]:
    """Draws over all chains, chains, and which draws of the parameters, in order: None where any will do."""
    if isinstance(result, DrawsPosterior) and result.parameters.num_chains is not None:
        chains = result.parameters.num_chains
        if num_chains not in (None, chains):
            raise ArgumentError(f"num_chains: the sampler ran {chains} chains, got {num_chains}; leave it out.")
        length = result.num_draws // chains
        few = length if num_draws is None else min(length, max(1, checked_draws(num_draws) // chains))
        places = np.linspace(0, length - 1, few).round().astype(int)
        numbers = (np.arange(chains)[:, None] * length + places).ravel().tolist()
        return len(numbers), chains, numbers
    num_draws = checked_draws(500 if num_draws is None else num_draws)
    num_chains = whole_number("num_chains", 4 if num_chains is None else num_chains, least=1)
    if num_draws % num_chains:
        raise ArgumentError(
            f"num_draws: expected a multiple of num_chains, {num_chains}, so that all chains have equally many, "
            f"got {num_draws}."
        )
    return num_draws, num_chains, None


def _draw(
    source: Iterable[Draw],
    result: PosteriorResult,
    data: MultimodalData,
    num_draws: int,
    generator: torch.Generator,
    kept: Sequence[str],
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], list[int]]:
    """Latents (S, N, K); for each modality kept, its location and a draw about it, (S, N, D); log p(x | z), (S, N).

    Last the numbers of the draws of the parameters that they are under, if these were drawn.
    """
    num_instances = len(data)
    shape, device = (num_draws, num_instances), data.device
    signals = {n: torch.empty(*shape, result.dims[n], dtype=data.dtype, device=device) for n in kept}
    predictions = {name: torch.empty_like(signal) for name, signal in signals.items()}
    densities = {name: torch.empty(*shape, dtype=torch.float64, device=device) for name in result.dims}
    latents = []
    present = {name: data.feature_mask(name) for name in result.dims}
    values = {name: data.filled(name).double() for name in result.dims}
    under = []
    for s, draw in enumerate(source):  # (S, N, D) may not fit
        latents.append(draw.latents)
        if draw.number is not None:
            under.append(draw.number)
        for name, location in draw.location.items():
            variance = draw.noise_variance[name]
            cells = normal_log_density(values[name], location.double(), variance.double())
            density = torch.where(present[name], cells, 0).sum(dim=1)
            densities[name][s] = density.masked_fill(~data.observed(name), torch.nan)
            if name in signals:
                signals[name][s] = location
                scale = variance.sqrt().to(data.dtype)
                predictions[name][s] = signals[name][s] + scale * torch.randn(
                    location.shape, generator=generator, dtype=data.dtype, device=data.device
                )
    return torch.stack(latents), signals, predictions, densities, under


def _distance(result: GaussianPosterior, latents: Tensor) -> Tensor:
    """(z - m0)^T S0^-1 (z - m0), shape (S, N)."""
    width, prior = latents.shape[-1], result.linear_gaussian
    factor: Tensor = torch.linalg.cholesky(prior.prior_covariance[:width, :width])
    centred = (latents - prior.prior_mean[:width]).reshape(-1, width)
    whitened = torch.linalg.solve_triangular(factor, centred.mT, upper=False)
    distance: Tensor = whitened.square().sum(dim=0).view(latents.shape[:2])
    return distance


def _communalities(lg: LinearGaussian | None, names: Sequence[str]) -> dict[str, Tensor]:
    """diag(W S0 W^T) / (diag(W S0 W^T) + psi) of each modality, (D_m,) each; none where there is no one form."""
    if lg is None:
        return {}
    explained = {name: ((lg.loadings[name] @ lg.prior_covariance) * lg.loadings[name]).sum(dim=1) for name in names}
    return {name: signal / (signal + lg.noise_variance[name]) for name, signal in explained.items()}


def _numpy(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.detach().cpu().numpy()
    return array
