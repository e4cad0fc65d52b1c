"""``to_arviz``: posterior and predictive draws, by whatever route, for ArviZ."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from calmrl_prob._support.arguments import checked_seed, chosen_names, whole_number
from calmrl_prob._support.versions import installed_version
from calmrl_prob.arviz.adapter import storable_name, to_container
from calmrl_prob.arviz.draws import Plan, draw_arrays
from calmrl_prob.arviz.groups import PosteriorGroups, coordinates, draw_prior_within, fitted_values, prior_groups
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.parameters.nuts import DrawsReport
from calmrl_prob.inference.parameters.parameter_draws import DrawsPosterior, ParameterDraws
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.inference.protocols import Model
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.seen import require_rows
from calmrl_prob.posteriors.posterior import PosteriorResult, checked_draws, seeded_generator

logger = logging.getLogger(__name__)

#: Bytes that the arrays over draws, instances and features may take.
_MAX_BYTES = 2**28
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
    cells: Literal["all", "missing"] = "all",
    num_prior_draws: int = 20,
    max_bytes: int = _MAX_BYTES,
) -> Any:  # noqa: ANN401 - the type depends on the ArviZ installed
    """Draw from the posterior, by whatever route, and lay the draws out for ArviZ.

    Where the parameters were sampled (the result of a fit by "nuts"), chains are the sampler's, and each draw of z
    comes under its own draw of the parameters: R-hat of ArviZ is that of the fit. Otherwise draws are independent and
    chains a formality: ArviZ compares chains, and with the S draws dealt to several of them its diagnostics run (and
    should find nothing). The groups, with draws as (chain, draw, ...):

    - posterior: ``z`` (instance, latent). Its axes are defined up to a rotation only, so also what no rotation
      changes: ``signal_<name>`` (instance, feature), W z + mu, and, by the exact route, ``z_distance`` (instance),
      (z - m0)^T S0^-1 (z - m0). Under draws of the parameters (``parameter_draws``, fits by "nuts" and "svi") also
      these, by site (about a fit by EM ``intercepts_<name>``, ``noise_variance_<name>``); ``aligned_loadings_<name>``
      (feature, latent), turned to where they are nearest to one and the same reference (Procrustes), as z is; and what
      no rotation changes: ``log_evidence``, ``log_prior``, at some entries ``signal_covariance``, ``signal_mean``,
      ``noise_variance``, and, (feature) each, ``signal_variance_<name>``, diag(W S0 W^T), and ``communality_<name>``.
    - posterior_predictive: each modality, ``signal`` plus noise (instance, feature), missing or observed. All
      modalities of a draw come from the same latent. With ``cells="missing"`` instead ``imputed`` (cell), the missing
      cells alone, with coordinates instance, modality and feature.
    - log_likelihood: each modality, log p(x_n^m | z_n) (instance), nats, NaN where missing; under draws of the
      parameters also ``log_evidence`` (instance), log p(x_n | theta) of all that n has, with z integrated out.
    - observed_data: each modality (instance, feature), NaN where missing.
    - prior, prior_predictive: ``z``, global latents by site, and each modality, of as many instances, before their
      values are seen. Without a prior of the parameters, under those that were fitted or drawn. Not of models without
      a generative form.
    - sample_stats: of a fit by "nuts" ``lp``, the log joint density, and ``diverging``; of "svi" and of
      ``parameter_draws`` ``lp`` (of the latter the log evidence).
    - constant_data: ``observed_mask`` (instance, modality), True = PRESENT; ``log_marginal`` (instance), nats;
      by the exact route ``communality_<name>`` (feature), the share of a feature's variance that the latent explains,
      diag(W S0 W^T) / (diag(W S0 W^T) + psi); the labels, if there are any; and global latents that were fitted as one
      value (by "map"), by site.

    Model choice: under draws of the parameters ``arviz.loo(idata, var_name="log_evidence")`` estimates how well a new
    instance is predicted, and ``arviz.compare`` takes several such; Pareto k, by instance, says where not to trust it.
    Where the parameters are fixed at their fitted values, ``arviz.loo`` of a modality's ``log_likelihood`` (over the
    instances that have it: drop the NaN) estimates the sum of log p(x_n^m | the other modalities of n): how well a
    held-out cell is predicted. For wide modalities its importance weights are unreliable, and ArviZ says so; the exact
    value is the difference of ``log_marginal`` with and without that modality.

    Memory: the arrays over draws, instances and features stay within ``max_bytes``. Where they would not, signals are
    left out and posterior_predictive holds some of the draws, whose numbers its coordinate ``draw`` has; the attribute
    ``thinned`` and a logged warning say so. z takes S N K numbers, all draws of it are there. For much data take
    ``data.subset`` of the instances to look at, ``names``, or ``cells="missing"``.

    Args:
        model: whatever :func:`calmrl_prob.posterior` takes, or a result of it for the same data.
        data: N instances. Modalities of the model that they do not have at all count as missing.
        num_draws: S, over all chains; by default 500, or all that a sampler kept. Of a sampler's at most those are
            taken, evenly spaced in each chain, and R-hat is of those.
        seed: the same seed gives the same draws.
        num_chains: how many chains independent draws are dealt to, a divisor of ``num_draws``; 4 by default. A sampler
            has its own.
        names: modalities to draw signals and predictions of; all by default, none with ``()``. The other groups hold
            all modalities. A "/" in a name becomes "_", as it parts the groups of a file.

        cells: "all", or "missing" for predictions of the missing cells alone.
        num_prior_draws: draws of the prior, fewer where ``max_bytes / 4`` asks for it; 0 for none.
        max_bytes: of the wide arrays; 256 MiB by default.

    Returns:
        An ``arviz.InferenceData`` before ArviZ 1.0, an ``xarray.DataTree`` since; both have ``to_netcdf``, and
        ``from_arviz`` reads what they write.

    Raises:
        ArgumentError: ``num_draws`` is not a multiple of ``num_chains``, ``num_chains`` is not the sampler's, one of
            them is below 1, ``seed`` is negative, ``names`` has one twice, ``cells`` is another word, or the result
            given is of other instances than ``data``.
        SchemaError: a modality that the model does not know, or one of another width.
        ArgumentTypeError: an argument is of another type (``names`` a string, say).

    Warns:
        UnfittedWarning: the model still has the random parameters that it started from.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> lg = LinearGaussian({"image": torch.ones(3, 1)}, {"image": torch.zeros(3)}, {"image": torch.tensor(1.0)})
        >>> idata = to_arviz(lg, MultimodalData({"image": torch.ones(2, 3)}), num_draws=20)
        >>> dict(idata["posterior_predictive"]["image"].sizes)
        {'chain': 4, 'draw': 5, 'instance': 2, 'feature_image': 3}
    """
    seed = checked_seed(seed)
    if cells not in ("all", "missing"):
        raise ArgumentError(f"cells: expected 'all' or 'missing', got {cells!r}.")
    max_bytes = whole_number("max_bytes", max_bytes, least=1)
    num_prior_draws = whole_number("num_prior_draws", num_prior_draws)
    result = _result(model, data, num_draws, seed)
    num_draws, num_chains, numbers = _layout(result, num_draws, num_chains)
    data = require_rows(result, data)
    known = tuple(result.dims)
    _require_distinct(known)
    wanted = known if names is None else chosen_names(names, known, least=0)
    generator = seeded_generator(seed, data.device)
    if isinstance(result, DrawsPosterior) and numbers is not None:
        source = result.draws_under(numbers, generator, known)
    else:
        source = result.draws(num_draws, generator, known)
    checked_draws(num_draws, result.mean.numel(), result.mean.dtype)  # all draws of the latents are there
    plan = Plan.within(max_bytes, data, wanted, num_draws, num_chains, missing_only=cells == "missing")
    drawn = draw_arrays(source, result, data, num_draws, generator, wanted, plan)
    latent_dim = drawn.latents.shape[-1]
    groups = PosteriorGroups(result, data, drawn, plan, wanted).groups(fitted_values(model))
    prior = draw_prior_within(max_bytes // 4, model, data, num_prior_draws, seed, latent_dim)
    if prior is not None:
        groups |= prior_groups(prior, coordinates(data))
    note = plan.note(max_bytes) if wanted else ""
    if note:
        logger.warning("to_arviz: %s", note)
    attributes: dict[str, str | int | float] = {
        "inference_library": "calmrl-prob",
        "route": result.route,
        "seed": seed,
        "configuration": json.dumps(
            {
                "model": type(model).__name__,
                "noise": getattr(model, "noise", None),
                "dims": dict(result.dims),
                "latent_dim": latent_dim,
                "num_instances": len(data),
                "num_draws": num_draws,
                "num_chains": num_chains,
            }
        ),
        **{f"version_{name}": installed_version(name) for name in _VERSIONS_OF},
        **({"thinned": note} if note else {}),
    }
    return to_container({name: group for name, group in groups.items() if group.variables}, attributes)


def _result(model: Model | PosteriorResult, data: MultimodalData, num_draws: int | None, seed: int) -> PosteriorResult:
    """The posterior; of a fit that drew parameters, over as many of these draws as are asked for."""
    if isinstance(model, PosteriorResult):
        return model
    drawn = model.report.draws if isinstance(model, FitResult) and isinstance(model.report, DrawsReport) else model
    if isinstance(drawn, ParameterDraws):
        return drawn.posterior(data, num_draws=num_draws or len(drawn))
    return posterior(model, data, seed=seed)


def _require_distinct(names: Sequence[str]) -> None:
    """Refuse modalities that would have one name in a file."""
    stored = [storable_name(name) for name in names]
    for name in names:
        if stored.count(storable_name(name)) > 1:
            both = [other for other in names if storable_name(other) == storable_name(name)]
            raise ArgumentError(
                f"data: modalities {both} would both be called {storable_name(name)!r}, as '/' parts the groups of a "
                "file; rename one of them, in the data and before the fit."
            )


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
