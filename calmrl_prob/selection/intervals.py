"""Intervals that hold: what the held-out folds of a choice show of the errors of imputations.

Of each modality and each pattern of others, the standardised errors |x - imputed| / sd of held-out instances, each by a
model that was not fitted to it, say by what variances are to be multiplied, and how wide central intervals of each
level have to be, whatever the distribution of errors. Where held-out imputations from a pattern of others are no better
than the mean they are shrunk towards it besides, by the slope of truth on imputation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief, real_number, whole_number
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob.batch_effects import BatchEffects
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.fingerprint import fingerprint
from calmrl_prob.posteriors.predictive import Predictive
from calmrl_prob.selection.error_predictive import HeldOutPredictive
from calmrl_prob.selection.few_values import FEW_VALUES, Widening
from calmrl_prob.selection.held_out import OWN_PART, HeldOutSums, added
from calmrl_prob.selection.hidden import HeldOutRows

if TYPE_CHECKING:
    import pandas as pd

#: Levels of the central intervals whose half-widths are kept.
LEVELS = torch.cat(
    [torch.arange(0.02, 0.9, 0.04), torch.tensor([0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999])]
).double()
#: Instances that a pattern needs for errors of its own, and that features need for theirs.
_ROWS_BY_PATTERN, _ROWS_BY_FEATURE = 60, 300
#: Numbers that quantiles of all features together are taken of, at most.
_MOST_NUMBERS = 1_000_000
_SMALLEST = 1e-9
#: Where variances stand for intervals, the level that they are right at.
_USUAL_LEVEL = torch.tensor([0.9], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class ErrorScale:
    """Errors of held-out imputations of one modality, from one pattern of others or from all together.

    Attributes:
        modality: which.
        pattern: the modalities seen, joined by "+"; None for all patterns together.
        num_instances: held-out instances.
        factor: (F,) mean squared standardised error, of each feature or of all: what variances are multiplied by.
        slope: factor of the distance of imputations from the mean: 1 unless held-out ones were no better than the mean.
        half_widths: (F, Q) of the central intervals of ``LEVELS``, in standard deviations of the model; None where
            statistics alone were known, and intervals are those of a normal of the right variance.
    """

    modality: str
    pattern: str | None
    num_instances: int
    factor: Tensor
    slope: float
    half_widths: Tensor | None


class HeldOutIntervals:
    """Errors of held-out imputations, by which ``cal.impute`` puts the stated uncertainty of a chosen fit right.

    Attributes:
        names: the modalities of the model.
        scales: for each modality its errors by pattern, and under None those of all patterns together.
        centres: for each modality the mean of training rows (D_m,), data units.
        num_folds: of the choice.
        batch: shifts and scales of batches, about which centres move; None without.
    """

    def __init__(
        self,
        names: Sequence[str],
        scales: Mapping[str, Mapping[str | None, ErrorScale]],
        centres: Mapping[str, Tensor],
        num_folds: int,
        model: object = None,
        *,
        batch: BatchEffects | None = None,
    ) -> None:
        self.batch = batch
        self.names, self.scales = tuple(names), scales
        self.centres, self.num_folds = dict(centres), num_folds
        self._fingerprint = fingerprint(model)

    @property
    def slopes(self) -> dict[str, float]:
        """For each modality the slope of all patterns together."""
        return {name: groups[None].slope for name, groups in self.scales.items()}

    def of(self, model: object) -> HeldOutIntervals:
        """The same for a model with its parameters as they are now."""
        return HeldOutIntervals(self.names, self.scales, self.centres, self.num_folds, model, batch=self.batch)

    def bind(self, model: object) -> None:
        """Take the parameters that a model has now for those that these were made for."""
        self._fingerprint = fingerprint(model)

    def fits(self, model: object) -> bool:
        """Whether a model has the parameters that these were made for, as far as they can be compared."""
        found = fingerprint(model)
        return None in (found, self._fingerprint) or found == self._fingerprint

    def require_model(self, model: object) -> None:
        """Refuse a model with other parameters.

        Raises:
            ArgumentError: they have changed.
        """
        if not self.fits(model):
            raise ArgumentError(
                "recalibrated: the intervals were learned for other parameters than this model has now; fit it again, "
                "or impute with recalibrated=False."
            )

    def predictive(self, name: str, base: Predictive, data: MultimodalData) -> Predictive:
        """The predictive of one modality, put right for the other modalities that each instance has.

        A modality that was never held out keeps the model's own.
        """
        groups = self.scales.get(name)
        if not groups:
            return base
        others = [n for n in self.names if n != name and n in data]
        seen = torch.stack([data.observed(n) for n in others], dim=1) if others else torch.zeros(len(data), 0)
        there = data.feature_mask(name).any(1) if name in data else torch.zeros(len(data), dtype=torch.bool)
        seen = torch.cat([seen.bool(), there[:, None].to(seen.device)], dim=1)
        kinds, index = seen.unique(dim=0, return_inverse=True)
        chosen = []
        for *kind, own in kinds.tolist():  # of a modality that the instance has itself, others' errors tell nothing
            pattern = "+".join(n for n, here in zip(others, kind, strict=True) if here)
            chosen.append(groups.get(OWN_PART, _AS_STATED) if own else groups.get(pattern, groups[None]))
        width = base.mean.shape[1]
        factor = torch.stack([group.factor.expand(width) for group in chosen]).to(base.mean)[index.to(base.mean.device)]
        tables = None
        if all(group.half_widths is not None for group in chosen):
            tables = [group.half_widths for group in chosen]
        centre = self.centres[name].to(base.mean)
        if self.batch is not None and self.batch.names:
            own = self.batch.index(data)
            centre = self.batch.moves.moved(name, centre.expand(len(data), -1), own).detach()
        slope = torch.tensor([group.slope for group in chosen]).to(base.mean)
        return HeldOutPredictive(base, factor, centre, slope, LEVELS, tables, index)  # type: ignore[arg-type]

    def norm_interval(self, name: str, base: Predictive, data: MultimodalData, level: float) -> tuple[Tensor, Tensor]:
        """Intervals of norms: these are learned of features alone.

        Raises:
            ArgumentError: always; names what has them.
        """
        del name, base, data, level
        raise ArgumentError(
            "norm_interval: the intervals of the choice are of features; give impute(recalibrated=...) what "
            "cal.recalibrate returns."
        )

    def parts(self) -> dict[str, Any]:
        """Parts that a file keeps, of which :meth:`from_parts` makes the same again."""
        kept = {name: list(groups.values()) for name, groups in self.scales.items()}
        return {
            "names": list(self.names),
            "scales": kept,
            "centres": dict(self.centres),
            "num_folds": self.num_folds,
            **({} if self.batch is None else {"batch": self.batch.parts()}),
            "fingerprint": self._fingerprint,
        }

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> HeldOutIntervals:
        """The intervals that :meth:`parts` took apart, of a model with the same parameters.

        Raises:
            ArgumentError, ArgumentTypeError: they do not go together, with each other or with themselves.
            KeyError, TypeError, AttributeError: something of them is missing, or is of another type.
        """
        scales = {name: {group.pattern: group for group in groups} for name, groups in parts["scales"].items()}
        _require_whole(scales, parts["centres"])
        batch = BatchEffects.from_parts(parts["batch"]) if "batch" in parts else None
        number = whole_number("num_folds", parts["num_folds"])
        found = cls(parts["names"], scales, parts["centres"], number, batch=batch)
        found._fingerprint = parts["fingerprint"]
        return found

    def table(self, levels: Sequence[float] = (0.5, 0.9, 0.95)) -> pd.DataFrame:
        """One row for each modality and pattern.

        Returns:
            modality; pattern (None: all together, which serves patterns of few instances); num_instances; factor, mean
            over features; half_width of each level in standard deviations of the model (a normal's: 0.67, 1.64, 1.96);
            slope.
        """
        import pandas as pd

        rows = []
        for groups in self.scales.values():
            for group in groups.values():
                row: dict[str, Any] = {
                    "modality": group.modality,
                    "pattern": group.pattern,
                    "num_instances": group.num_instances,
                    "factor": float(group.factor.mean()),
                }
                for level in levels:
                    row[f"half_width_{level:g}"] = _half_width(group, level)
                rows.append({**row, "slope": group.slope})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        """One line: by what they were set."""
        counts = ", ".join(f"{name}: {groups[None].num_instances}" for name, groups in self.scales.items())
        shrunk = [name for name, slope in self.slopes.items() if slope < 1]
        also = f"; shrunk to the mean: {', '.join(shrunk)}" if shrunk else ""
        by_rows = any(group.half_widths is not None for own in self.scales.values() for group in own.values())
        what = "errors" if by_rows else "squared errors"
        return f"HeldOutIntervals({what} of held-out imputations in {self.num_folds} folds; {counts}{also})"


#: Where nothing was learned: a normal of the model's own variance.
_AS_STATED = ErrorScale("", None, 0, torch.ones(1).double(), 1.0, torch.special.ndtri((1 + LEVELS) / 2)[None])


def _require_whole(scales: Mapping[str, Mapping[str | None, ErrorScale]], centres: Mapping[str, Tensor]) -> None:
    """Refuse errors of unknown modalities, of other widths, or by pattern alone."""
    for name, groups in scales.items():
        if name not in centres or None not in groups:
            raise ArgumentError(
                f"intervals: modality {brief(name)} is unknown, or has errors of single patterns alone."
            )
        widths = (1, len(centres[name]))
        for group in groups.values():
            whole_number("num_instances", group.num_instances)
            real_number("slope", group.slope, 1.0)
            half = group.half_widths
            whole = half is None or (half.ndim == 2 and half.shape[0] in widths and half.shape[1] == len(LEVELS))
            if group.factor.ndim != 1 or len(group.factor) not in widths or not whole:
                raise ArgumentError(f"intervals: the errors of modality {name!r} are not of its {widths[1]} features.")


def _half_width(group: ErrorScale, level: float) -> float:
    if group.half_widths is None:
        normal = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
        return float((group.factor.sqrt() * normal).mean())
    return float(np.interp(level, LEVELS.numpy(), group.half_widths.mean(0).numpy()))


def slope_to_the_mean(sums: Sequence[HeldOutSums]) -> float:
    """Factor of the distance of imputations from the mean: 1 where they are better than the mean.

    Elsewhere the slope of truth on imputation, sum (x - c)(x^ - c) / sum (x^ - c)^2, between 0 and 1: what squared
    error is least at.

    Args:
        sums: of one modality.
    """
    total = {
        key: sum(float(getattr(part, key).sum()) for part in sums)
        for key in ("square_error", "square", "product", "imputed_square")
    }
    if total["square_error"] < total["square"]:
        return 1.0
    return float(np.clip(total["product"] / max(total["imputed_square"], _SMALLEST), 0, 1))


def _groups(sums: Sequence[HeldOutSums]) -> dict[str, dict[str | None, list[HeldOutSums]]]:
    """For each modality its sums by pattern, where it has enough instances, and under None all of them."""
    found: dict[str, dict[str | None, list[HeldOutSums]]] = {}
    for name in dict.fromkeys(part.modality for part in sums):
        own = [part for part in sums if part.modality == name]
        # from others is another matter than from the rest of its own, unless nothing else is known
        found[name] = {None: [part for part in own if part.seen != (OWN_PART,)] or own}
        for part in added(own).values():
            if float(part.count.max()) >= _ROWS_BY_PATTERN:
                found[name]["+".join(part.seen)] = [part]
    return found


def scales_of_sums(
    sums: Sequence[HeldOutSums], values: Mapping[str, Tensor] = FrozenMapping()
) -> dict[str, dict[str | None, ErrorScale]]:
    """Variance factors from sums over held-out instances, where the rows themselves are not known.

    Args:
        sums: over them.
        values: for each modality the rows of the fit that have each feature, (D_m,); many, of those not given.
    """
    found: dict[str, dict[str | None, ErrorScale]] = {}
    for name, groups in _groups(sums).items():
        found[name] = {}
        for pattern, parts in groups.items():
            slope = slope_to_the_mean(parts)
            number = int(sum(float(part.count.max()) for part in parts))
            squares = torch.stack([_standard_square(part, slope) for part in parts]).sum(0)
            counts = torch.stack([part.count for part in parts]).sum(0)
            by_feature = number >= _ROWS_BY_FEATURE
            factor = squares / counts.clamp(min=1) if by_feature else (squares.sum() / counts.sum().clamp(min=1))[None]
            if not by_feature and name in values:
                widening = Widening.of(values[name], (squares / factor.clamp(min=_SMALLEST)).cpu(), counts.cpu())
                factor = factor.cpu() * widening.stretch(_USUAL_LEVEL)[:, 0].square()
            found[name][pattern] = ErrorScale(name, pattern, number, factor.clamp(min=_SMALLEST).cpu(), slope, None)
    return found


def _standard_square(part: HeldOutSums, slope: float) -> Tensor:
    """Sum of squared standardised errors of imputations drawn towards the mean, (D_m,)."""
    error = part.square - 2 * slope * part.product + slope**2 * part.imputed_square
    return (error if slope < 1 else part.square_error) / part.variance


def scales_of_rows(
    sums: Sequence[HeldOutSums],
    rows: Iterable[tuple[HeldOutRows, Tensor]],
    values: Mapping[str, Tensor] = FrozenMapping(),
) -> dict[str, dict[str | None, ErrorScale]]:
    """Variance factors and half-widths from held-out instances; empty if there are none.

    Args:
        sums: over them.
        rows: imputations of them, each with the centre (D_m,) of its modality.
        values: for each modality the rows of the fit that have each feature, (D_m,); many, of those not given.
    """
    groups = _groups(sums)
    slopes = {name: {key: slope_to_the_mean(parts) for key, parts in own.items()} for name, own in groups.items()}
    scores: dict[str, dict[str | None, list[np.ndarray]]] = {}
    for part, centre in rows:
        own = scores.setdefault(part.modality, {})
        pattern = "+".join(part.seen)
        pooled = [None] * any(part.seen == known.seen for known in groups[part.modality][None])
        for key in (*pooled, *([pattern] if pattern in slopes[part.modality] else [])):
            imputed = centre + slopes[part.modality][key] * (part.imputed - centre)
            standard = (part.truth - imputed).abs() / part.variance.sqrt()
            own.setdefault(key, []).append(standard.float().cpu().numpy())
    return {
        name: _scales(name, {key: np.concatenate(parts) for key, parts in own.items()}, slopes[name], values.get(name))
        for name, own in scores.items()
    }


def _scales(
    name: str, scores: Mapping[str | None, np.ndarray], slopes: Mapping[str | None, float], values: Tensor | None
) -> dict[str | None, ErrorScale]:
    """Of standardised errors (n, D_m) by pattern, NaN where single features are missing."""
    found = {}
    many = None if values is None else values.numpy() >= FEW_VALUES
    pooled = {key: _pooled(own, many) for key, own in scores.items()}
    widening = None if values is None else _widening(values, scores, pooled)
    for key, own in scores.items():
        if np.isfinite(own).sum(0).min() >= _ROWS_BY_FEATURE:
            factor = torch.from_numpy(np.nanmean(np.square(own, dtype=np.float64), axis=0))
            widths = torch.from_numpy(np.nanquantile(own, LEVELS.numpy(), axis=0).T.astype(np.float64))
        else:
            factor, widths = pooled[key]
            if widening is not None:
                factor, widths = factor * widening.inflation, widths * widening.stretch(LEVELS)
        factor, widths = factor.clamp(min=_SMALLEST), widths.clamp(min=_SMALLEST).contiguous()
        found[key] = ErrorScale(name, key, len(own), factor, slopes[key], widths)
    return found


def _widening(
    values: Tensor, scores: Mapping[str | None, np.ndarray], pooled: Mapping[str | None, tuple[Tensor, Tensor]]
) -> Widening | None:
    """Of what all patterns together show, and single features held out; None where no feature has few values."""
    if not bool((values < FEW_VALUES).any()):
        return None
    whole = [key for key in (None, OWN_PART) if key in scores]
    squares = [np.nansum(np.square(scores[key], dtype=np.float64), axis=0) / pooled[key][0].numpy() for key in whole]
    counts = [np.isfinite(scores[key]).sum(0) for key in whole]
    return Widening.of(values, torch.from_numpy(np.sum(squares, axis=0)), torch.from_numpy(np.sum(counts, axis=0)))


def _pooled(scores: np.ndarray, many: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Factor (1,) and half-widths (1, Q) of all features together; of those with many values, where there are some."""
    if many is not None and np.isfinite(scores[:, many]).any():
        scores = scores[:, many]
    flat = scores[np.isfinite(scores)]
    factor = np.square(flat, dtype=np.float64).mean(keepdims=True)
    flat = flat[:: max(1, len(flat) // _MOST_NUMBERS)]
    widths = np.quantile(flat, LEVELS.numpy())[None].astype(np.float64)
    return torch.from_numpy(factor).clamp(min=_SMALLEST), torch.from_numpy(widths)
