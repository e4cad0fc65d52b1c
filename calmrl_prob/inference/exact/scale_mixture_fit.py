"""Fitting Gaussian scale mixtures: the methods "scale em" and "scale mixture" of ``calmrl_prob.fit``.

"scale em" takes closed-form steps (``linear_gaussian/scale_em.py``) for models whose every parameter is free.
"scale mixture" is for any Pyro model with Student-t sites: L-BFGS on the evidence, or its bound where instances have
several scales, with the gradient of the expected log joint density at the present posterior (Fisher's identity).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from calmrl_prob._support.arguments import keyword_options, require_known_options
from calmrl_prob._support.progress import Callback
from calmrl_prob.conjugacy import ConjugateForm, discover
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import NotConjugateError
from calmrl_prob.inference.exact.gradient import ascend_evidence, trained_parameters
from calmrl_prob.inference.exact.scale_mixture import as_scale_mixture, scale_mixture_of
from calmrl_prob.inference.optimisers.ascent import ModeReport
from calmrl_prob.inference.protocols import Loads
from calmrl_prob.linear_gaussian import EMResult, ObservedBlocks, ScaleEMOptions, ScaleMixture, fit_scale_em
from calmrl_prob.linear_gaussian.scale_mixture.expectation import expected_log_joint, scale_moments
from calmrl_prob.priors import StudentTPrior
from calmrl_prob.programs.bound import BoundModel

#: What "scale em" settles itself; every other keyword of ``fit_scale_em`` is an option.
_SETTLED = ("noise", "student_t", "prior", "seed", "callback", "start", "prior_mean", "prior_covariance")
_OPTIONS = keyword_options(fit_scale_em, _SETTLED, ScaleEMOptions)
#: Sweeps of coordinate updates for one evaluation; each starts from where the last one ended.
_SWEEPS = 50


def run_scale_em(
    model: Loads,
    structure: ScaleMixture,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    **options: Any,
) -> EMResult[ScaleMixture]:
    """Fit a model with a Student-t prior, or Student-t noise, in place.

    Args:
        model: takes over what was found.
        structure: as the model states it: which factors are Student-t.
        data: N instances, whole modalities.
        seed: of the start.
        callback: called after each step with the number of E-steps so far and the evidence, nats.
        **options: keywords of :func:`calmrl_prob.linear_gaussian.fit_scale_em`; degrees of freedom stay above 2 unless
            ``least_degrees_of_freedom`` says otherwise, so that what is imputed has a variance.

    Raises:
        ArgumentError: an unknown option, one out of range, or single features are missing.
    """
    require_known_options(options, _OPTIONS, "method 'scale em'")
    options.setdefault("least_degrees_of_freedom", StudentTPrior.least)
    blocks: Any = data.conform(model.dims).blocks
    result = fit_scale_em(
        blocks,
        model.latent_dim,
        student_t=tuple(structure.degrees_of_freedom),
        prior=bool(structure.prior_degrees_of_freedom),
        noise=model.noise,
        seed=seed,
        callback=callback,
        **options,
    )
    model.load(result.structure)
    return result


def run_scale_mixture(
    bound: BoundModel,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    *,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
    form: ConjugateForm | None = None,
) -> ModeReport:
    """Maximise the evidence of a model with Student-t sites, or its lower bound, over its parameters, in place.

    Args:
        bound: the model.
        data: N instances, whole modalities.
        seed: not used; the ascent is deterministic from where the parameters stand.
        callback: called after each step with its number and the evidence, nats.
        max_iterations: steps at most.
        tolerance: stop when the gain still to be expected, extrapolated from the last steps, falls below this, in nats
            for each observed value.
        form: of the model on the data, generic, if it was discovered before.

    Returns:
        ``log_likelihood`` is the evidence where an instance has one scale, and its lower bound where it has several.

    Raises:
        NotConjugateError: the model has no such form; names the site.
        ModelError: it has no parameters.
        ArgumentError, ArgumentTypeError: an option is out of range or of another type.
        NumericalError: the evidence is not finite where the parameters stand.
    """
    form = discover(bound, data, generic=True) if form is None else form
    parameters = trained_parameters(bound)
    site = site_beyond_scale_mixtures(form, data)
    if site is not None:
        raise NotConjugateError(
            site,
            "Student-t site",
            "Closed forms for Student-t sites need one structure for all instances, whole modalities, and one "
            "distribution for all latents.",
            "svi, by cal.fit with method 'svi'",
        )
    blocks, shift = data.conform(form.structures[0].dims).blocks.centred()
    assert isinstance(blocks, ObservedBlocks)
    scales: list[Tensor] | None = None

    def terms() -> tuple[Tensor, Tensor]:
        nonlocal scales
        model, penalty = _read(form)
        model = model.about(shift)
        with torch.no_grad():
            moments = scale_moments(model.detach(), blocks, scales, _SWEEPS)
        scales = moments.scales
        expected = expected_log_joint(model, moments)
        return moments.evidence + (expected - expected.detach()), penalty

    return ascend_evidence(parameters, data, terms, callback, max_iterations, tolerance, form.route)


def site_beyond_scale_mixtures(form: ConjugateForm, data: MultimodalData) -> str | None:
    """A site that keeps :func:`run_scale_mixture` from serving; None if none does."""
    model, first = scale_mixture_of(form), next(iter(form.degrees_of_freedom), "z")
    if model is None or form.globals or data.has_partial_rows:
        return first
    blocks = model.prior_degrees_of_freedom
    return first if blocks and (len(blocks) > 1 or blocks[0][0] != slice(0, form.latent_dim)) else None


def _read(form: ConjugateForm) -> tuple[ScaleMixture, Tensor]:
    """The model at its present parameters, differentiable, and what it states of them outside the plate."""
    calls: list[Any] = []
    ((component,),) = form.prober.read(form.data, form.representatives, {}, calls)
    freedom = {n: s.degrees_of_freedom for n, s in component.sites.items() if s.degrees_of_freedom is not None}
    return as_scale_mixture(form.prober.assemble(component), form.latents, freedom), calls[0].log_prior()
