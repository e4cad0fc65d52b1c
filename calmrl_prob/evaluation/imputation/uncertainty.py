"""Tables of how right the stated uncertainty of imputations was, each figure with its standard error over instances.

Every instance counts once: a figure is the mean over instances of the instance's mean over the cells that the table's
group holds of it, and its standard error is the standard deviation of these over the root of their number. Features of
an instance, and imputations of it from different patterns, are correlated; so they are never counted as if they were
independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calmrl_prob._support.arguments import brief, whole_number
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.evaluation.imputation.explained import centres, explained
from calmrl_prob.evaluation.imputation.held_out import CELL_FIGURES, ROW_FIGURES, Array, HeldOut, array, figure
from calmrl_prob.imputation import checked_level

#: What a table can be grouped by, in the order of its columns.
_KEYS = ("modality", "pattern", "feature", "instance")
#: Nominal coverages of :meth:`Tables.coverage`.
LEVELS = (*(round(0.05 * k, 2) for k in range(1, 20)), 0.99)


class Tables:
    """Diagnostics of hidden cells that were imputed.

    Args:
        parts: groups of hidden cells, of one modality and one pattern each.
        names: the modalities of the data.
        num_instances: N.
        ids: (N,) of the instances, or None for their numbers.
    """

    def __init__(
        self, parts: Sequence[HeldOut], names: Sequence[str], num_instances: int, ids: NDArray[Any] | None
    ) -> None:
        self.parts, self.names, self.num_instances, self.ids = tuple(parts), tuple(names), num_instances, ids

    def summary(self, by: Sequence[str] = ("modality",), level: float = 0.9) -> pd.DataFrame:
        """Errors, scores, coverage and the parts of the variance.

        Args:
            by: any of "modality", "pattern", "feature", "instance"; "feature" with "modality".
            level: nominal coverage of the intervals.

        Returns:
            One row for each group: the keys, ``num_instances``, ``num_cells`` (imputed modalities), and, each with its
            standard error ``.._se`` over instances (none where the table is by instance):

            - ``rmse``, ``crps``, ``width`` (of the intervals), data units; ``nll``, nats for each feature;
            - ``sd`` (without a standard error), the root mean squared distance of hidden values from their mean, data
              units: of a modality its standard deviation over the rows validated; and ``R2``, 1 - squared error /
              squared distance from that mean: 1 for the truth, 0 for that mean itself, which no fit knew, and below 0
              where imputing is worse (neither where the table is by instance);
            - ``coverage``, a share; ``z_square``, the mean squared standardised error, 1 if the variances are right;
            - ``variance`` and its parts ``latent_variance``, ``noise_variance``, ``parameter_variance``, units squared;
            - of all features of a modality jointly (not by feature): ``log_score``, -log density, nats;
              ``energy_score``, data units; ``mahalanobis``, the squared distance for each feature, 1 if right.

        Raises:
            ArgumentError: ``by`` or ``level`` cannot be used.
        """
        keys, level = _checked_keys(by), checked_level(level)
        per_feature = "feature" in keys
        names = [*CELL_FIGURES, *([] if per_feature else ROW_FIGURES)]
        columns: dict[str, pd.DataFrame] = {}
        for name in names:
            shown = {"square_error": "rmse", "square_z": "z_square"}.get(name, name)
            columns[shown] = self._means(lambda held, n=name: figure(held, n, level), keys)  # type: ignore[misc]
        rmse = columns["rmse"]
        rmse["value"] **= 0.5
        rmse["se"] /= 2 * rmse["value"]
        table = next(iter(columns.values()))[[*keys, "num_instances", "num_cells"]].copy()
        for name, found in columns.items():
            table[name] = found["value"]
            if "instance" not in keys:
                table[f"{name}_se"] = found["se"]
            if name == "rmse" and "instance" not in keys:
                table[["sd", "R2", "R2_se"]] = self._explained(keys)
        return table

    def _explained(self, keys: Sequence[str]) -> list[tuple[float, float, float]]:
        """Standard deviation, R^2 and its standard error of each row of :meth:`_means`."""
        centre, found = centres(self.parts), []
        for _, parts in self._groups([k for k in keys if k in ("modality", "pattern")]):
            error = self._sums(parts, lambda held: held.error**2, "feature" in keys)
            distance = self._sums(
                parts, lambda held: (array(held.truth) - centre[held.modality]) ** 2, "feature" in keys
            )
            found += [explained(error, distance, feature) for feature in range(error[0].shape[1])]
        return found

    def coverage(self, levels: Sequence[float] | float = LEVELS, by: Sequence[str] = ("modality",)) -> pd.DataFrame:
        """Nominal against actual coverage of central intervals, with their widths.

        Returns:
            One row for each group and level: the keys, ``num_instances``, ``level``, ``coverage``, ``coverage_se``,
            ``width``, ``width_se``.
        """
        keys = _checked_keys(by)
        found = []
        for level in _checked_levels(levels):
            inside = self._means(lambda held, q=level: held.inside(q).astype(float), keys)  # type: ignore[misc]
            width = self._means(lambda held, q=level: held.width(q), keys)  # type: ignore[misc]
            inside = inside.rename(columns={"value": "coverage", "se": "coverage_se"})
            found.append(inside.assign(level=level, width=width["value"], width_se=width["se"]))
        order = [*keys, "num_instances", "level", "coverage", "coverage_se", "width", "width_se"]
        return pd.concat(found, ignore_index=True)[order]

    def pit(self, by: Sequence[str] = ("modality",), bins: int = 20) -> pd.DataFrame:
        """The histogram of the probability integral transform: level if the predictives are right.

        Returns:
            One row for each group and bin: the keys, ``num_instances``, ``low``, ``high`` (of the bin), ``share`` of
            the values in it, ``share_se``, and ``z``, the share less 1 / bins in standard errors.
        """
        bins = whole_number("bins", bins, least=1)
        keys, edges = _checked_keys(by), np.linspace(0, 1, bins + 1)
        found = []
        for b in range(bins):

            def share(held: HeldOut, b: int = b) -> Array:
                found: Array = (np.minimum((held.pit * bins).astype(int), bins - 1) == b).astype(float)
                return found

            part = self._means(share, keys).rename(columns={"value": "share", "se": "share_se"})
            found.append(part.assign(low=edges[b], high=edges[b + 1], z=(part["share"] - 1 / bins) / part["share_se"]))
        table = pd.concat(found, ignore_index=True)
        return table[[*keys, "num_instances", "low", "high", "share", "share_se", "z"]]

    def error_by_sd(self, by: Sequence[str] = ("modality",), bins: int = 10) -> pd.DataFrame:
        """Actual errors of cells that were said to be about as uncertain: on the diagonal if the variances are right.

        Within each group, cells (features of imputed modalities) are parted into bins of equal number by their
        predicted standard deviation.

        Returns:
            One row for each group and bin: the keys, ``bin``, ``num_instances``, ``predicted_sd`` (root mean predicted
            variance), ``rmse``, ``rmse_se``, data units.
        """
        keys, bins = _checked_keys(by), whole_number("bins", bins, least=1)
        found = []
        for key, parts in self._groups([k for k in keys if k in ("modality", "pattern")]):
            edges = np.quantile(np.concatenate([part.variance.ravel() for part in parts]), np.linspace(0, 1, bins + 1))
            for b, (low, high) in enumerate(pairwise(edges)):
                last = b == bins - 1

                def chosen(
                    held: HeldOut, values: Array, low: float = low, high: float = high, last: bool = last
                ) -> Array:
                    inside = (held.variance >= low) & ((held.variance <= high) if last else (held.variance < high))
                    return np.where(inside, values, np.nan)

                error = self._sums(parts, lambda held: chosen(held, held.error**2), "feature" in keys)
                predicted = self._sums(parts, lambda held: chosen(held, held.variance), "feature" in keys)
                for feature in range(error[0].shape[1]):
                    mean, se, count = _over_instances(*error, feature)
                    if count:
                        own = {"feature": feature} if "feature" in keys else {}
                        sd = _over_instances(*predicted, feature)[0] ** 0.5
                        row = {"bin": b, "num_instances": count, "predicted_sd": sd, "rmse": mean**0.5}
                        found.append(key | own | row | {"rmse_se": se / (2 * mean**0.5) if mean > 0 else np.nan})
        return pd.DataFrame(found)

    def risk_coverage(self, by: Sequence[str] = ("modality",), points: int = 20) -> pd.DataFrame:
        """The error that is left when only the most certain imputations are kept: falling if certainty means something.

        Imputed modalities are ordered by their mean predicted variance, the most certain first; those that are equally
        certain, as those of one pattern often are, count as if in random order.

        Returns:
            One row for each group and share kept: the keys, ``kept``, ``risk`` (mean squared error for each feature of
            those kept, data units squared), ``best`` (the same when ordered by their true errors) and ``all`` (of all:
            what order at random gives).
        """
        found = []
        for key, parts in self._groups(_checked_keys(by, ("modality", "pattern"))):
            _, variance, error = _records(parts)
            own = _running_mean(_by_certainty(variance, error)[1])
            best = _running_mean(np.sort(error))
            for kept in np.linspace(1 / points, 1, points):
                last = max(1, round(kept * len(error))) - 1
                row = {"kept": kept, "risk": own[last], "best": best[last], "all": own[-1]}
                found.append(key | row)
        return pd.DataFrame(found)

    def risk_coverage_area(self, by: Sequence[str] = ("modality",)) -> pd.DataFrame:
        """The area under the risk-coverage curve (the mean risk over all shares kept), with its standard error.

        Returns:
            One row for each group: the keys, ``num_instances``, ``area``, ``area_se`` (over instances, the order taken
            as fixed), ``area_best`` (ordered by true errors), ``area_random`` (order at random: the mean error), data
            units squared.
        """
        found = []
        for key, parts in self._groups(_checked_keys(by, ("modality", "pattern"))):
            rows, variance, error = _records(parts)
            count = len(error)
            # the r-th most certain is part of every risk from r on: its weight is 1/n sum_{j >= r} 1/j
            order, weight = _by_certainty(variance, np.cumsum(1 / np.arange(count, 0, -1.0))[::-1], in_order=True)
            terms = np.bincount(rows[order], weights=weight * error[order], minlength=self.num_instances)
            number = np.bincount(rows, minlength=self.num_instances)
            per_instance = terms[number > 0] * (number > 0).sum() / count  # their mean is the area
            found.append(
                key
                | {
                    "num_instances": len(per_instance),
                    "area": per_instance.mean(),
                    "area_se": per_instance.std(ddof=1) / len(per_instance) ** 0.5 if len(per_instance) > 1 else np.nan,
                    "area_best": float(_running_mean(np.sort(error)).mean()),
                    "area_random": float(error.mean()),
                }
            )
        return pd.DataFrame(found)

    def mahalanobis(self, by: Sequence[str] = ("modality", "pattern"), level: float = 0.9) -> pd.DataFrame:
        """Whether the joint distribution of all features is right: squared distances against their chi-square law.

        (x - mean)^T Cov^-1 (x - mean) of a modality of D_m features has a chi-square distribution of D_m degrees of
        freedom under the model. Intervals of single features say nothing of correlations; this does.

        Returns:
            One row for each group: the keys, ``num_instances``, ``num_features``, ``distance`` (mean for each feature,
            1 if right) and ``inside`` (share within the ``level`` quantile of the law), both with standard errors, and
            ``p_value`` of a Kolmogorov-Smirnov test (NaN where instances stand in the group more than once, which the
            test does not allow). Empty where the route's predictive is not one normal.
        """
        from scipy.stats import chi2, kstest

        keys, level = _checked_keys(by, ("modality", "pattern")), checked_level(level)
        if "modality" not in keys:
            raise ArgumentError(f"by: modalities differ in their number of features; add 'modality' to {tuple(by)}.")
        found = []
        for key, all_parts in self._groups(keys):
            parts = [part for part in all_parts if np.isfinite(part.mahalanobis).all()]
            if not parts:
                continue
            width = parts[0].truth.shape[1]
            reach = chi2.ppf(level, width)
            rows = np.concatenate([part.rows for part in parts])
            values = np.concatenate([part.mahalanobis for part in parts])
            mean, se, count = _over_instances(
                *self._sums(parts, lambda h: h.mahalanobis[:, None] / h.truth.shape[1]), 0
            )
            near = self._sums(parts, lambda h, r=reach: (h.mahalanobis[:, None] <= r).astype(float))  # type: ignore[misc]
            inside, inside_se, _ = _over_instances(*near, 0)
            once = len(np.unique(rows)) == len(rows)
            found.append(
                key
                | {
                    "num_instances": count,
                    "num_features": width,
                    "distance": mean,
                    "distance_se": se,
                    "inside": inside,
                    "inside_se": inside_se,
                    "p_value": float(kstest(values, chi2(width).cdf).pvalue) if once else np.nan,
                }
            )
        return pd.DataFrame(found)

    def _groups(self, keys: Sequence[str]) -> Iterator[tuple[dict[str, Any], list[HeldOut]]]:
        """Parts that agree in modality and pattern, as far as the keys ask."""
        found: dict[tuple[str, ...], list[HeldOut]] = {}
        for part in self.parts:
            found.setdefault(tuple(getattr(part, key) for key in keys), []).append(part)
        for values, parts in found.items():
            yield dict(zip(keys, values, strict=True)), parts

    def _sums(
        self, parts: Sequence[HeldOut], values: Callable[[HeldOut], Array], per_feature: bool = False
    ) -> tuple[Array, Array]:
        """Sums and numbers of cells for each instance (and feature), (N, F); NaN cells are left out."""
        width = parts[0].truth.shape[1] if per_feature else 1
        total, count = np.zeros((self.num_instances, width)), np.zeros((self.num_instances, width))
        for part in parts:
            cells = values(part)
            there = np.isfinite(cells)
            filled = np.where(there, cells, 0.0)
            if not per_feature:
                filled, there = filled.sum(axis=1, keepdims=True), there.sum(axis=1, keepdims=True)
            total[part.rows] += filled  # rows of a part are distinct
            count[part.rows] += there
        return total, count

    def _means(self, values: Callable[[HeldOut], Array], keys: Sequence[str]) -> pd.DataFrame:
        """Means and standard errors of each group: the keys, num_instances, num_cells, value, se."""
        rows = []
        per_feature, per_instance = "feature" in keys, "instance" in keys
        for key, parts in self._groups([k for k in keys if k in ("modality", "pattern")]):
            total, count = self._sums(parts, values, per_feature)
            cells = np.zeros(self.num_instances)
            for part in parts:
                cells[part.rows] += 1
            for feature in range(total.shape[1]):
                own = key | ({"feature": feature} if per_feature else {})
                if not per_instance:
                    mean, se, number = _over_instances(total, count, feature)
                    rows.append(own | {"num_instances": number, "num_cells": int(cells.sum()), "value": mean, "se": se})
                    continue
                for n in np.flatnonzero(cells):
                    name = n if self.ids is None else self.ids[n]
                    value = total[n, feature] / count[n, feature] if count[n, feature] else np.nan
                    rows.append(
                        own
                        | {
                            "instance": name,
                            "num_instances": 1,
                            "num_cells": int(cells[n]),
                            "value": value,
                            "se": np.nan,
                        }
                    )
        return pd.DataFrame(rows)


def _over_instances(total: Array, count: Array, feature: int) -> tuple[float, float, int]:
    """Mean over instances of their means, its standard error, and their number."""
    there = count[:, feature] > 0
    means = total[there, feature] / count[there, feature]
    if not len(means):
        return float("nan"), float("nan"), 0
    error = means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return float(means.mean()), float(error), len(means)


def _records(parts: Sequence[HeldOut]) -> tuple[NDArray[np.int64], Array, Array]:
    """Instance, mean predicted variance and mean squared error of each imputed modality."""
    rows = np.concatenate([part.rows for part in parts])
    variance = np.concatenate([part.variance.mean(axis=1) for part in parts])
    error = np.concatenate([(part.error**2).mean(axis=1) for part in parts])
    return rows, variance, error


def _by_certainty(variance: Array, values: Array, *, in_order: bool = False) -> tuple[NDArray[np.int64], Array]:
    """The order of rising variance, and the values in it (``in_order``: as they are), each tie at its mean."""
    order = np.argsort(variance, kind="stable")
    _, tie, number = np.unique(variance[order], return_inverse=True, return_counts=True)
    sorted_values = values if in_order else values[order]
    means: Array = (np.bincount(tie, weights=sorted_values) / number)[tie]
    return order, means


def _running_mean(values: Array) -> Array:
    running: Array = np.cumsum(values) / np.arange(1, len(values) + 1)
    return running


def _checked_levels(levels: Sequence[float] | float) -> list[float]:
    given = list(levels) if isinstance(levels, Iterable) and not isinstance(levels, str) else [levels]
    if not given:
        raise ArgumentError("levels: expected at least one number between 0 and 1, got none; pass such as [0.9].")
    return [checked_level(level) for level in given]


def _checked_keys(by: Sequence[str], known: Sequence[str] = _KEYS) -> list[str]:
    if not isinstance(by, Iterable):
        raise ArgumentTypeError(f"by: expected some of {list(known)}, got {brief(by)}.")
    given = [by] if isinstance(by, str) else list(by)
    if any(key not in known for key in given) or len(set(given)) < len(given):
        raise ArgumentError(f"by: expected distinct ones of {list(known)}, got {brief(given)}.")
    if "feature" in given and "modality" not in given:
        raise ArgumentError("by: features are of a modality; add 'modality'.")
    return [key for key in known if key in given]
