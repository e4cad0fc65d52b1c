"""Recalibration: put the stated uncertainty of imputations right by what held-out rows tell."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief, chosen_names, described, whole_number
from calmrl_prob._support.warnings import level_of_caller
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, ReliabilityWarning
from calmrl_prob.evaluation.imputation.held_out import HeldOut
from calmrl_prob.evaluation.imputation.masked_validation import MaskedValidation, hidden_names, masked_validation
from calmrl_prob.inference.fingerprint import fingerprint
from calmrl_prob.inference.posterior import posterior
from calmrl_prob.inference.seen import warn_if_not_seen
from calmrl_prob.posteriors.predictive import Predictive
from calmrl_prob.posteriors.rescaled import Rescaled
from calmrl_prob.recalibration.conformal import ConformalPredictive, norm_moments, upper_end
from calmrl_prob.recalibration.scores import PatternScores, SortedScores, needed_instances

Method = Literal["scale", "conformal", "cv", "cv+"]
#: Instances that a group needs for a quantile of each feature apart.
_ROWS_BY_FEATURE = 50
#: Level of intervals that are asked for where nobody says another.
_USUAL_LEVEL = 0.9
#: A pattern without a group of its own is warned of, from so many instances and such a ratio of squared errors on.
_ROWS_TO_TELL, _MUCH_GREATER = 10, 2.0
#: Relative standard error of a factor that is warned of; the spread of squared errors between instances that is taken
#: at the least, since few instances may be alike by chance; and instances that are enough as a rule.
_MUCH_ERROR, _LEAST_SPREAD, _ROWS_FOR_A_FACTOR = 1 / 3, 0.5, 30
#: What is true of the intervals of each method, n calibration instances of a group exchangeable with the new one.
GUARANTEES: dict[str, str] = {
    "scale": "none: right on average over the calibration rows if errors are normal",
    "conformal": (
        "an interval of level q holds the truth with probability from q to q + 1/(n + 1) (no ties), over calibration "
        "and new instance, for each pattern that has a group of its own; for others on average over patterns"
    ),
    "cv": (
        "none in finite samples: of level q if the models of the folds err as that of all rows does, and more where "
        "they, having seen fewer rows, err more"
    ),
    "cv+": (
        "an interval of level q holds the truth with probability of at least 2q - 1 - sqrt(2/n), about q in practice, "
        "if the model is fitted to the calibration rows; for patterns as for 'conformal'"
    ),
}


class Recalibration:
    """Recalibration of intervals, learned from held-out rows by :func:`recalibrate`; ``cal.impute`` takes it.

    Attributes:
        method: "scale", "conformal", "cv" or "cv+".
        groups: for each modality its groups by pattern, and under None that of all patterns together.
        names: all modalities of the model, in the order of the calibration data.
    """

    def __init__(
        self,
        method: Method,
        groups: Mapping[str, Mapping[str | None, PatternScores]],
        names: Sequence[str],
        models: Sequence[Any],
        fingerprint: str | None,
    ) -> None:
        self.method, self.groups, self.names = method, groups, tuple(names)
        self._models, self._fingerprint = tuple(models), fingerprint

    @property
    def guarantee(self) -> str:
        """Guarantee of the intervals, n being the ``num_instances`` of :meth:`table`."""
        return GUARANTEES[self.method]

    def table(self, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> pd.DataFrame:
        """One row for each group.

        Returns:
            modality; pattern (None: all patterns together, which serves those without a group of their own);
            num_instances; factor, mean over features; and for each level what the half-widths of its intervals are in
            standard deviations of the model, mean over features, NaN where there are too few instances.
        """
        rows = []
        for groups in self.groups.values():
            for group in groups.values():
                row: dict[str, Any] = {
                    "modality": group.modality,
                    "pattern": group.pattern,
                    "num_instances": group.num_instances,
                }
                row["factor"] = float(group.factor.mean())
                if self.method != "scale":
                    zero = torch.zeros(1, len(group.factor), dtype=torch.float64)
                    count = len(group.features)
                    for level in levels:
                        ends = upper_end(group.features, [zero] * count, [zero + 1] * count, level).mean()
                        row[f"half_width_{level:g}"] = float(ends) if bool(ends.isfinite()) else np.nan
                rows.append(row)
        return pd.DataFrame(rows)

    def parts(self) -> dict[str, Any]:
        """Parts that a file keeps, of which :meth:`from_parts` makes the same again."""
        return {
            "method": self.method,
            "groups": {name: list(groups.values()) for name, groups in self.groups.items()},
            "names": list(self.names),
            "models": list(self._models),
            "fingerprint": self._fingerprint,
        }

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Recalibration:
        """The recalibration that :meth:`parts` took apart, of a model with the same parameters.

        Raises:
            ArgumentError: they do not go together.
            KeyError, TypeError, AttributeError: something of them is missing, or is of another type.
        """
        method, names, models = parts["method"], parts["names"], parts["models"]
        groups = {name: {group.pattern: group for group in own} for name, own in parts["groups"].items()}
        folds = len(models) if method == "cv+" else 1
        if method not in GUARANTEES or not set(groups) <= set(names) or not folds:
            raise ArgumentError(f"recalibration: of method {brief(method)} and modalities {brief(list(groups))}.")
        for name, own in groups.items():
            if None not in own or not all(group.is_whole(name, folds) for group in own.values()):
                raise ArgumentError(f"recalibration: the scores of modality {name!r} are not whole.")
        return cls(method, groups, names, models, parts["fingerprint"])

    def bind(self, model: object) -> None:
        """Take the parameters that a model has now for those that this was made for."""
        self._fingerprint = fingerprint(model)

    def fits(self, model: object) -> bool:
        """Whether a model has the parameters that this was made for, as far as they can be compared."""
        found = fingerprint(model)
        return None in (found, self._fingerprint) or found == self._fingerprint

    def require_model(self, model: object) -> None:
        """Refuse a model whose parameters are not those that this was made for, as far as they can be compared.

        Raises:
            ArgumentError: they have changed, by another fit say.
        """
        if not self.fits(model):
            raise ArgumentError(
                "recalibrated: it was made for other parameters, or draws of them, than this model has now; call "
                "cal.recalibrate again with this one."
            )

    def predictive(self, name: str, base: Predictive, data: MultimodalData) -> Predictive:
        """The predictive of one modality, put right for the other modalities that each instance has.

        Of a modality that the instance has too, it is put right as if it lacked it: no calibration row has a second
        measurement of it to compare with.

        Raises:
            DataError: the modality was never hidden in the calibration rows.
        """
        groups, index = self._index(name, data)
        width = base.mean.shape[1]
        factor = torch.stack([group.factor.expand(width) for group in groups]).to(base.mean)[index]
        if self.method == "scale":
            return Rescaled(base, factor)
        return ConformalPredictive(base, factor, self._folds(name, base, data), groups, index)

    def norm_interval(self, name: str, base: Predictive, data: MultimodalData, level: float) -> tuple[Tensor, Tensor]:
        """Intervals of |x^m|, (N,) each: conformal, from scores of the norm; not below 0.

        Raises:
            ArgumentError: the method is not conformal, or there are too few calibration instances for the level.
            DataError: the modality was never hidden in the calibration rows.
        """
        if self.method == "scale":
            raise ArgumentError(
                "norm_interval: recalibrate with method='conformal', 'cv' or 'cv+'; 'scale' has no scores."
            )
        groups, index = self._index(name, data)
        moments = [norm_moments(fold) for fold in self._folds(name, base, data)]
        ends = []
        for sign in (-1.0, 1.0):
            out = moments[0][0].clone()
            for g in index.unique().tolist():
                groups[g].require(level)
                rows = (index == g).nonzero().squeeze(1)
                centres = [sign * centre[rows, None] for centre, _ in moments]
                scales = [spread[rows, None] for _, spread in moments]
                out[rows] = sign * upper_end(groups[g].norms, centres, scales, level).squeeze(1)
            ends.append(out.clamp_min(0).to(base.mean.dtype))
        return ends[0], ends[1]

    def _index(self, name: str, data: MultimodalData) -> tuple[list[PatternScores], Tensor]:
        """The groups that occur, and which one each instance is of."""
        if name not in self.groups:
            raise DataError(
                f"recalibrated: modality {name!r} was never hidden in the calibration rows, so nothing is known of its "
                f"errors; impute names={list(self.groups)} only, or recalibrate with rows that have it and another."
            )
        own = self.groups[name]
        others = [n for n in self.names if n != name and n in data]
        seen = torch.stack([data.observed(n) for n in others], dim=1) if others else torch.zeros(len(data), 0)
        kinds, index = seen.bool().unique(dim=0, return_inverse=True)
        chosen = []
        for kind in kinds.tolist():
            pattern = "+".join(n for n, there in zip(others, kind, strict=True) if there)
            chosen.append(own.get(pattern, own[None]))
        return chosen, index

    def _folds(self, name: str, base: Predictive, data: MultimodalData) -> Sequence[Predictive]:
        if self.method != "cv+":
            return [base]
        return [posterior(model, data).predictive(name, base.mean.dtype) for model in self._models]

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{name}: {len(groups) - 1} patterns, {groups[None].num_instances} instances"
            for name, groups in self.groups.items()
        )
        return f"Recalibration({self.method!r}; {counts})"


@torch.no_grad()
def recalibrate(
    model: Any,  # noqa: ANN401 - whatever impute takes
    calibration: MultimodalData | MaskedValidation,
    method: Method = "conformal",
    *,
    by_feature: bool = True,
    min_rows: int = 50,
    names: Sequence[str] | None = None,
    attach: bool = False,
    **options: Any,
) -> Recalibration:
    """Learn from held-out rows how far the stated uncertainty of imputations is off, by modality and pattern.

    Modalities of the calibration rows are hidden and imputed (:func:`calmrl_prob.masked_validation`), and the errors
    compared with what was stated of them, for each modality and each pattern of other modalities that ``min_rows``
    instances or more have (Mondrian conformal prediction); patterns with fewer share the errors of all patterns, which
    promises them nothing.

    - "scale" multiplies variances by the mean squared standardised error.
    - "conformal" (split conformal) takes quantiles of |x - mean| / sd, so that intervals hold what they promise
      whatever the distribution of errors; variances, densities and draws are rescaled as by "scale". Intervals of the
      norms of whole vectors besides: ``Imputation.norm_interval``.
    - "cv" does the same with k-fold errors, for ``calibration`` that the model is fitted to: all rows serve both.
    - "cv+" (of the jackknife+ kind) asks the model of each fold for its own prediction of every new instance, which
      gives a guarantee and costs folds + 1 imputations. Where the models of the folds differ much it is too wide.

    ``guarantee`` of the result states what is certain; ``scores.py`` and ``conformal.py`` have the references. It
    supposes that new instances come as the calibration rows do; with ``by_feature`` it holds for every feature, else
    for a feature at random, that is for the expected share of features inside. A calibration row stands in for those
    that have fewer modalities than it, so modalities must be missing completely at random; where they are missing not
    at random, no recalibration can promise anything.

    Args:
        model: fitted.
        calibration: rows that the model was not fitted to (for "cv" and "cv+": that it was fitted to), with modalities
            missing or not; or what ``masked_validation`` made of them.
        method: as above.
        by_feature: a factor and a quantile for each feature, in groups of 50 instances or more; False for one of all
            features together, as smaller groups have anyway.
        min_rows: instances that a pattern needs for a group of its own. A group of n has intervals of levels up to
            n / (n + 1), and covers up to 1 / (n + 1) more than it is asked to: of 20, too wide by up to 5%.
        names: modalities to recalibrate; all that are ever hidden by default.
        attach: keep the result as ``model.recalibration``, where ``impute(..., recalibrated=True)`` finds it. It is
            saved with the model, and refused once the model's parameters have changed.
        **options: of :func:`calmrl_prob.masked_validation`: ``scheme``, ``seed``, ``folds`` (5 for "cv" and
            "cv+"), ``refit`` and those of ``cal.fit``.

    Raises:
        ArgumentError: an unknown method, or a validation that does not go with it; a model that nothing can be attached
            to.
        ArgumentTypeError: an argument is of another type.
        DataError: a modality of ``names`` is never hidden, since no instance has it and another, or in one instance
            alone.

    Warns:
        ReliabilityWarning: a pattern of fewer than ``min_rows`` instances errs much more than all patterns together;
            rows are among those that the model was fitted to where they should not be, or are not where they should;
            or a factor is known badly, from few instances; or there are too few for 90% intervals at all.

    Example:
        >>> from calmrl_prob.datasets import make_synthetic
        >>> from calmrl_prob.imputation import impute
        >>> synthetic = make_synthetic(500, {"image": 4, "text": 3}, latent_dim=2, seed=0)
        >>> held_out, new = synthetic.complete.split([300, 200], seed=0)
        >>> found = recalibrate(synthetic.truth, held_out)
        >>> found
        Recalibration('conformal'; image: 1 patterns, 300 instances, text: 1 patterns, 300 instances)
        >>> imputed = impute(synthetic.truth, new.select(["image"]), recalibrated=found)
        >>> lower, upper = imputed.interval(0.9)["text"]
        >>> inside = (lower <= new["text"]) & (new["text"] <= upper)
        >>> round(float(inside.double().mean()), 1)
        0.9
    """
    if method not in get_args(Method):
        raise ArgumentError(f"method: expected one of {list(get_args(Method))}, got {method!r}.")
    min_rows = whole_number("min_rows", min_rows, least=1)
    found, names = _validation(model, calibration, method, names, options)
    _check(model, found, method)
    hidden = [name for name in found.names if any(part.modality == name for part in found.parts)]
    for name in [] if names is None else chosen_names(names, found.names):
        if name not in hidden:
            raise DataError(f"modality {name!r}: the validation never hides it; give rows that have it and another.")
    folds = list(range(len(found.models))) if method == "cv+" else [None]
    groups = {
        name: _groups([p for p in found.parts if p.modality == name], folds, by_feature, min_rows)
        for name in (hidden if names is None else names)
    }
    if method == "scale":
        _require_known_factors(found, list(groups))
    else:
        _warn_of_few(groups, min_rows)
    _warn_of_small_patterns(found, groups, min_rows)
    models = found.models if method == "cv+" else ()
    result = Recalibration(method, groups, found.names, models, fingerprint(model))
    if attach:
        _attach(result, model)
    return result


def _validation(
    model: Any,  # noqa: ANN401
    calibration: object,
    method: Method,
    names: Sequence[str] | None,
    options: dict[str, Any],
) -> tuple[MaskedValidation, Sequence[str] | None]:
    """The validation to learn from, and the names asked for, or all that some rows have with another."""
    if isinstance(calibration, MultimodalData):
        if names is None:
            names = hidden_names(calibration)
        if method in ("cv", "cv+"):
            warn_if_not_seen(model, calibration, method)
            options = {"folds": 5, **options}
        found = masked_validation(model, calibration, names=names, **{"num_draws": 0, "recalibrated": False, **options})
    elif isinstance(calibration, MaskedValidation):
        if options:
            raise ArgumentError(f"options: {sorted(options)} are of masked_validation, which is done already.")
        found = calibration
    else:
        raise ArgumentTypeError(
            f"calibration: expected MultimodalData or a MaskedValidation, got {described(calibration)}."
        )
    return found, names


def _check(model: object, found: MaskedValidation, method: str) -> None:
    if found.recalibrated is not None:
        raise ArgumentError("calibration: it is of imputations that are recalibrated already; make it without.")
    if method in ("cv", "cv+") and not found.refitted:
        raise ArgumentError(f"calibration: method {method!r} needs a validation with folds; pass folds=5 to it.")
    if method == "conformal" and found.refitted:
        raise ArgumentError("calibration: a validation with folds goes with method 'cv', 'cv+' or 'scale'.")
    if not found.refitted:
        marks = fingerprint(model), fingerprint(found.models[0])
        if None not in marks and marks[0] != marks[1]:
            raise ArgumentError("calibration: the validation is of a model with other parameters; make it of this one.")


def _groups(
    parts: Sequence[HeldOut], folds: Sequence[int | None], by_feature: bool, min_rows: int
) -> dict[str | None, PatternScores]:
    found: dict[str | None, PatternScores] = {None: _group(parts, None, folds, by_feature)}
    for pattern in dict.fromkeys(part.pattern for part in parts):
        own = [part for part in parts if part.pattern == pattern]
        if len(np.unique(np.concatenate([part.rows for part in own]))) >= min_rows:
            found[pattern] = _group(own, pattern, folds, by_feature)
    return found


def _require_known_factors(found: MaskedValidation, names: Sequence[str]) -> None:
    """Refuse to learn a factor from one instance, and warn where its standard error is large.

    Raises:
        DataError: a modality is hidden in one instance alone.
    """
    unsure = []
    for name in names:
        parts = [part for part in found.parts if part.modality == name]
        rows = np.concatenate([part.rows for part in parts])
        _, index, records = np.unique(rows, return_inverse=True, return_counts=True)
        squares = torch.cat([_scores(part).square().mean(dim=1) for part in parts]).cpu().numpy()
        means = np.bincount(index.ravel(), squares) / records  # of each instance
        if len(means) < 2:
            raise DataError(
                f"calibration: modality {name!r} is hidden in 1 instance alone, from which method 'scale' cannot "
                f"tell how far the stated uncertainty is off; give {_ROWS_FOR_A_FACTOR} instances or more that have it "
                "and another."
            )
        error = max(float(means.std(ddof=1) / means.mean()), _LEAST_SPREAD) / np.sqrt(len(means))
        if error > _MUCH_ERROR:
            unsure.append(f"{name} ({means.mean():.2g} +- {error * means.mean():.2g}, {len(means)} instances)")
    if unsure:
        warnings.warn(
            "recalibrate: factors of the variance are known badly, as their standard errors show: "
            f"{'; '.join(unsure)}. Give {_ROWS_FOR_A_FACTOR} instances or more.",
            ReliabilityWarning,
            stacklevel=level_of_caller(),
        )


def _warn_of_few(groups: Mapping[str, Mapping[str | None, PatternScores]], min_rows: int) -> None:
    """Warn of modalities hidden in so few instances that no usual interval can be made by ranks of their errors."""
    fewest = needed_instances(_USUAL_LEVEL)
    few = {name: own[None].num_instances for name, own in groups.items() if own[None].num_instances < fewest}
    if few:
        told = "; ".join(f"{name} ({count}, at most {100 * count / (count + 1):.0f}%)" for name, count in few.items())
        warnings.warn(
            f"recalibrate: {100 * _USUAL_LEVEL:g}% intervals take {fewest} calibration instances at least, and these "
            f"modalities are hidden in fewer: {told}. Give {min_rows} or more.",
            ReliabilityWarning,
            stacklevel=3,
        )


def _warn_of_small_patterns(
    found: MaskedValidation, groups: Mapping[str, Mapping[str | None, PatternScores]], min_rows: int
) -> None:
    """Warn of patterns that share the errors of all patterns, and whose own are much greater."""
    unreliable = []
    for name, own in groups.items():
        shared = float(own[None].factor.mean())
        for pattern in dict.fromkeys(part.pattern for part in found.parts if part.modality == name):
            parts = [part for part in found.parts if (part.modality, part.pattern) == (name, pattern)]
            count = len(np.unique(np.concatenate([part.rows for part in parts])))
            ratio = float(torch.cat([_scores(part).square().mean(dim=1) for part in parts]).mean()) / shared
            if pattern not in own and count >= _ROWS_TO_TELL and ratio > _MUCH_GREATER:
                unreliable.append(f"{name} from {pattern} ({ratio:.1f} times, {count} instances)")
    if unreliable:
        warnings.warn(
            f"recalibrate: patterns with fewer than min_rows={min_rows} calibration instances share the errors of all "
            "patterns, but the mean squared standardised errors of these are much greater, so that their intervals "
            f"stay too narrow: {'; '.join(unreliable)}. Give more rows, or a lower min_rows.",
            ReliabilityWarning,
            stacklevel=3,
        )


def _group(
    parts: Sequence[HeldOut], pattern: str | None, folds: Sequence[int | None], by_feature: bool
) -> PatternScores:
    rows = np.concatenate([part.rows for part in parts])
    count = len(np.unique(rows))
    by_feature = by_feature and count >= _ROWS_BY_FEATURE
    errors = torch.cat([_scores(part) for part in parts])
    means = SortedScores.of(errors.square(), rows, True, count)  # weights each instance once
    weight = torch.diff(means.reached, dim=1, prepend=torch.zeros(len(means.reached), 1, dtype=torch.float64))
    factor = (means.values * weight).sum(dim=1) / count
    features, norms = [], []
    for fold in folds:
        own = [part for part in parts if fold is None or part.fold == fold]
        where = np.concatenate([np.empty(0, dtype=np.int64), *(part.rows for part in own)])
        empty = errors[:0]  # a fold may have no instance of this pattern
        own_errors = torch.cat([empty, *map(_scores, own)])
        features.append(SortedScores.of(own_errors, where, by_feature, count))
        norms.append(SortedScores.of(torch.cat([empty[:, :1], *map(_norm_scores, own)]), where, False, count))
    return PatternScores(
        parts[0].modality, pattern, count, factor if by_feature else factor.mean()[None], features, norms
    )


def _scores(part: HeldOut) -> Tensor:
    """|x - mean| / sd, (n, D)."""
    score: Tensor = (part.truth - part.predictive.mean).abs().double() / part.predictive.variance.double().sqrt()
    return score


def _norm_scores(part: HeldOut) -> Tensor:
    """||x| - centre| / spread, (n, 1)."""
    centre, spread = norm_moments(part.predictive)
    norm = torch.linalg.vector_norm(part.truth.double(), dim=1)
    score: Tensor = (norm - centre).abs() / spread
    return score[:, None]


def _attach(result: Recalibration, model: object) -> None:
    owner: Any = getattr(model, "model", model)
    try:
        owner.recalibration = result
    except (AttributeError, TypeError) as error:
        raise ArgumentError(
            f"attach: nothing can be attached to {described(owner)}; give impute(recalibrated=...) the result itself."
        ) from error
