"""Sets of instances that a retrieval compares, queries and candidates, under a model, by whatever route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from calmrl_prob._support.arguments import checked_seed
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.features import names_of, with_names
from calmrl_prob.data.stream import MultimodalStream, require_data
from calmrl_prob.errors import ArgumentError, DataError, SchemaError
from calmrl_prob.evaluation.retrieval.exact_forms import ExactForm, form_by_structure, form_of, stated_form
from calmrl_prob.evaluation.retrieval.latent_rows import Encoded
from calmrl_prob.inference.feature_names import named_dims
from calmrl_prob.inference.fingerprint import fingerprint
from calmrl_prob.inference.posterior import posterior, require_method
from calmrl_prob.inference.protocols import Model
from calmrl_prob.linear_gaussian import FeatureBlocks, LinearGaussian, ObservedBlocks
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.posteriors.structured import StructuredPosterior

#: Encodings of data that are still there, each by the model and the modalities that it was last asked for: candidates
#: are the same from call to call, and encoding them costs far more than a query does.
_ENCODED: WeakKeyDictionary[MultimodalData, tuple[object, Encoded]] = WeakKeyDictionary()


class RetrievalModel:
    """A model that retrieval scores by.

    Args:
        model: whatever :func:`calmrl_prob.posterior` takes.
        data: all that it is to be asked about.
        options: of :func:`calmrl_prob.posterior`.

    Attributes:
        form: what it states of itself without a look at data; None where it states nothing.
        dims: its modalities, or, where it does not say, those of ``data``.
        model, options: as given.

    Raises:
        ArgumentError: options, for a model that states its form.

    Warns:
        UnfittedWarning: it still has the random parameters that it started from.
    """

    def __init__(self, model: Model, data: Sequence[MultimodalData], options: Mapping[str, Any]) -> None:
        require_method(options.get("method", "auto"))
        checked_seed(options.get("seed", 0))
        self.model, self.options, self.form = model, options, stated_form(model)
        unknown = sorted(set(options) - {"method", "seed"})
        if unknown and self.form is not None:
            raise ArgumentError(f"options: the exact routes have none, got {unknown}.")
        given = [part for part in data if isinstance(part, MultimodalData)]  # what is none, is refused by name later
        dims = self._stated_dims() or {n: width for part in reversed(given) for n, width in part.dims.items()}
        self.dims = with_names(dims, names_of(named_dims(model)), *(part.feature_names for part in given))

    def _stated_dims(self) -> dict[str, int]:
        if self.form is not None:
            return self.form.components[0].dims
        for part in (self.model, getattr(self.model, "model", None)):  # a FitResult or a BoundModel wraps the model
            dims = getattr(part, "dims", None)
            if isinstance(dims, Mapping):
                return dict(dims)
        return {}


@dataclass(frozen=True)
class StackedFeatures:
    """Features of N instances side by side, in float64.

    Attributes:
        names: modalities that some instance has.
        slices: for each its columns.
        values: (N, D), about ``centre``, 0 where absent.
        centre: (D,), the mean over the instances that have the modality.
        patterns: (B, M) bool over ``names``, ascending in ``slot``.
        slot: (N,) int64.
    """

    names: tuple[str, ...]
    slices: tuple[slice, ...]
    values: Tensor
    centre: Tensor
    patterns: Tensor
    slot: Tensor

    @classmethod
    def of(cls, data: MultimodalData) -> StackedFeatures:
        """Read off the data."""
        names = tuple(name for name in data.names if bool(data.observed(name).any()))
        blocks, centres, stop = [], [], 0
        slices = []
        for name in names:
            present = data.observed(name)[:, None]
            values = data.filled(name).double()
            centre = values.sum(0) / present.sum()
            blocks.append(torch.where(present, values - centre, 0.0))
            centres.append(centre)
            slices.append(slice(stop, stop + len(centre)))
            stop += len(centre)
        observed = torch.stack([data.observed(name) for name in names], dim=1)
        patterns, slot = torch.unique(observed, dim=0, return_inverse=True)
        return cls(names, tuple(slices), torch.cat(blocks, dim=1), torch.cat(centres), patterns, slot)

    def columns(self, pattern: Tensor) -> Tensor:
        """Mask of the columns that an instance with this pattern (M,) has, (D,) bool."""
        widths = torch.tensor([part.stop - part.start for part in self.slices], device=pattern.device)
        return torch.repeat_interleave(pattern, widths)


class InstanceSet:
    """Queries or candidates under a model.

    Args:
        model: the model.
        data: N instances.
        argument: how errors call ``data``.

    Attributes:
        data: the instances with all modalities of the model.

    Raises:
        SchemaError: a modality of ``data`` is unknown to the model or has another width.
        DataError: some rows lack single features.
        ArgumentTypeError: ``data`` is not MultimodalData.
    """

    def __init__(self, model: RetrievalModel, data: MultimodalData, argument: str) -> None:
        require_whole(data, argument)
        require_known(data, model.dims, argument)
        self.data = data.conform(model.dims)
        self._model, self._given = model, data

    def __len__(self) -> int:
        """Number of instances N."""
        return len(self.data)

    @cached_property
    def result(self) -> PosteriorResult:
        """The posterior of the latents given what each instance has."""
        return posterior(self._model.model, self.data, **self._model.options)

    @cached_property
    def _exact(self) -> tuple[ExactForm, ObservedBlocks] | None:
        """The exact form, if there is one, and the instances as it describes them."""
        form = self._model.form or form_of(self.result)
        if form is not None:
            return form, _whole(self.data.blocks)
        return form_by_structure(self.result, self.data) if isinstance(self.result, StructuredPosterior) else None

    @property
    def form(self) -> ExactForm | None:
        """The model's exact form, if it has one."""
        return None if self._exact is None else self._exact[0]

    def encode(self, linear_gaussian: LinearGaussian) -> Encoded:
        """The instances reduced to what closed forms need, by one component of the form."""
        assert self._exact is not None
        return Encoded(linear_gaussian, self._exact[1])

    @cached_property
    def encoded(self) -> Encoded:
        """The same by the only component; kept with the data as they were given."""
        assert self._exact is not None
        form, blocks = self._exact
        if blocks is not self.data.blocks:  # made of them by covariates
            return self.encode(form.components[0])
        key = (fingerprint(form.components[0]), self.data.names)
        kept = _ENCODED.get(self._given)
        if kept is None or kept[0] != key:
            kept = _ENCODED[self._given] = key, self.encode(form.components[0])
        return kept[1]

    @cached_property
    def features(self) -> StackedFeatures:
        """Their features side by side, as arrays that products take."""
        return StackedFeatures.of(self.data)


def require_whole(data: MultimodalData, argument: str) -> None:
    """Refuse what is not MultimodalData, or lacks single features.

    Raises:
        ArgumentTypeError, DataError: naming ``argument``.
    """
    require_data(data, argument)
    if data.has_partial_rows:
        raise DataError(
            f"{argument}: expected whole modalities, present or missing; some rows lack single features. "
            "Impute those first, or make such rows NaN throughout."
        )


def require_known(data: MultimodalData | MultimodalStream, dims: Mapping[str, int], argument: str) -> None:
    """Refuse modalities that a model does not know, or knows of another width.

    Raises:
        SchemaError: naming ``argument``.
    """
    for name, width in data.dims.items():
        if name not in dims:
            raise SchemaError(
                f"{argument}: the model has no modality '{name}'; it has {list(dims)}. "
                "Drop it with .select(names), or rename it."
            )
        if width != dims[name]:
            raise SchemaError(
                f"{argument}: modality '{name}' has {width} features, the model expects {dims[name]}. "
                "Preprocess it as the training data were."
            )


def _whole(blocks: ObservedBlocks | FeatureBlocks) -> ObservedBlocks:
    assert isinstance(blocks, ObservedBlocks)  # single features missing were refused before
    return blocks
