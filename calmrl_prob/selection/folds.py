"""Folds of the data: what each fit of the choice sees, and what it is scored on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, reduce

import numpy as np
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed, described, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.entries import entries, grouped
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError
from calmrl_prob.linear_gaussian import FeatureBlocks, LinearGaussian, ObservedBlocks, SufficientStatistics
from calmrl_prob.linear_gaussian.em.cost import form_costs
from calmrl_prob.linear_gaussian.feature_names import FeatureNames, joined_names
from calmrl_prob.selection.held_out import HeldOutSums, sums_of_statistics
from calmrl_prob.selection.hidden import HeldOutRows, Hidden, hidden_parts, imputed_rows
from calmrl_prob.selection.moments import feature_moments
from calmrl_prob.selection.retrieval import mean_reciprocal_rank

#: E-steps that a whole choice takes of each row, about: what gathering statistics once is weighed against.
_E_STEPS = 300
#: Held-out instances of a fold that tell enough, and the folds that are then fitted.
_ENOUGH_ROWS, _ENOUGH_FOLDS = 1500, 2
#: Rows that have a feature beyond which it is not in one fold alone, but by a chance of 2^-60.
_ONE_FOLD_ALONE = 60
#: Held-out instances of a fold that tell settings apart alone, to 1e-3 of the score: scores of one instance differ by
#: some 0.05 from one setting to the next.
_MANY_ROWS = 5000
#: Numbers of what is hidden of a fold's rows, and seen in its place, up to which it is kept for all settings: 1 GB.
_KEPT_NUMBERS = 2**28


class FoldedStatistics:
    """Sufficient statistics of rows dealt to folds, from which :func:`calmrl_prob.fit` can choose settings.

    Statistics of all rows together cannot tell how well held-out rows are imputed; those of each fold can, at a cost
    that does not grow with the number of rows.

    Args:
        folds: the statistics of each fold, 2 or more, of the same modalities.
        samples: of each fold some of its rows at random, or None: what intervals learn the quantiles of errors by.

    Raises:
        ArgumentError: fewer than 2 folds, or not one sample for each.
        ArgumentTypeError: something else among them.
        SchemaError: the folds have other modalities or widths.

    Example:
        >>> from calmrl_prob.datasets import make_synthetic
        >>> data = make_synthetic(90, {"image": 4, "text": 3}, latent_dim=2, seed=0).data
        >>> FoldedStatistics.of(data, num_folds=3)
        FoldedStatistics(image: 4, text: 3; 3 folds of 30, 30, 30 instances)
    """

    def __init__(
        self, folds: Sequence[SufficientStatistics], samples: Sequence[MultimodalData | None] | None = None
    ) -> None:
        self.folds = tuple(folds)
        self.samples = (None,) * len(self.folds) if samples is None else tuple(samples)
        for fold in self.folds:
            if not isinstance(fold, SufficientStatistics):
                raise ArgumentTypeError(f"folds: expected SufficientStatistics, got {described(fold)}.")
            if fold.dims != self.folds[0].dims:
                raise SchemaError(f"folds: expected the modalities {self.folds[0].dims} in all, got {fold.dims}.")
            joined_names(self.folds[0].feature_names, fold.feature_names, "folds")
        if len(self.folds) < 2:
            raise ArgumentError(f"folds: expected 2 or more, got {len(self.folds)}; deal the rows to more.")
        if len(self.samples) != len(self.folds):
            raise ArgumentError(f"samples: expected one for each of {len(self.folds)} folds, got {len(self.samples)}.")

    @classmethod
    def of(cls, data: MultimodalData, num_folds: int = 3, seed: int = 0) -> FoldedStatistics:
        """Those of rows in memory, dealt at random as :func:`calmrl_prob.fit` deals them.

        Raises:
            ArgumentError: fewer than 2 folds, or rows that lack single features.
        """
        whole = whole_blocks(data)
        fold = deal(len(data), whole_number("num_folds", num_folds, least=2), checked_seed(seed))
        return cls(_statistics([data.subset(np.flatnonzero(fold == k)) for k in range(num_folds)], whole))

    @property
    def dims(self) -> dict[str, int]:
        """Number of features D_m of each modality."""
        return self.folds[0].dims

    @property
    def feature_names(self) -> FeatureNames:
        """For each modality the names of its features, where data came with some."""
        return self.folds[0].feature_names

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities."""
        return self.folds[0].names

    @property
    def num_instances(self) -> int:
        """Number of instances, of all folds together."""
        return sum(fold.num_instances for fold in self.folds)

    @property
    def total(self) -> SufficientStatistics:
        """The statistics of all rows."""
        return reduce(SufficientStatistics.merge, self.folds)

    def __repr__(self) -> str:
        """One line: modalities, folds and instances."""
        widths = ", ".join(f"{name}: {width}" for name, width in self.dims.items())
        counts = ", ".join(str(fold.num_instances) for fold in self.folds)
        return f"FoldedStatistics({widths}; {len(self.folds)} folds of {counts} instances)"


class Fold(ABC):
    """One fold: what a fit sees of the other folds, and how it imputes this one.

    Attributes:
        train: rows of the other folds, as EM takes them.
        centre: for each modality the mean of these rows (D_m,).
        spread: for each modality their variance (D_m,).
        data: the rows of this fold, or some of them at random; None where there are statistics alone.
        rows: (n,) their numbers among all rows, where these were dealt here.
    """

    train: ObservedBlocks | FeatureBlocks | SufficientStatistics
    centre: dict[str, Tensor]
    spread: dict[str, Tensor]
    data: MultimodalData | None = None
    rows: np.ndarray | None = None

    def _know(self, train: MultimodalData | SufficientStatistics) -> None:
        moments = feature_moments(train)
        self.centre = {name: mean for name, (mean, _) in moments.items()}
        self.spread = {name: variance for name, (_, variance) in moments.items()}

    @property
    def lacking(self) -> bool:
        """Whether the rows of the other folds lack a modality or feature altogether, so that nothing can be fitted."""
        train = self.train
        if isinstance(train, SufficientStatistics):
            seen = {n for present in train.scatters for n, here in zip(train.dims, present, strict=True) if here}
            return len(seen) < len(train.dims)
        return not bool(train.patterns.any(0).all())

    @abstractmethod
    def sums(self, lg: LinearGaussian) -> list[HeldOutSums]:
        """Sums of squared errors of this fold's rows under a model."""

    def imputed(self, lg: LinearGaussian, *, by_row: bool = True) -> Iterator[HeldOutRows]:
        """Imputations of this fold's rows one by one, none where there are statistics alone; see ``imputed_rows``."""
        return imputed_rows(lg, self._hidden, by_row=by_row)

    @property
    def _hidden(self) -> Iterable[Hidden]:
        if self.data is None:
            return ()
        numbers = len(self.data) * sum(self.data.dims.values()) * len(self.data.names)
        return self._kept_hidden if numbers <= _KEPT_NUMBERS else hidden_parts(self.data)

    @cached_property
    def _kept_hidden(self) -> tuple[Hidden, ...]:
        assert self.data is not None
        return tuple(hidden_parts(self.data))

    def retrieval(self, lg: LinearGaussian) -> float:
        """Mean reciprocal rank of this fold's rows across modalities.

        Raises:
            ArgumentError: there are statistics alone.
        """
        if self.data is None:
            raise ArgumentError(
                "criterion: 'retrieval' ranks rows, and statistics have none; give the rows, or choose by 'imputation'."
            )
        return mean_reciprocal_rank(lg, self.data)


class StatisticsFold(Fold):
    """A fold of which statistics are known.

    Args:
        train: of the other folds.
        held_out: of this one.
        data: its rows, or some of them at random, where they are known.
    """

    train: SufficientStatistics

    def __init__(
        self, train: SufficientStatistics, held_out: SufficientStatistics, data: MultimodalData | None = None
    ) -> None:
        self.train, self._held_out, self.data = train, held_out, data
        self._know(train)

    @property
    def whole(self) -> SufficientStatistics:
        """Of all rows."""
        return self.train.merge(self._held_out)

    def sums(self, lg: LinearGaussian) -> list[HeldOutSums]:
        """From the statistics of the fold."""
        return list(sums_of_statistics(lg, self._held_out, self.centre))


class RowFold(Fold):
    """A fold of rows.

    Args:
        train: rows of the other folds.
        held_out: rows of this one.
    """

    def __init__(self, train: MultimodalData, held_out: MultimodalData) -> None:
        self.train, self.data = train.blocks, held_out
        self._know(train)

    def sums(self, lg: LinearGaussian) -> list[HeldOutSums]:
        """From imputations of all rows."""
        return [rows.sums(self.centre[rows.modality]) for rows in self.imputed(lg, by_row=False)]


def make_folds(
    data: MultimodalData | FoldedStatistics,
    latent_dim: int,
    num_folds: int,
    seed: int,
    groups: Sequence[object] | None = None,
) -> list[Fold]:
    """The folds in the form that is cheaper for a whole choice.

    Args:
        data: rows, or statistics of folds that were dealt already.
        latent_dim: K, about: for the cost model.
        num_folds: of rows.
        seed: of dealing them.
        groups: (N,) rows of one group go to one fold; None for rows alone.
    """
    if isinstance(data, FoldedStatistics):
        return [StatisticsFold(_others(data, k), held, data.samples[k]) for k, held in enumerate(data.folds)]
    dealt = deal(len(data), num_folds, seed, groups)
    dealt[_never_held_out(data, dealt)] = -1
    rows = [np.flatnonzero(dealt == k) for k in range(num_folds)]
    parts = [data.subset(own) for own in rows]
    found: list[Fold] = []
    if _statistics_are_cheaper(data, latent_dim):
        kept = [data.subset(dealt == -1)] if bool((dealt == -1).any()) else []
        gathered = FoldedStatistics(_statistics([*parts, *kept], whole_blocks(data)))
        found += [StatisticsFold(_others(gathered, k), gathered.folds[k], parts[k]) for k in range(num_folds)]
    else:
        found += [RowFold(data.subset(np.flatnonzero(dealt != k)), parts[k]) for k in range(num_folds)]
    for fold, own in zip(found, rows, strict=True):
        fold.rows = own
    return found


def _never_held_out(data: MultimodalData, dealt: np.ndarray) -> list[int]:
    """A row for each feature that one fold alone has: without it the other folds could not be fitted."""
    kept = []
    for name in data.names:
        there = (data.feature_mask(name) if data.has_partial_rows else data.observed(name)[:, None]).cpu().numpy()
        few = np.flatnonzero(there.sum(0) < _ONE_FOLD_ALONE)
        for d in few:
            rows = np.flatnonzero(there[:, d])
            if len(rows) and len(set(dealt[rows].tolist())) == 1:
                kept.append(int(rows[0]))
    return kept


def _statistics_are_cheaper(data: MultimodalData, latent_dim: int) -> bool:
    if not isinstance(data.blocks, ObservedBlocks):
        return False
    costs = form_costs(data.blocks, latent_dim, _E_STEPS)
    return min(costs, key=costs.__getitem__) == "statistics"


def folds_to_fit(num_folds: int, num_scored: int) -> int:
    """Number of folds that are worth a fit: one or two where each has many instances, as every fit costs the same.

    Args:
        num_folds: that the rows were dealt to.
        num_scored: instances that have a score, of all folds together.
    """
    if num_scored >= _MANY_ROWS * num_folds:
        return 1
    return min(_ENOUGH_FOLDS, num_folds) if num_scored >= _ENOUGH_ROWS * num_folds else num_folds


def deal(num_instances: int, num_folds: int, seed: int, groups: Sequence[object] | None = None) -> np.ndarray:
    """The fold of each instance (N,), at random, of sizes that differ by one at most; of whole groups, if given.

    Raises:
        ArgumentError: not one group for each instance, or fewer groups than folds.

    Example:
        >>> deal(4, 2, seed=0, groups=["a", "b", "a", "b"]).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
        True
    """
    generator = np.random.default_rng(seed)
    if groups is None:
        fold: np.ndarray = generator.permutation(num_instances) % num_folds
        return fold
    names, index = grouped(entries(groups), "groups")
    if len(index) != num_instances:
        raise ArgumentError(f"groups: expected one for each of {num_instances} instances, got {len(index)}.")
    if len(names) < num_folds:
        raise ArgumentError(
            f"groups: expected at least {num_folds}, one a fold, got {len(names)}; ask for fewer folds."
        )
    sizes, counts = np.zeros(num_folds), np.bincount(index)
    of_group = np.empty(len(names), dtype=np.int64)
    for group in sorted(generator.permutation(len(names)), key=lambda g: -counts[g]):  # largest first, evenly
        of_group[group] = sizes.argmin()
        sizes[of_group[group]] += counts[group]
    dealt: np.ndarray = of_group[index]
    return dealt


def _statistics(parts: Sequence[MultimodalData], whole: ObservedBlocks) -> list[SufficientStatistics]:
    """Of each fold, about one shift."""
    shift = {name: values[: 1 << 16].double().mean(0) for name, values in whole.values.items()}
    return [SufficientStatistics(whole.dims, shift).update(part.blocks) for part in parts]  # type: ignore[arg-type]


def whole_blocks(data: MultimodalData) -> ObservedBlocks:
    """The rows, whole modalities present or missing.

    Raises:
        ArgumentError: they lack single features.
    """
    blocks = data.blocks
    if not isinstance(blocks, ObservedBlocks):
        raise ArgumentError("data: statistics take whole modalities, and these lack single features; give the rows.")
    return blocks


def _others(gathered: FoldedStatistics, k: int) -> SufficientStatistics:
    return reduce(SufficientStatistics.merge, [fold for j, fold in enumerate(gathered.folds) if j != k])
