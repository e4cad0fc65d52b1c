"""One pass over the data: sufficient statistics by missing pattern, and the E-step that needs nothing else.

For a pattern p with stacked observed features x (D_p), everything that the linear-Gaussian likelihood can see of its
rows is the augmented scatter

    T_p = sum_n [x_n; 1] [x_n; 1]^T,   shape (D_p + 1, D_p + 1):   scatter, sum and count in one matrix,

with x taken about a fixed shift. Statistics add: over chunks, files, processes and devices. An E-step from them costs
one D_p x D_p x K product for each pattern, however many rows there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, ArgumentTypeError, SchemaError
from calmrl_prob.linear_gaussian.blocks import ObservedBlocks, linked_groups
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep, Moments, Totals, augment
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.feature_names import FeatureNames, joined_names
from calmrl_prob.linear_gaussian.grouping import Grouping
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.products import CHUNK_BUDGET, gram

Pattern = tuple[bool, ...]


class SufficientStatistics:
    """Augmented scatters of the data seen so far, one for each missing pattern, in float64.

    Products over a chunk run in the data's type, about the shift; their sums are kept in float64. So float32 data
    whose mean is many times their spread lose nothing beyond what float32 had lost already.

    Args:
        dims: number of features of each modality.
        shift: for each modality the point (D_m,) to take the data about; if None, the means of the first chunk in
            which the modality occurs. Any shift gives the same fit; one near the mean keeps all digits.

    Attributes:
        feature_names: for each modality the names of its features, where data came with some.
        scatters: for each pattern (a tuple of M bools) its T_p.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import ObservedBlocks, SufficientStatistics
        >>> mask = torch.tensor([[True, True], [True, False], [True, True]])
        >>> chunk = ObservedBlocks.from_arrays({"image": torch.rand(3, 4), "text": torch.rand(3, 2)}, mask)
        >>> statistics = SufficientStatistics({"image": 4, "text": 2}).update(chunk).update(chunk)
        >>> statistics.num_instances, len(statistics.scatters)
        (6, 2)
    """

    def __init__(self, dims: Mapping[str, int], shift: Mapping[str, Tensor] | None = None) -> None:
        self.dims = dict(dims)
        self.feature_names: FeatureNames = dict(getattr(dims, "feature_names", {}))
        self.scatters: dict[Pattern, Tensor] = {}
        self._shift: dict[str, Tensor] = {} if shift is None else {n: s.double() for n, s in shift.items()}
        self._buffer = torch.empty(0)
        self._pairwise: tuple[Tensor, Tensor] | None = None  # until more is added: every fit of a search asks for it

    @classmethod
    def from_blocks(cls, blocks: ObservedBlocks) -> SufficientStatistics:
        """The statistics of data that is all in memory."""
        return cls(blocks.dims).update(blocks)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes: all but the buffer, and what can be made again."""
        return {**self.__dict__, "_buffer": torch.empty(0), "_pairwise": None}

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities."""
        return tuple(self.dims)

    @property
    def num_instances(self) -> int:
        """Number of instances seen."""
        return int(sum(float(scatter[-1, -1]) for scatter in self.scatters.values()))

    def __repr__(self) -> str:
        """One line: modalities with their widths, instances and patterns."""
        widths = ", ".join(f"{name}: {width}" for name, width in self.dims.items())
        return f"SufficientStatistics({widths}; {self.num_instances} instances, {len(self.scatters)} patterns)"

    def modality_groups(self) -> list[tuple[str, ...]]:
        """Groups of modalities that instances link; nothing says how those of different groups go together."""
        patterns = torch.tensor(list(self.scatters), dtype=torch.bool).view(-1, len(self.dims))
        return linked_groups(self.names, patterns)

    @property
    def device(self) -> torch.device | None:
        """Device of the sums: that of the shift, or of the first chunk; None while there is neither."""
        return next((known.device for known in self._shift.values()), None)

    @property
    def shift(self) -> Tensor:
        """The shift stacked over modalities, (D,); zero for a modality that has not occurred yet."""
        unseen = {
            name: torch.zeros(width, dtype=torch.float64, device=self.device) for name, width in self.dims.items()
        }
        return torch.cat([{**unseen, **self._shift}[name] for name in self.dims])

    def update(self, blocks: ObservedBlocks) -> SufficientStatistics:
        """Add a chunk of instances, in place.

        Args:
            blocks: instances with the same modalities, any number of them, on any device: products are made there, and
                sums stay where they are.

        Returns:
            This object, so that calls can be chained.

        Raises:
            ArgumentTypeError: ``blocks`` is something else, or lacks single features.
            SchemaError: the modalities or widths differ from ``dims``, or the names of features.
        """
        if not isinstance(blocks, ObservedBlocks):
            raise ArgumentTypeError(
                f"blocks: expected ObservedBlocks, as MultimodalData has them in its attribute blocks, got "
                f"{type(blocks).__name__}. Statistics take whole modalities, present or missing."
            )
        if blocks.dims != self.dims:
            raise SchemaError(f"blocks: expected modalities {self.dims}, got {blocks.dims}.")
        self.feature_names = joined_names(self.feature_names, blocks.feature_names, "blocks")
        self._pairwise = None
        for name, values in blocks.values.items():
            if name not in self._shift and len(values):
                sample = values[: max(1, CHUNK_BUDGET // values.shape[1])]  # any point near the mean will do
                self._shift[name] = sample.mean(0, dtype=torch.float64).to(values.dtype).to(self.device, torch.float64)
        for pattern, members in enumerate(blocks.pattern_rows):
            present = tuple(blocks.patterns[pattern].tolist())
            if any(present):
                self._add_rows(blocks, pattern, present, members)
        return self

    def _add_rows(self, blocks: ObservedBlocks, pattern: int, present: Pattern, members: Tensor) -> None:
        chosen = [name for name, here in zip(self.dims, present, strict=True) if here]
        home = torch.cat([self._shift[name] for name in chosen])
        exact = home.to(blocks.device)
        shift = exact.to(blocks.dtype)
        width = len(shift)
        scatter = self._scatter(present, width, home.device)
        step = max(4 * width, CHUNK_BUDGET // width)  # enough rows to pay for adding a (D_p, D_p) product
        as_is = scatter.device == exact.device and not bool((shift != exact).any())
        total = scatter if as_is else torch.zeros_like(scatter, device=exact.device)
        for rows in members.split(step):
            centred = self._centre(blocks.stacked(pattern, rows), shift)
            sums = centred.new_ones(len(rows)) @ centred
            total[:-1, :-1] += gram(centred)
            total[:-1, -1] += sums
            total[-1, :-1] += sums
            total[-1, -1] += len(rows)
        if (
            not as_is
        ):  # the shift had to be rounded to the data's type, or the rows are elsewhere: move to the exact one
            scatter += _moved(total, shift - exact).to(scatter.device)

    def _centre(self, values: Tensor, shift: Tensor) -> Tensor:
        """Subtract into a buffer that is kept: fresh memory for each chunk costs more than the subtraction."""
        if self._buffer.dtype != values.dtype or self._buffer.device != values.device:
            self._buffer = values.new_empty(0)
        if self._buffer.numel() < values.numel():
            self._buffer = values.new_empty(values.numel())
        return torch.sub(values, shift, out=self._buffer[: values.numel()].view_as(values))

    def _scatter(self, present: Pattern, width: int, device: torch.device) -> Tensor:
        if present not in self.scatters:
            self.scatters[present] = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=device)
        return self.scatters[present]

    def shifted(self, shift: Mapping[str, Tensor]) -> SufficientStatistics:
        """The same statistics about another shift: T -> B T B^T, where B moves x by the difference."""
        moved = SufficientStatistics(self.dims, shift)
        moved.feature_names = self.feature_names
        for present, scatter in self.scatters.items():
            step = torch.cat(
                [self._shift[name] - moved._shift[name] for name, here in zip(self.dims, present, strict=True) if here]
            )
            moved.scatters[present] = _moved(scatter, step)
        return moved

    def to(self, device: torch.device | str | None) -> SufficientStatistics:
        """The same statistics on another device."""
        moved = SufficientStatistics(self.dims, {name: shift.to(device) for name, shift in self._shift.items()})
        moved.feature_names = self.feature_names
        moved.scatters = {present: scatter.to(device) for present, scatter in self.scatters.items()}
        return moved

    def scaled(self, weight: float) -> SufficientStatistics:
        """Those of the same instances, each counted ``weight`` times: how online fits forget."""
        fewer = SufficientStatistics(self.dims, self._shift)
        fewer.feature_names = self.feature_names
        fewer.scatters = {present: weight * scatter for present, scatter in self.scatters.items()}
        return fewer

    def to_tensors(self) -> dict[str, Any]:
        """Tensors that :meth:`from_tensors` makes the same statistics of, bit for bit; for checkpoints."""
        scatters = {present: scatter.clone() for present, scatter in self.scatters.items()}
        return {"dims": dict(self.dims), "shift": dict(self._shift), "scatters": scatters}

    @classmethod
    def from_tensors(cls, kept: Mapping[str, Any]) -> SufficientStatistics:
        """The statistics that :meth:`to_tensors` took apart.

        Raises:
            SchemaError: a scatter is not that of its pattern.
        """
        statistics = cls(kept["dims"], kept["shift"])
        statistics.scatters = dict(kept["scatters"])
        for present, scatter in statistics.scatters.items():
            width = 1 + sum(size for size, here in zip(statistics.dims.values(), present, strict=True) if here)
            if scatter.shape != (width, width) or not all(isinstance(here, bool) for here in present):
                raise SchemaError(f"scatters: expected ({width}, {width}) for {present}, got {tuple(scatter.shape)}.")
        return statistics

    def merge(self, other: SufficientStatistics) -> SufficientStatistics:
        """The statistics of both sets of instances together; also written ``self + other``.

        Raises:
            SchemaError: the two have different modalities, widths or names of features.
        """
        if self.dims != other.dims:
            raise SchemaError(f"other: expected modalities {self.dims}, got {other.dims}.")
        if None not in (self.device, other.device) and self.device != other.device:
            other = other.to(self.device)
        shift = {**other._shift, **self._shift}
        merged, added = self.shifted(shift), other.shifted(shift)
        merged.feature_names = joined_names(self.feature_names, other.feature_names, "other")
        for present, scatter in added.scatters.items():
            merged.scatters[present] = merged.scatters[present] + scatter if present in merged.scatters else scatter
        return merged

    def __add__(self, other: SufficientStatistics) -> SufficientStatistics:
        """The statistics of both sets of instances together."""
        return self.merge(other)

    def pairwise_covariance(self) -> tuple[Tensor, Tensor]:
        """Means (D,) about the shift, and the covariance (D, D) of each pair of features over the rows with both.

        Zero between modalities that never occur together. Not positive semidefinite in general.
        """
        if self._pairwise is None:
            self._pairwise = self._pairwise_covariance()
        return self._pairwise

    def _pairwise_covariance(self) -> tuple[Tensor, Tensor]:
        shape = Shape.of(self.dims, next(iter(self.scatters.values())).device)
        parts = [(scatter, pattern_features(shape, present)) for present, scatter in self.scatters.items()]
        count, total, _ = pattern_totals(parts, shape)
        mean = total / count.clamp(min=1)
        covariance = torch.zeros(shape.total, shape.total, dtype=torch.float64, device=mean.device)
        pairs = covariance.new_zeros(len(self.dims), len(self.dims))
        for present, (scatter, features) in zip(self.scatters, parts, strict=True):
            covariance[features[:, None], features] += _moved(scatter, -mean[features])[:-1, :-1]
            here = covariance.new_tensor(present)
            pairs += torch.outer(here, here) * scatter[-1, -1]
        covariance /= pairs[shape.feature_modality[:, None], shape.feature_modality].clamp(min=1)
        return mean, covariance


def _moved(scatter: Tensor, step: Tensor) -> Tensor:
    """The augmented scatter of x + step from that of x: B T B^T with B = [[I, step], [0, 1]]."""
    padded = torch.cat([step, step.new_zeros(1)])
    by_row = scatter + torch.outer(padded, scatter[-1])
    return by_row + torch.outer(by_row[:, -1], padded)


def pattern_features(shape: Shape, present: Pattern) -> Tensor:
    """The stacked features that a pattern has, (D_p,) int64."""
    here = torch.tensor(present, device=shape.feature_modality.device)
    return here[shape.feature_modality].nonzero().squeeze(1)


def pattern_totals(parts: list[tuple[Tensor, Tensor]], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Count, sum and sum of squares of each feature, each (D,), from scatters and the features that they are of."""
    count = torch.zeros(shape.total, dtype=torch.float64, device=shape.feature_modality.device)
    total, square = torch.zeros_like(count), torch.zeros_like(count)
    for scatter, features in parts:
        count[features] += scatter[-1, -1]
        total[features] += scatter[:-1, -1]
        square[features] += scatter.diagonal()[:-1]
    return count, total, square


class FromStatistics(ExpectationStep):
    """The E-step from sufficient statistics: its cost does not depend on the number of rows.

    With A~ = [A_p; -b_p^T], the natural means h = A_p^T x - b_p of all rows of a pattern enter as
    sum h [x; 1]^T = A~^T T_p and sum h h^T = A~^T T_p A~.
    """

    def __init__(self, statistics: SufficientStatistics) -> None:
        if not statistics.scatters:
            raise ArgumentError("statistics: expected at least one instance, got none. Call update first.")
        device = next(iter(statistics.scatters.values())).device
        self.shape = Shape.of(statistics.dims, device)
        self.grouping = Grouping.of_widths(statistics.dims, device)
        parts = [(scatter, pattern_features(self.shape, present)) for present, scatter in statistics.scatters.items()]
        members = torch.tensor(list(statistics.scatters), dtype=torch.float64, device=device)
        self._scatters = list(statistics.scatters.values())
        self._present = [
            [part for part, here in zip(self.shape.slices, present, strict=True) if here]
            for present in statistics.scatters
        ]
        self._members = torch.cat([members, members.new_ones(len(members), 1)], dim=1)
        self._counts = torch.stack([scatter[-1, -1] for scatter in self._scatters])
        _, total, square = pattern_totals(parts, self.shape)
        self.totals = Totals(self._counts @ members, total, square)

    def __call__(self, parameters: Parameters) -> Moments:
        """Expected moments and evidence at ``parameters``."""
        latent_dim = parameters.loadings.shape[1]
        weights = parameters.weights
        precision, offset = self.group_precisions(weights, parameters)
        members = self._members[:, :-1]
        offsets = members @ offset
        identity = torch.eye(latent_dim, dtype=weights.dtype, device=weights.device).flatten()
        inner = torch.addmm(identity, members, precision.reshape(len(precision), -1))
        factor = factorize(inner.view(-1, latent_dim, latent_dim))
        covariance = torch.cholesky_inverse(factor)
        half_logdet = self._counts @ factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        columns = weights.mT.contiguous()  # (K, D): latents first throughout, which is how the products are fastest
        cross = torch.zeros_like(columns)
        natural, first = torch.empty_like(covariance), torch.empty_like(offsets)
        for p, (scatter, present) in enumerate(zip(self._scatters, self._present, strict=True)):
            augmented = torch.cat([*(columns[:, part] for part in present), -offsets[p, :, None]], dim=1)
            scattered = augmented @ scatter.mT  # symmetric, and half as fast the other way round
            torch.mm(scattered, augmented.mT, out=natural[p])
            solved = covariance[p] @ scattered
            first[p] = solved[:, -1]
            sizes = [part.stop - part.start for part in present]
            for part, block in zip(present, solved[:, :-1].split(sizes, dim=1), strict=True):
                cross[:, part] += block
        quadratic = torch.dot(natural.flatten(), covariance.flatten())
        evidence = self.feature_log_density(parameters) + 0.5 * quadratic - half_logdet
        second = torch.baddbmm(covariance * self._counts[:, None, None], covariance @ natural, covariance)
        groups = self._members.mT
        latent = augment(groups @ first, groups @ second.flatten(1), groups @ self._counts)
        return Moments(float(evidence), cross.mT, latent)
