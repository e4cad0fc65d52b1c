"""The linear-Gaussian form that an index scores by."""

from __future__ import annotations

from contextlib import suppress

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, NotConjugateError
from calmrl_prob.evaluation.retrieval.exact_forms import form_of, stated_form
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.inference.protocols import HasPosterior, Model
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import LinearGaussian


def one_form(model: Model, candidates: MultimodalData | MultimodalStream) -> LinearGaussian:
    """The linear-Gaussian form of a model.

    Raises:
        ArgumentError: it has none, or several.
    """
    subject = model
    if isinstance(model, FitResult) and not isinstance(model.report, HasPosterior):  # the model is all there is to it
        subject = model.model
    form = stated_form(subject)
    if form is None:
        rows = candidates if isinstance(candidates, MultimodalData) else next(candidates.chunks())
        with suppress(NotConjugateError):
            form = form_of(posterior(model, rows, method="exact"))
    if form is None or not form.plain or not form.one_gaussian:
        raise ArgumentError(
            "model: expected one linear-Gaussian form for all instances, got a mixture, a Student-t prior, batches, "
            "loadings by covariates, draws, or none at all. cal.retrieve(model, queries, candidates) serves these."
        )
    return form.components[0]
