"""Fitting with what was left open chosen: the function that users call as ``calmrl_prob.fit``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from calmrl_prob._support.arguments import checked_seed, require_known_options
from calmrl_prob._support.normal_mode import normal_mode
from calmrl_prob.batch_effects import PARTIAL
from calmrl_prob.data import MultimodalData, require_enough
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, SchemaError
from calmrl_prob.inference.exact.em import EM_OPTIONS
from calmrl_prob.inference.exact.preparation import require_spread
from calmrl_prob.inference.feature_names import remember, require_features
from calmrl_prob.inference.fit import fit as fit_settled
from calmrl_prob.inference.normal_mode import normal_data, require_trainable
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import EMOptions, SufficientStatistics
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.priors import NormalPrior
from calmrl_prob.selection.chosen_fit import ChosenFit
from calmrl_prob.selection.folds import FoldedStatistics
from calmrl_prob.selection.gathering import GatherOptions
from calmrl_prob.selection.ladder import Freedom
from calmrl_prob.selection.options import ChoiceOptions
from calmrl_prob.selection.reliability import warn_of_plain_likelihood
from calmrl_prob.selection.settings import SETTLES_PRIOR
from calmrl_prob.selection.shown import shown
from calmrl_prob.selection.stream_pass import gather

#: Options of EM that need no data to be refused.
_FIELDS = {field.name for field in fields(EMOptions)}
_OF_PASS = [field.name for field in fields(GatherOptions)]


def fit(
    model: Any,  # noqa: ANN401 - whatever a method takes
    data: MultimodalData | MultimodalStream | SufficientStatistics | FoldedStatistics,
    method: str = "auto",
    *,
    seed: int = 0,
    progress: bool | None = None,
    shrinkage: Literal["auto", "held-out"] | None = "auto",
    choice: ChoiceOptions | None = None,
    **options: Any,
) -> FitResult:
    """Fit a model to incomplete data, in place, with the settings chosen that were left open.

    A ``SharedLatentModel(data.dims)`` leaves K and the form of the noise open. They and the shrinkage are chosen by how
    well whole modalities of held-out rows are imputed, all on the rows given: each setting is fitted to all folds but
    one, and scored on that one by squared error and log score (``selection/scores.py``). ``fit.choice`` tells what was
    tried; ``fit.intervals``, learned from the same held-out rows, makes the intervals of ``cal.impute`` hold what they
    say. Where sufficient statistics are cheaper than rows, or all there is (:class:`FoldedStatistics`), choosing costs
    the same however many rows there were.

    A model of a given K, and any other model, is fitted as it stands: by maximum likelihood unless ``options`` ask for
    a prior, by the methods of :func:`calmrl_prob.inference.fit`, whose options these are.

    Args:
        model: a ``SharedLatentModel``, anything like those in ``models/``, or any Pyro callable with a plate
            "instances". Its parameters are replaced.
        data: N instances with the modalities of the model; a stream of them, over which one pass is made, into
            statistics by fold; or such statistics.
        method: "auto", or a method by name.
        seed: of folds and fits.
        progress: show a progress bar on standard error; by default where it takes more than a few seconds and standard
            error is a terminal.
        shrinkage: "auto" chooses the prior where K is open too; "held-out" also for a given K; None for none at all:
            plain maximum likelihood.
        choice: how to choose, :class:`ChoiceOptions`; its defaults if not given.
        **options: fields of ``choice`` by name, such as ``criterion="retrieval"``, ``groups``, ``budget`` or
            ``families=("normal", "student_t", "mixture")``, which offers priors of the latents that are not normal; all
            others are options of the method, such as ``tolerance``; one that gives a prior, such as ``pseudo_rows``,
            keeps it from being chosen. Of a stream those of :class:`~calmrl_prob.selection.gathering.GatherOptions`
            besides, such as ``state``, a file by which a pass that was killed goes on, or ``engine="dask"``; its
            ``groups`` are the name of a covariate, or a function of a chunk.

    Returns:
        The trace of the fit, the choice and the intervals; ``model`` of the result is the fitted model.

    Raises:
        ArgumentError: an unknown method or option, or one out of range; options of the choice where nothing is open;
            statistics of all rows together where something is to be chosen: they cannot be held out.
        SchemaError, DataError: as :func:`calmrl_prob.inference.fit` does.

    Warns:
        ReliabilityWarning: a modality is imputed no better than by its mean; or plain maximum likelihood has so many
            parameters for the rows that its intervals claim too much; or nothing could be held out; or held-out rows
            err as the rows beside them do, so that ``groups`` may be wanted; or features have fewer than 5 values.
        IdentifiabilityWarning, ConvergenceWarning: as :func:`calmrl_prob.inference.fit`.

    Example:
        >>> import calmrl_prob as cal
        >>> synthetic = cal.datasets.make_synthetic(400, {"image": 12, "text": 8}, latent_dim=3, seed=0)
        >>> model = cal.SharedLatentModel(synthetic.data.dims)
        >>> fit = cal.fit(model, synthetic.data)
        >>> int(fit.choice.table["chosen"].sum()), fit.choice.r2["text"] > 0.5
        (1, True)
        >>> fit.intervals.table()["modality"].unique().tolist()
        ['image', 'text']
    """
    by_name = [field.name for field in fields(ChoiceOptions)]
    asked = {key: options.pop(key) for key in [*options] if key in by_name}
    how = ChoiceOptions.of(choice, asked, "the choice")
    if isinstance(model, SharedLatentModel) and model.batch is not None and not isinstance(data, MultimodalData):
        raise ArgumentError(PARTIAL)
    of_pass = {key: options.pop(key) for key in [*options] if key in _OF_PASS and isinstance(data, MultimodalStream)}
    passed = GatherOptions.of(None, of_pass, "a stream")
    freedom = _freedom(model, shrinkage, options, data)
    if freedom is None:
        if asked or choice is not None:
            raise ArgumentError(
                f"{next(iter(asked), 'choice')}: nothing is open to be chosen; make the model with latent_dim=None, or "
                "pass shrinkage='held-out'."
            )
        if isinstance(data, MultimodalStream):
            data = gather(data, 1, checked_seed(seed), passed, None, progress, like=model)
        if isinstance(data, FoldedStatistics):
            data = data.total
        found = fit_settled(model, data, method, seed=seed, progress=bool(progress), **options)
        passed.end()
        warn_of_plain_likelihood(found, data)
        return found
    if method not in ("auto", "em"):
        raise ArgumentError(f"method: {method!r} does not choose latent_dim; give the model latent_dim, or use 'em'.")
    of_stream = next((key for key in options if key in _OF_PASS), None)
    if of_stream is not None:
        raise ArgumentError(
            f"{of_stream}: it is of a pass over a stream, and these data are in memory; leave it out, or give a "
            "stream, as cal.read(..., stream=True) does."
        )
    more = _OF_PASS if isinstance(data, MultimodalStream) else ()
    require_known_options(options, [*EM_OPTIONS, *by_name, *more], "method 'em' with a choice")
    EMOptions.of(None, {key: value for key, value in options.items() if key in _FIELDS}, "method 'em'")
    require_trainable(model)
    if isinstance(data, MultimodalStream):
        by = {key: asked.pop(key, None) for key in ("folds", "groups")}["groups"]
        data = gather(data, how.folds, checked_seed(seed), passed, by, progress, like=model)
    with normal_mode():
        data = _checked(normal_data(data), model, asked)
        with shown(progress, "choosing settings", None, data) as callback:
            found = ChosenFit(model, data, checked_seed(seed), how, freedom, callback).fit(options)
    remember(found.model, data)
    passed.end()
    return found


def _freedom(model: object, shrinkage: object, options: Mapping[str, Any], data: object) -> Freedom | None:
    """Parts of the settings that are open; None if nothing is."""
    if shrinkage not in ("auto", "held-out", None):
        raise ArgumentError(f"shrinkage: expected 'auto', 'held-out' or None, got {shrinkage!r}.")
    if not isinstance(model, SharedLatentModel):
        if shrinkage == "held-out":
            raise ArgumentError("shrinkage: 'held-out' serves a SharedLatentModel; of others see cal.choose_shrinkage.")
        return None
    latent_dim, noise = model.requested
    if latent_dim is not None and shrinkage == "held-out" and not isinstance(model.prior, NormalPrior):
        raise ArgumentError(
            f"shrinkage: 'held-out' serves a normal prior, and the model's is {model.prior.name}; leave it out."
        )
    given = any(key in options for key in SETTLES_PRIOR)
    shrunk = not given and (shrinkage == "held-out" or (shrinkage == "auto" and latent_dim is None))
    correlated = not (isinstance(data, MultimodalData) and data.has_partial_rows)
    freedom = Freedom(latent_dim is None, latent_dim is None and noise is None, shrunk, correlated)
    return freedom if freedom.latent_dim or freedom.shrinkage else None


def _checked(data: object, model: SharedLatentModel, asked: Mapping[str, Any]) -> MultimodalData | FoldedStatistics:
    if isinstance(data, SufficientStatistics):
        raise ArgumentError(
            "data: statistics of all rows together cannot tell how held-out rows are imputed; gather one a fold and "
            "give FoldedStatistics([...]), or the rows, or a model with latent_dim and shrinkage=None."
        )
    if isinstance(data, FoldedStatistics):
        settled = [key for key in ("folds", "groups") if key in asked]
        if settled:
            raise ArgumentError(
                f"{settled[0]}: the rows of FoldedStatistics are dealt to folds already; deal them as you want them, "
                "and leave it out."
            )
        if list(data.dims.items()) != list(model.dims.items()):
            raise SchemaError(f"data: expected statistics of {dict(model.dims)} in this order, got {data.dims}.")
        require_features(model, data)
        return data
    if not isinstance(data, MultimodalData):
        fit_settled(model, data)  # type: ignore[arg-type]  # refuses it in its own words
    assert isinstance(data, MultimodalData)
    data.require_schema(model.dims)
    require_enough(data)
    require_spread(data, each=False)
    return data.conform(model.dims)
