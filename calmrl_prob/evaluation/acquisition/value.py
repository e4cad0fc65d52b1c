"""The value of information: what observing a modality that an instance lacks is expected to tell."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from calmrl_prob._support.arguments import checked_seed, whole_number
from calmrl_prob._support.arrays import own_array
from calmrl_prob._support.randomness import spread_seeds
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import SchemaError
from calmrl_prob.evaluation.acquisition.by_draws import drawn_gains
from calmrl_prob.evaluation.acquisition.closed_forms import gaussian_gains, process_gains, student_t_gains
from calmrl_prob.evaluation.acquisition.mixtures import mixture_gains, scale_mixture_gains
from calmrl_prob.evaluation.acquisition.question import Gains, Question
from calmrl_prob.evaluation.acquisition.result import ValueOfInformation
from calmrl_prob.inference.exact.process import GaussianProcessPosterior
from calmrl_prob.inference.exact.scale_mixture import ScaleMixtureResult
from calmrl_prob.inference.parameters.parameter_draws import DrawsPosterior
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.inference.protocols import Model
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.seen import require_rows
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.mixture import MixtureResult
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.posteriors.structured import StructuredPosterior
from calmrl_prob.posteriors.student_t import StudentTResult


@torch.no_grad()
def value_of_information(
    model: Model | FitResult | PosteriorResult,
    data: MultimodalData,
    target: str | None = None,
    *,
    num_draws: int = 256,
    seed: int = 0,
    **options: Any,
) -> ValueOfInformation:
    """Value of observing each modality that an instance lacks, so that one knows what to acquire next.

    About the latents, with P_Omega the posterior precision given the modalities Omega that the instance has,

        I(z; x^m | x_Omega) = 1/2 (logdet(P_Omega + W^mT Psi^m^-1 W^m) - logdet P_Omega)

    which depends on the missing pattern alone. About a target modality t, with C_t the covariance of its predictive,

        I(x^t; x^m | x_Omega) = 1/2 E[logdet C_t(x_Omega) - logdet C_t(x_Omega, x^m)]

    and beside it the expected drop of tr C_t, the sum of the squared errors that imputation stands to lose; all in K
    dimensions. Where single features are missing, the gain of a modality is that of the features which the instance
    still lacks, and about those of the target.

    What the routes do: Gaussian (by structure or process too) and Student-t with one scale for all: closed form.
    Mixture and Student-t priors: the mean log-density ratio over draws, without bias, with its standard error.
    Parameters known by draws: the mean over them. All others: a bound by draws that is at most log(num_draws), by the
    density of each site itself; only sites whose features have no marginals that are known count as normal.

    Sources: Lindley, On a measure of the information provided by an experiment (1956); MacKay, Information-based
    objective functions for active data selection (1992).

    Args:
        model: whatever :func:`calmrl_prob.posterior` takes, a fit, or a posterior of the same data.
        data: N instances; modalities of the model that they do not have at all count as missing everywhere.
        target: the modality that the gain is to be about; by default the latents.
        num_draws: S, for each instance, of routes that draw.
        seed: of draws.
        **options: of :func:`calmrl_prob.posterior`.

    Returns:
        Gains (N, M) in nats, with a ranking, and tables by pattern and instance.

    Raises:
        SchemaError: ``target`` is no modality of the model, or the data have one that is not, or of another width.
        ArgumentTypeError: ``model`` or ``data`` is of another type.
        ArgumentError: an option is unknown or out of range; all draws would not fit into memory; or single features are
            missing, and the route has neither a closed form nor a mixture.

    Warns:
        ReliabilityWarning: a bound by draws is within a nat of the most that so many draws can show.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> lg = LinearGaussian(
        ...     {"image": torch.ones(1, 1), "text": torch.ones(1, 1), "sound": torch.ones(2, 1)},
        ...     {"image": torch.zeros(1), "text": torch.zeros(1), "sound": torch.zeros(2)},
        ...     {"image": torch.tensor(1.0), "text": torch.tensor(1.0), "sound": torch.tensor(4.0)},
        ... )
        >>> found = value_of_information(lg, MultimodalData({"image": torch.tensor([[0.5], [2.0]])}))
        >>> found
        ValueOfInformation(2 instances, 4 cells to acquire, about the latents; most: 0.203 nats by 'text' of 0)
        >>> found.gain[0].round(3).tolist()  # log(3 / 2) / 2, and log(5 / 4) / 2
        [nan, 0.203, 0.112]
        >>> found.ranking(1)[["instance", "modality"]].values.tolist()
        [[0, 'text']]
    """
    require_data(data)
    num_draws, seed = whole_number("num_draws", num_draws, least=2), checked_seed(seed)
    given = model if isinstance(model, PosteriorResult) else _posterior(model, data, seed, options)
    data = require_rows(given, data)
    if target is not None and target not in given.dims:
        raise SchemaError(f"target: the model has no modality {target!r}; it has {list(given.dims)}.")
    question = _asked(data, target, num_draws, seed)
    gains = gains_of(given, question)
    if bool(gains.capped.any()):
        most = f"log(num_draws) = {math.log(num_draws):.1f} nats"
        warn_unreliable(
            [f"{int(gains.capped.sum())} gains are near the most that the draws can show, {most}; raise num_draws"]
        )
    return ValueOfInformation(
        gain=gains.information.cpu().numpy(),
        names=data.names,
        observed_mask=own_array(data.observed_mask),
        target=target,
        trace_drop=None if target is None else gains.trace_drop.cpu().numpy(),
        standard_error=gains.error.cpu().numpy(),
        trace_drop_error=None if target is None else gains.drop_error.cpu().numpy(),
        ids=np.arange(len(data)) if data.ids is None else data.ids,
        route=given.route,
        method=gains.method,
    )


def _posterior(model: Model | FitResult, data: MultimodalData, seed: int, options: dict[str, Any]) -> PosteriorResult:
    if isinstance(model, FitResult):
        return model.posterior(data, **options)
    return posterior(model, data, seed=seed, **options)


def _asked(data: MultimodalData, target: str | None, num_draws: int, seed: int) -> Question:
    if not data.has_partial_rows:
        lacking, present = ~data.observed_mask, data.observed_mask
    else:
        parts = [data.feature_mask(name) for name in data.names]
        lacking, present = torch.stack([~part.all(1) for part in parts], dim=1), torch.cat(parts, dim=1)
    return Question(data.names, lacking, present, target, num_draws, seed)


def gains_of(given: PosteriorResult, question: Question) -> Gains:
    """The gains under a posterior, in the way that its form allows."""
    if isinstance(given, StructuredPosterior):
        seeds = spread_seeds(question.seed, len(given.parts))
        parts = [
            (rows, gains_of(part, replace(question.of(rows), seed=own)))
            for (rows, part), own in zip(given.parts, seeds, strict=True)
        ]
        return Gains.together(question, parts)
    if isinstance(given, DrawsPosterior):
        seeds = spread_seeds(question.seed, given.num_draws)
        return Gains.averaged([gains_of(given.given(s), replace(question, seed=own)) for s, own in enumerate(seeds)])
    if isinstance(given, GaussianPosterior):
        return gaussian_gains(given, question)
    if isinstance(given, StudentTResult):
        return student_t_gains(given, question)
    if isinstance(given, GaussianProcessPosterior):
        return process_gains(given, question)
    if isinstance(given, MixtureResult) and given.mixture.shares_likelihood:
        return mixture_gains(given, question)
    if isinstance(given, ScaleMixtureResult) and not given.scale_mixture.degrees_of_freedom:
        return scale_mixture_gains(given, question)
    return drawn_gains(given, question)
