"""Masked validation: hide modalities that are there, impute them, and keep truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arguments import chosen_names
from calmrl_prob._support.arrays import own_array
from calmrl_prob._support.progress import progress_bar
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.evaluation.imputation.held_out import HeldOut, array, energy_score
from calmrl_prob.evaluation.imputation.masking import Hiding, hidings, random_folds
from calmrl_prob.evaluation.imputation.options import ValidationOptions
from calmrl_prob.evaluation.imputation.uncertainty import Tables
from calmrl_prob.imputation import Imputation, Recalibrator, impute
from calmrl_prob.inference.copies import copy_to_fit
from calmrl_prob.inference.feature_names import aligned
from calmrl_prob.inference.fit import fit
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.inference.result import FitResult
from calmrl_prob.inference.seen import warn_if_seen
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.rescaled import Rescaled


class MaskedValidation(Tables):
    """Hidden modalities beside what was imputed in their place. Made by :func:`masked_validation`.

    Its tables (:meth:`summary`, :meth:`coverage`, :meth:`pit` and the others) are tidy pandas frames by modality,
    pattern, feature or instance.

    Attributes:
        parts: one :class:`calmrl_prob.evaluation.imputation.held_out.HeldOut` for each modality, pattern of others and
            fold: truth, predictive with its variance parts, joint log density, Mahalanobis distance, energy score.
        names: the M modalities of the data.
        num_instances: N.
        ids: (N,) of the data, or None.
        observed_mask: (N, M) bool, True = PRESENT in the data.
        hidden_count: (N, M), how often each cell was hidden and imputed.
        scheme: which cells were hidden: its name.
        refitted: whether each instance was imputed by a model fitted without it.
        fold: (N,), the fold of each instance; -1 where nothing was refitted.
        models: the model that imputed each fold, one alone where nothing was refitted.
        recalibrated: what the imputations were recalibrated with, or None.
        seed: of everything drawn.
    """

    def __init__(
        self,
        data: MultimodalData,
        parts: Sequence[HeldOut],
        hidden_count: NDArray[np.int64],
        scheme: str,
        fold: NDArray[np.int64],
        models: Sequence[Any],
        recalibrated: Recalibrator | None,
        seed: int,
    ) -> None:
        super().__init__(parts, data.names, len(data), data.ids)
        self.observed_mask = own_array(data.observed_mask)
        self.hidden_count, self.scheme, self.fold = hidden_count, scheme, fold
        self.models, self.recalibrated, self.seed = tuple(models), recalibrated, seed

    @property
    def refitted(self) -> bool:
        """Whether each instance was imputed by a model fitted without it."""
        return bool((self.fold >= 0).any())

    def __repr__(self) -> str:
        how = f"refitted in {len(self.models)} folds" if self.refitted else "not refitted"
        records = sum(len(part.rows) for part in self.parts)
        return (
            f"MaskedValidation({self.num_instances} instances, scheme {self.scheme!r}, {records} hidden cells in "
            f"{len({(part.modality, part.seen) for part in self.parts})} modality-pattern groups, {how}"
            f"{', recalibrated' if self.recalibrated is not None else ''})"
        )


@torch.no_grad()
def masked_validation(
    model: Any,  # noqa: ANN401 - whatever impute takes
    data: MultimodalData,
    scheme: str | Callable[..., Tensor] = "patterns",
    *,
    folds: int | None = None,
    refit: Callable[[MultimodalData, int], Any] | None = None,
    options: ValidationOptions | None = None,
    **settings: Any,
) -> MaskedValidation:
    """Hide modalities that instances have, impute them from the others, and compare.

    Without ``folds`` the model imputes as it is, so ``data`` must be rows that it was not fitted to: of training rows
    it knows the answer, and its intervals would look better than they are. With ``folds=k`` the rows are parted into k
    at random, each part is imputed by a model fitted to the others, and ``data`` can be the training rows.

    Args:
        model: what :func:`calmrl_prob.impute` takes; with folds and without ``refit``, one that ``cal.fit`` can fit.
            It is copied, and stays as it is.
        data: N instances, with modalities missing or not.
        scheme: "each" hides every cell once, alone; "patterns" hides it in every way, imputed from each set of the
            instance's other modalities; "random" shows a random set of each instance's modalities and hides the rest.
            Or a mechanism such as those of :mod:`calmrl_prob.data.missingness`, a function of (data, seed=...) that
            returns what is still to be seen. A modality of which an instance lacks features is neither hidden nor seen.
        folds: k, or None not to refit.
        refit: makes the model of a fold from (the other rows, the fold's number); by default a copy of ``model`` is
            fitted by ``cal.fit`` with ``settings``, and, where it is a FitResult, by the method and with the options
            that it was fitted with.
        options: what is hidden, how often, and how it is imputed.
        **settings: single ones of these options, by keyword: ``names``, ``repeats``, ``num_draws``, ``recalibrated``,
            ``seed``, ``progress``. All others are options of ``cal.fit``, of the refits.

    Raises:
        ArgumentError: an unknown scheme, too few rows for the folds, one draw, or no instance with two modalities.
        ArgumentTypeError: an argument is of another type.
        DataError: a modality of ``names`` is never hidden, since no instance has it and another.

    Warns:
        ReliabilityWarning: without folds, rows are among those that the model was fitted to.

    Example:
        >>> from calmrl_prob.datasets import make_synthetic
        >>> synthetic = make_synthetic(300, {"image": 4, "text": 3}, latent_dim=2, seed=0)
        >>> found = masked_validation(synthetic.truth, synthetic.complete)
        >>> found
        MaskedValidation(300 instances, scheme 'patterns', 600 hidden cells in 2 modality-pattern groups, not refitted)
        >>> found.summary(level=0.9)[["modality", "coverage"]].round(2).values.tolist()
        [['image', 0.9...], ['text', 0.9...]]
    """
    require_data(data)
    data = aligned(model, data)
    own = {field.name: settings.pop(field.name) for field in fields(ValidationOptions) if field.name in settings}
    options = ValidationOptions.of(options, own, "masked_validation")
    groups, hidden_count = _hidden_groups(data, scheme, options)
    if folds is None:
        warn_if_seen(model, data)
    fold, models = _folds(model, data, folds, refit, options.seed, settings)
    parts: list[tuple[HeldOut, Recalibrator | None]] = []
    bar = progress_bar("masked validation", len(groups) * len(models)) if options.progress else nullcontext()
    with bar as callback:
        for number, fitted in enumerate(models):
            for group in groups:
                rows = group.rows if folds is None else group.rows[fold[group.rows] == number]
                if len(rows):
                    part = Hiding(group.modality, group.seen, rows)
                    label = -1 if folds is None else number
                    parts.append(hold_out(fitted, data, part, label, replace(options, seed=options.seed + len(parts))))
                if callback is not None:
                    callback(len(parts), float("nan"))
    by = parts[0][1]
    name = scheme if isinstance(scheme, str) else getattr(scheme, "__name__", type(scheme).__name__)
    return MaskedValidation(data, [part for part, _ in parts], hidden_count, name, fold, models, by, options.seed)


def _hidden_groups(
    data: MultimodalData, scheme: str | Callable[..., Tensor], options: ValidationOptions
) -> tuple[list[Hiding], NDArray[np.int64]]:
    """The groups of cells to hide, and how often each cell is hidden, (N, M); of the chosen modalities alone."""
    chosen = list(data.names) if options.names is None else chosen_names(options.names, data.names)
    groups, hidden_count = hidings(data, scheme, options.repeats, options.seed)
    groups = [group for group in groups if group.modality in chosen]
    hidden_count[:, [m for m, name in enumerate(data.names) if name not in chosen]] = 0
    for name in chosen:
        if not any(group.modality == name for group in groups):
            raise DataError(
                f"modality {name!r}: no instance has it and another, so it is never hidden; give rows that have both, "
                f"or leave it out with names={[other for other in chosen if other != name]}."
            )
    return groups, hidden_count


def hold_out(
    model: Any,  # noqa: ANN401
    data: MultimodalData,
    group: Hiding,
    fold: int,
    options: ValidationOptions,
) -> tuple[HeldOut, Recalibrator | None]:
    """Impute one modality of some rows from the same others; the recalibration besides, where there is one."""
    name = group.modality
    whole = data.subset(group.rows).select([each for each in data.names if each in (*group.seen, name)])
    imputed = impute(model, whole.select(group.seen), names=[name], recalibrated=options.recalibrated)
    predictive, truth = imputed.predictive[name], whole[name]
    joint, distance = _joint(model, imputed, whole, name)
    draws = (draw[name] for draw in imputed.draws(options.num_draws, options.seed)) if options.num_draws else None
    held = HeldOut(name, group.seen, group.rows, fold, truth, predictive, joint, distance, energy_score(draws, truth))
    return held, imputed.recalibrated


def hidden_names(data: MultimodalData) -> list[str]:
    """Modalities that some instance has together with another, so that they can be hidden; all if there are none."""
    several = data.observed_mask.sum(dim=1) > 1
    found = [name for m, name in enumerate(data.names) if bool((data.observed_mask[:, m] & several).any())]
    return found or list(data.names)


def _joint(
    model: Any,  # noqa: ANN401
    imputed: Imputation,
    whole: MultimodalData,
    name: str,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log p(x^m | seen) and the Mahalanobis distance of the same, both as differences of with and without x^m.

    log p(x^m | x) = log p(x^m, x) - log p(x), and -2 of its quadratic part alike: K-dimensional work per pattern (the
    posterior's own Woodbury form), nothing D x D. A rescaled predictive is the model's at the value scaled back.
    """
    predictive, correction = imputed.predictive[name], np.zeros(len(whole))
    if isinstance(predictive, Rescaled):
        arrays = {n: predictive.restore(whole[n]) if n == name else whole[n] for n in whole.names}
        factor = predictive.factor.expand_as(predictive.mean)
        correction = -0.5 * array(factor.log().sum(dim=1))
        whole = MultimodalData(arrays, ids=whole.ids, labels=whole.labels, covariates=whole.covariates)
    both, seen = posterior(model, whole), imputed.posterior
    joint = array(both.log_marginal.double() - seen.log_marginal.double()) + correction
    if not (isinstance(both, GaussianPosterior) and isinstance(seen, GaussianPosterior)):
        return joint, np.full(len(joint), np.nan)
    return joint, array(both.exact.mahalanobis.double() - seen.exact.mahalanobis.double())


def _folds(
    model: Any,  # noqa: ANN401
    data: MultimodalData,
    folds: int | None,
    refit: Callable[[MultimodalData, int], Any] | None,
    seed: int,
    fit_options: dict[str, Any],
) -> tuple[NDArray[np.int64], list[Any]]:
    """The fold of each row, and the model of each fold."""
    if folds is None:
        if refit is not None or fit_options:
            raise ArgumentError(
                f"folds: {sorted(fit_options) or 'refit'} given, as for refits, but nothing is fitted without folds; "
                "pass folds=5, or leave that out."
            )
        return np.full(len(data), -1), [model]
    fold = random_folds(folds, len(data), seed)
    return fold, list(_refitted(model, data, fold, refit, fit_options))


def _refitted(
    model: Any,  # noqa: ANN401
    data: MultimodalData,
    fold: NDArray[np.int64],
    refit: Callable[[MultimodalData, int], Any] | None,
    fit_options: dict[str, Any],
) -> Iterator[Any]:
    for number in range(int(fold.max()) + 1):
        others = data.subset(fold != number)
        if refit is not None:
            yield refit(others, number)
            continue
        options = dict(fit_options)
        if isinstance(model, FitResult):  # as it was fitted
            known = {"method": model.method} if model.method != "own" else {}
            options = {"seed": model.seed, **known, **model.options, **options}
        with torch.enable_grad():
            yield fit(copy_to_fit(model), others, **options)
