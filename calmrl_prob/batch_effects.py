"""Differences of batches of instances in their measurements: a part of ``SharedLatentModel``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from calmrl_prob._support.arguments import brief, described
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, FileFormatError
from calmrl_prob.linear_gaussian import BatchMoves, LinearGaussian, ObservedBlocks, StructuresByInstance, start_moves
from calmrl_prob.noise_parameters import parameter_key

if TYPE_CHECKING:
    import pandas as pd

#: What learned effects are made of: for each modality of D features, and B batches, the shapes.
_PARTS = {"centre": "D", "shift": "BD", "log_scale": "B", "variance": "D", "count": "B"}
_PARAMETERS = ("shift", "log_scale")
#: Refusal of data that have no whole rows.
PARTIAL = (
    "batch: shifts of batches are learned from rows with whole modalities, got statistics or rows that lack single "
    "features; give such rows, or make the model without batch."
)


class BatchEffects(nn.Module):
    """Shifts and scales of each batch's measurements, which its instances' latents do not explain.

        x_n^m = c^m + d_b^m + s_b^m (y_n^m - c^m),    y_n^m = W^m z_n + mu^m + noise,    d_b^m ~ N(0, diag(t^m))

    b being the batch of instance n: the donor, the site, the plate. Given the batches all is Gaussian, and posterior,
    imputation and retrieval are exact. Shifts are shrunk to what the variance t between batches allows: a batch of one
    instance hardly has one, and one that never had a modality has the intercept of all batches, with t for noise. So
    has an instance whose batch is not known: whose entry in the column is None or NaN.

    Made without data; ``cal.fit`` of a ``SharedLatentModel(dims, batch=BatchEffects("donor"))`` learns the batches.

    Args:
        column: what tells the batch of an instance: the name of a covariate, or "labels".
        scale: whether batches have a scale s for each modality too, drawn to 1 by ten instances; else s is 1.

    Raises:
        ArgumentTypeError: an argument is of another type.

    Example:
        >>> effects = BatchEffects("donor", scale=True)
        >>> effects
        BatchEffects('donor', scale=True; not learned yet)
    """

    def __init__(self, column: str = "batch", *, scale: bool = False) -> None:
        super().__init__()
        if not isinstance(column, str):
            raise ArgumentTypeError(f"column: expected 'labels' or the name of a covariate, got {described(column)}.")
        if not isinstance(scale, bool):
            raise ArgumentTypeError(f"scale: expected True or False, got {described(scale)}.")
        self.column, self.scale = column, scale
        #: The batches, once they are learned.
        self.names: tuple[str, ...] = ()
        self.modalities: tuple[str, ...] = ()

    def index(self, data: MultimodalData) -> Tensor:
        """The batch of each instance, (N,) int64; B for those of no known batch.

        Raises:
            DataError: the data lack the column, or have a batch that is not among those learned.
        """
        labels = batch_labels(data, self.column)
        known = {name: b for b, name in enumerate(self.names)} | {None: len(self.names)}
        unknown = sorted({label for label in labels if label not in known}, key=str)
        if unknown:
            raise DataError(
                f"data: batch {unknown[0]!r} of {self.column!r} was not in the data of the fit, which had "
                f"{brief(list(self.names))}; fit again with it, or enter None for its instances: they get the "
                "intercepts of all batches, and the variance between batches as noise."
            )
        return torch.tensor([known[label] for label in labels], dtype=torch.int64, device=data.device)

    def learn_index(self, data: MultimodalData) -> tuple[tuple[str, ...], Tensor]:
        """The batches of data to fit to, sorted, and that of each instance, (N,) int64.

        Raises:
            DataError: the data lack the column, or an instance has no batch.
        """
        labels = batch_labels(data, self.column)
        if None in labels:
            raise DataError(
                f"data: row {labels.index(None)} has no entry in {self.column!r}, by which batches are told apart; "
                "give it one, or leave the row out of the fit."
            )
        names, index = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)
        return tuple(names.tolist()), torch.as_tensor(index.reshape(-1), dtype=torch.int64, device=data.device)

    @torch.no_grad()
    def taken_off(self, data: MultimodalData) -> MultimodalData:
        """The rows y of data to fit to, by means, and variances, of its batches alone; nothing is kept.

        Raises:
            DataError: as :meth:`learn_index` does.
            ArgumentError: single features are missing.
        """
        blocks = data.blocks
        if not isinstance(blocks, ObservedBlocks):
            raise ArgumentError(PARTIAL)
        names, index = self.learn_index(data)
        moves = start_moves(blocks, index, len(names), scaled=self.scale)
        return data._derive(_values={name: moves.adjusted(name, data[name], index) for name in data.names})

    @torch.no_grad()
    def adjusted(self, data: MultimodalData) -> MultimodalData:
        """The rows y: learned shifts and scales taken off, so that ``model.linear_gaussian()`` is the model of them.

        Raises:
            DataError: as :meth:`index` does.
        """
        moves, index = self.moves, self.index(data)
        return data._derive(_values={name: moves.adjusted(name, data[name], index) for name in data.names})

    @torch.no_grad()
    def lacks_intercept(self, data: MultimodalData) -> Tensor:
        """Whether an instance has a modality that its batch never had in the fit, or is of no known batch; (N,) bool.

        :meth:`adjusted` does not do for these: shifts are unknown, and noise in them.

        Raises:
            DataError: as :meth:`index` does.
        """
        moves, index = self.moves, self.index(data)
        found = torch.zeros(len(data), dtype=torch.bool, device=data.device)
        for name in data.names:
            found |= data.observed(name) & (moves.count[name] == 0)[index]
        return found

    def require_adjusted(self, data: MultimodalData) -> MultimodalData:
        """As :meth:`adjusted`, of instances for which it does.

        Raises:
            DataError: as :meth:`index` does; or an instance has a modality of which its batch has no intercept.
        """
        lacking = self.lacks_intercept(data).nonzero().flatten().tolist()
        if lacking:
            raise DataError(
                f"data: {len(lacking)} of {len(data)} instances, first row {lacking[0]}, have a modality of which "
                f"their batch in {self.column!r} has no intercept, since none of the fit had it; leave them out."
            )
        return self.adjusted(data)

    @torch.no_grad()
    def load(self, names: Sequence[str], moves: BatchMoves, dtype: torch.dtype = torch.float64) -> None:
        """Take over what was learned of some batches."""
        given: dict[str, Mapping[str, Tensor]] = {
            "centre": moves.centre,
            "shift": {name: value[:-1] for name, value in moves.shift.items()},
            "log_scale": {name: value[:-1].log() for name, value in moves.scale.items()},
            "variance": moves.variance,
            "count": {name: value[:-1] for name, value in moves.count.items()},
        }
        self.allocate(names, {name: len(value) for name, value in moves.centre.items()}, dtype)
        for part, values in given.items():
            for name, value in values.items():
                getattr(self, parameter_key(part, name)).copy_(value)

    def allocate(self, names: Sequence[str], dims: Mapping[str, int], dtype: torch.dtype) -> None:
        """Room for what is learned of some batches, all of it zero."""
        self._parameters.clear()
        self._buffers.clear()
        self.names, self.modalities = tuple(names), tuple(dims)
        for key, shape in self.shapes(len(names), dims).items():
            value = torch.zeros(shape, dtype=dtype)
            if key.startswith(_PARAMETERS):
                self.register_parameter(key, nn.Parameter(value))
            else:
                self.register_buffer(key, value)

    @staticmethod
    def shapes(num_batches: int, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of the state."""
        return {
            parameter_key(part, name): tuple({"B": num_batches, "D": width}[axis] for axis in axes)
            for name, width in dims.items()
            for part, axes in _PARTS.items()
        }

    @property
    def moves(self) -> BatchMoves:
        """The shifts and scales, differentiable; the last row is of instances of no known batch."""
        found: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for name in self.modalities:
            for part in _PARTS:
                found[part][name] = getattr(self, parameter_key(part, name))
            for part in ("shift", "log_scale", "count"):
                value = found[part][name]
                found[part][name] = torch.cat([value, value.new_zeros(1, *value.shape[1:])])
        scale = {name: value.exp() for name, value in found["log_scale"].items()}
        return BatchMoves(found["centre"], found["shift"], scale, found["variance"], found["count"])

    def structure(self, likelihood: LinearGaussian, data: MultimodalData | None) -> StructuresByInstance | None:
        """One structure for each batch, and one for instances of no known batch; None without instances.

        Raises:
            DataError: as :meth:`index` does.
        """
        if data is None:
            return None
        moves = self.moves
        structures = tuple(moves.structure(likelihood, b) for b in range(len(self.names) + 1))
        return StructuresByInstance(structures, self.index(data), (*self.names, "no known batch"), self.column)

    def distribution(self, lg: LinearGaussian, name: str, location: Tensor, batch: Tensor) -> TorchDistribution:
        """The distribution of one modality's features x, an event of D_m, given the location of y, (N, D_m)."""
        moves = self.moves
        own = moves.variance[name] * (moves.count[name] == 0)[:, None]
        scale, own = moves.scale[name][batch][:, None], own[batch]
        moved, correlated = moves.moved(name, location, batch), lg.correlated_noise(name)
        if correlated is None:
            variance = lg.noise_variance[name] * scale.square() + own
            features: TorchDistribution = dist.Normal(moved, variance.sqrt()).to_event(1)
        elif correlated.dense:
            covariance = correlated.covariance() * scale[:, :, None].square() + torch.diag_embed(own)
            features = dist.MultivariateNormal(moved, covariance_matrix=covariance)
        else:
            factor, specific = correlated.factor * scale[:, :, None], correlated.specific * scale.square() + own
            features = dist.LowRankMultivariateNormal(moved, factor, specific)
        return features

    def table(self) -> pd.DataFrame:
        """One row for each batch and modality.

        Returns:
            batch; modality; num_instances that have it; shift, root mean square over features, in standard deviations t
            between batches (0 where features have none); scale; intercept: "own", or "of all batches" where no instance
            of the batch has the modality.
        """
        import pandas as pd

        moves, rows = self.moves, []
        for b, batch in enumerate(self.names):
            for name in self.modalities:
                there = moves.variance[name] > 0
                shift = moves.shift[name][b, there].detach() / moves.variance[name][there].sqrt()
                count = int(moves.count[name][b])
                rows.append(
                    {
                        "batch": batch,
                        "modality": name,
                        "num_instances": count,
                        "shift": float(shift.square().mean().sqrt()) if bool(there.any()) else 0.0,
                        "scale": float(moves.scale[name][b].detach()),
                        "intercept": "own" if count else "of all batches",
                    }
                )
        return pd.DataFrame(rows)

    def config(self) -> dict[str, Any]:
        """Settings and batches, as JSON."""
        return {"column": self.column, "scale": self.scale, "names": list(self.names)}

    @classmethod
    def of(cls, config: Mapping[str, Any], dims: Mapping[str, int], dtype: torch.dtype) -> BatchEffects:
        """Effects as :meth:`config` described them, their tensors zero.

        Raises:
            FileFormatError: the names are none.
        """
        found, names = cls(config["column"], scale=config["scale"]), config["names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FileFormatError(f"batch: expected the names of batches, got {brief(names)}")
        if names:
            found.allocate(names, dims, dtype)
        return found

    def parts(self) -> dict[str, Any]:
        """Settings and tensors, of which :meth:`from_parts` makes the same again."""
        dims = {name: len(getattr(self, parameter_key("centre", name))) for name in self.modalities}
        state = {key: value.detach() for key, value in self.state_dict().items()}
        return {"config": self.config(), "dims": dims, "state": state}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> BatchEffects:
        """The effects that :meth:`parts` took apart.

        Raises:
            FileFormatError, KeyError, TypeError, RuntimeError: they do not go together.
        """
        dtype = next((value.dtype for value in parts["state"].values()), torch.float64)
        found = cls.of(parts["config"], parts["dims"], dtype)
        found.load_state_dict(parts["state"])
        return found

    def __repr__(self) -> str:
        """One line."""
        learned = f"{len(self.names)} batches" if self.names else "not learned yet"
        return f"BatchEffects({self.column!r}, scale={self.scale}; {learned})"


def batch_labels(data: MultimodalData, column: str) -> list[str | None]:
    """The batch of each instance as text; None where there is none. Whole numbers are the same batch as floats.

    Raises:
        DataError: the data lack the column; or entries of it that differ, such as 1 and "1", have the same text.
        ArgumentError: it is no column of one entry for each instance.
    """
    found = data.labels if column == "labels" else data.covariates.get(column)
    if found is None:
        raise DataError(
            f"data: they have no {column!r}, by which batches are told apart; give MultimodalData covariates= with it. "
            f"The covariates are {sorted(data.covariates)}."
        )
    if np.ndim(found) != 1:
        raise ArgumentError(f"batch: {column!r} has the shape {np.shape(found)}; give one entry for each instance.")
    entries = np.asarray(found).tolist()
    labels = [_text(entry) for entry in entries]
    texts = {entry for entry in entries if isinstance(entry, str)}
    for entry, label in zip(entries, labels, strict=True):
        if not isinstance(entry, str) and label in texts:
            raise DataError(
                f"data: {column!r} has the entries {entry!r} and {label!r}, which may be one batch or two; write them "
                "alike if they are one, and give one of them another name if not."
            )
    return labels


def _text(entry: object) -> str | None:
    if entry is None or entry != entry:  # NaN
        return None
    return str(int(entry)) if isinstance(entry, float | np.floating) and entry.is_integer() else str(entry)
