"""Features that few rows have: what is not known of them, so that their intervals hold.

From n values of a feature nobody knows its mean to better than its spread over sqrt(n), nor its spread. Held-out errors
of so few values tell a little; those of the modality's other features tell the rest. With f the mean squared
standardised error of all features together, and e_i the standardised errors of c held-out values of this one,

    f_n = (d f (1 + 1/n) + sum_i e_i^2) / (d + c),    nu = d + n - 1,

the mean of a scaled inverse chi-squared distribution with a prior worth d values, and the predictive has the quantiles
of a Student-t of nu degrees of freedom where that of the modality's other features has a normal's. With many values
both factors go to 1.

Source: Gelman et al., Bayesian Data Analysis (2013), section 3.3, for a normal of unknown mean and variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.data.features import Names
from calmrl_prob.linear_gaussian import SufficientStatistics
from calmrl_prob.selection.folds import FoldedStatistics

#: Values from which on a feature is like the others: what is not known is then below 2% of an interval.
FEW_VALUES = 60
#: Values that the prior is worth, d.
_PRIOR_VALUES = 4.0
#: Features that a message names at most.
_NAMED = 5


@dataclass(frozen=True)
class Widening:
    """Factors of the features of a modality, beside what all of them have together.

    Attributes:
        variance: (D_m,) f_n / f, of squared errors.
        degrees_of_freedom: (D_m,) nu; infinite of features that are not few.
    """

    variance: Tensor
    degrees_of_freedom: Tensor

    @classmethod
    def of(cls, values: Tensor, squares: Tensor, counts: Tensor) -> Widening:
        """That of features by their numbers of values; 1 of those with many.

        Args:
            values: (D_m,) n, rows of the fit that have each feature.
            squares: (D_m,) sums of squared standardised errors, each divided by f.
            counts: (D_m,) c, values summed over.

        Example:
            >>> found = Widening.of(torch.tensor([1, 100]), torch.zeros(2), torch.zeros(2))
            >>> found.variance.tolist(), found.degrees_of_freedom.tolist()
            ([2.0, 1.0], [4.0, inf])
        """
        few = values < FEW_VALUES
        number = values.clamp(min=1).double()
        shrunk = (_PRIOR_VALUES * (1 + 1 / number) + squares) / (_PRIOR_VALUES + counts)
        return cls(torch.where(few, shrunk, 1.0), torch.where(few, _PRIOR_VALUES + number - 1, torch.inf))

    def stretch(self, levels: Tensor) -> Tensor:
        """Half-widths of central intervals of the levels (Q,) over those of a feature that is not few, (D_m, Q)."""
        from scipy.special import ndtri, stdtrit

        upper = (1 + levels.numpy()) / 2
        ratio = np.ones((len(self.variance), len(upper)))
        nu = self.degrees_of_freedom.numpy()
        few = np.isfinite(nu)
        ratio[few] = stdtrit(nu[few, None], upper) / ndtri(upper)
        return self.variance.sqrt()[:, None] * torch.from_numpy(ratio)

    @property
    def inflation(self) -> Tensor:
        """(D_m,) variance of the Student-t, over that of a feature that is not few."""
        nu = self.degrees_of_freedom
        return self.variance * torch.where(nu.isfinite(), nu / (nu - 2), 1.0)


def values_of(data: MultimodalData | SufficientStatistics | FoldedStatistics) -> dict[str, Tensor]:
    """For each modality the number of rows that have each feature, (D_m,) int64.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, torch.nan]])
        >>> values_of(MultimodalData({"a": rows}, missing="features"))["a"].tolist()
        [2, 1]
    """
    if isinstance(data, MultimodalData) and data.has_partial_rows:
        return {name: data.feature_mask(name).sum(0).cpu() for name in data.names}
    if isinstance(data, MultimodalData):
        return {name: data.observed(name).sum().cpu().expand(width) for name, width in data.dims.items()}
    total = data if isinstance(data, SufficientStatistics) else data.total
    counts = dict.fromkeys(total.dims, 0)
    for present, scatter in total.scatters.items():
        for name, here in zip(total.dims, present, strict=True):
            counts[name] += int(scatter[-1, -1]) if here else 0
    return {name: torch.full((width,), counts[name]) for name, width in total.dims.items()}


def few_named(name: str, values: Tensor, few: Tensor, names: Names | None) -> str:
    """Features of a modality with few values, and how many these are, as messages name them.

    Args:
        name: the modality.
        values: (D_m,) rows that have each feature.
        few: (D_m,) bool, which are meant.
        names: of the features, where they have some.

    Example:
        >>> few_named("a", torch.tensor([9, 1, 2]), torch.tensor([False, True, True]), ("u", "v", "w"))
        "modality 'a': features 'v' (1 row), 'w' (2 rows)"
    """
    places = few.nonzero().squeeze(1).tolist()
    rows = ["1 row" if count == 1 else f"{count} rows" for count in values.tolist()]
    if len(places) == len(values) and len(set(rows)) == 1:
        return f"modality {name!r} ({rows[0]})"
    shown = [f"{d if names is None else repr(names[d])} ({rows[d]})" for d in places[:_NAMED]]
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return f"modality {name!r}: feature{'s' * (len(places) > 1)} {', '.join(shown)}{more}"
