"""One side of a retrieval, queries or candidates: what the model says of its instances, by whatever route."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, NotConjugateError, SchemaError
from calmrl_prob.evaluation.latent_rows import Encoded
from calmrl_prob.inference.exact import GaussianPosterior
from calmrl_prob.inference.mixture import MixtureResult
from calmrl_prob.inference.parameter_draws import DrawsPosterior
from calmrl_prob.inference.posterior import HasLinearGaussian, HasPosterior, Model, as_linear_gaussian, posterior
from calmrl_prob.inference.results import PosteriorResult
from calmrl_prob.inference.structured import StructuredPosterior
from calmrl_prob.linear_gaussian import FeatureBlocks, LinearGaussian, ObservedBlocks
from calmrl_prob.linear_gaussian.mixture import LinearGaussianMixture


@dataclass(frozen=True)
class ExactForm:
    """A model that is linear-Gaussian, or a mixture of such.

    Attributes:
        components: C of them.
        log_weights: log pi, shape (C,).
        latent_dim: K, of the model's own latents. Any that come after them carry noise that is correlated between
            features, of one measurement each: the two sides of a retrieval have nothing of them in common.
        same_axes: whether latents mean the same in all components.
    """

    components: tuple[LinearGaussian, ...]
    log_weights: Tensor
    latent_dim: int
    same_axes: bool = True

    @property
    def plain(self) -> bool:
        """Whether it is one Gaussian with all latents its own."""
        return len(self.components) == 1 and self.components[0].latent_dim == self.latent_dim

    @property
    def prior_mean(self) -> Tensor | None:
        """E[z], shape (K,); None where components have axes of their own."""
        if not self.same_axes:
            return None
        means = torch.stack([part.prior_mean for part in self.components])
        return (self.log_weights.exp() @ means)[: self.latent_dim]

    def mean(self, name: str) -> Tensor | None:
        """E[x^m], shape (D_m,); None where it is not one for all instances."""
        if name not in self.components[0].dims:
            return None
        means = [part.intercepts[name] + part.loadings[name] @ part.prior_mean for part in self.components]
        return self.log_weights.exp() @ torch.stack(means)

    def beside(self, *, before: int, after: int) -> tuple[LinearGaussian, ...]:
        """The components with room for the correlated noise of the other side, before or after their own."""
        return tuple(_padded(part, self.latent_dim, before, after) for part in self.components)


class Scored:
    """A model as retrieval sees it.

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
        self.model, self.options, self.form = model, options, _stated_form(model)
        unknown = sorted(set(options) - {"method", "seed"})
        if unknown and self.form is not None:
            raise ArgumentError(f"options: the exact routes have none, got {unknown}.")
        self.dims = self._stated_dims() or {
            name: width
            for part in reversed(data)
            if isinstance(part, MultimodalData)  # what is none, is refused by name later
            for name, width in part.dims.items()
        }

    def _stated_dims(self) -> dict[str, int]:
        if self.form is not None:
            return self.form.components[0].dims
        for part in (self.model, getattr(self.model, "model", None)):  # a FitResult or a BoundModel wraps the model
            dims = getattr(part, "dims", None)
            if isinstance(dims, Mapping):
                return dict(dims)
        return {}


@dataclass(frozen=True)
class Shown:
    """What N instances have, in float64.

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
    def of(cls, data: MultimodalData) -> Shown:
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
        """Which columns an instance with this pattern (M,) has, (D,) bool."""
        widths = torch.tensor([part.stop - part.start for part in self.slices], device=pattern.device)
        return torch.repeat_interleave(pattern, widths)


class Side:
    """The instances of one side of a retrieval under a model.

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

    def __init__(self, model: Scored, data: MultimodalData, argument: str) -> None:
        require_whole(data, argument)
        require_known(data, model.dims, argument)
        self.data = data.conform(model.dims)
        self._model = model

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
        form = self._model.form or _form_of(self.result)
        if form is not None:
            return form, _whole(self.data.blocks)
        return _by_structure(self.result, self.data) if isinstance(self.result, StructuredPosterior) else None

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
        """The same by the only component."""
        assert self.form is not None
        return self.encode(self.form.components[0])

    @cached_property
    def shown(self) -> Shown:
        """What the instances have, as arrays that products take."""
        return Shown.of(self.data)


def require_whole(data: MultimodalData, argument: str) -> None:
    """Refuse what is not MultimodalData, or lacks single features.

    Raises:
        ArgumentTypeError, DataError: naming ``argument``.
    """
    if not isinstance(data, MultimodalData):
        raise ArgumentTypeError(
            f"{argument}: expected MultimodalData, got {type(data).__name__}. "
            "Wrap arrays as MultimodalData({name: array})."
        )
    if data.has_partial_rows:
        raise DataError(
            f"{argument}: expected whole modalities, present or missing; some rows lack single features. "
            "Impute those first, or make such rows NaN throughout."
        )


def require_known(data: MultimodalData, dims: Mapping[str, int], argument: str) -> None:
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


def _stated_form(model: Model) -> ExactForm | None:
    """The form that a model states itself, without a look at data."""
    if isinstance(model, LinearGaussianMixture):
        return _exact(model, model.latent_dim)
    if isinstance(model, LinearGaussian):
        return _exact(model, model.latent_dim)
    if isinstance(model, HasLinearGaussian) and not isinstance(model, HasPosterior | type):
        try:
            lg = as_linear_gaussian(model)
        except NotConjugateError:  # its class can state a form, but this prior of it has none
            return None
        return _exact(lg, lg.latent_dim)
    return None


def _form_of(given: PosteriorResult) -> ExactForm | None:
    if isinstance(given, GaussianPosterior):
        return _exact(given.linear_gaussian, given.mean.shape[1])
    if isinstance(given, MixtureResult):
        return _exact(given.mixture, given.mean.shape[1])
    if isinstance(given, DrawsPosterior):  # a mixture over draws of the parameters
        forms = [_form_of(given.given(s)) for s in range(given.num_draws)]
        parts = [form.components for form in forms if form is not None]
        if all(len(components) == 1 for components in parts) and len(parts) == len(forms):
            equal = torch.full((len(forms),), -math.log(len(forms)), dtype=torch.float64, device=given.mean.device)
            return ExactForm(tuple(part[0] for part in parts), equal, given.mean.shape[1], same_axes=False)
    return None


def _by_structure(given: StructuredPosterior, data: MultimodalData) -> tuple[ExactForm, ObservedBlocks] | None:
    """One form for instances whose loadings, intercepts or noise depend on covariates, if they share a prior.

    A modality counts as another one for each structure that it has; what covariates add to the mean is taken off.
    """
    parts = [(rows, part) for rows, part in given.parts if isinstance(part, GaussianPosterior)]
    if len(parts) < len(given.parts):
        return None
    forms = [part.linear_gaussian.detach().to(torch.float64) for _, part in parts]
    first = forms[0]
    for lg in forms[1:]:
        if lg.latent_dim != first.latent_dim or not _close(lg.prior_covariance, first.prior_covariance):
            return None
    kinds: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in first.names}
    taken: dict[str, list[Tensor]] = {}
    rows_of: dict[str, list[Tensor]] = {}
    for (members, _), lg in zip(parts, forms, strict=True):
        for name in first.names:
            rows = members[data.observed(name)[members]]
            if not len(rows):
                continue
            own = (lg.loadings[name], lg.noise_variance[name])
            known = (k for k, kind in enumerate(kinds[name]) if all(map(_close, kind, own)))
            k = next(known, len(kinds[name]))
            if k == len(kinds[name]):
                kinds[name].append(own)
            centre = lg.intercepts[name] + lg.loadings[name] @ lg.prior_mean
            values = data[name][rows].double() - centre
            if name in given.offsets:
                values = values - given.offsets[name][rows].double()
            taken.setdefault(f"{name} {k}", []).append(values)
            rows_of.setdefault(f"{name} {k}", []).append(rows)
    observed = torch.zeros(len(data), len(taken), dtype=torch.bool, device=data.device)
    blocks = {}
    for column, (name, found) in enumerate(taken.items()):
        rows, order = torch.cat(rows_of[name]).sort()
        observed[rows, column] = True
        blocks[name] = torch.cat(found)[order]
    shapes = {f"{name} {k}": kind for name, found in kinds.items() for k, kind in enumerate(found)}
    form = LinearGaussian(
        {name: shapes[name][0] for name in taken},
        {name: shapes[name][1].new_zeros(len(shapes[name][1])) for name in taken},
        {name: shapes[name][1] for name in taken},
        torch.zeros_like(first.prior_mean),
        first.prior_covariance,
    )
    return _exact(form, given.mean.shape[1]), ObservedBlocks(blocks, observed)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two parameters are the same but for what discovery rounds."""
    return bool(torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max())))


def _whole(blocks: ObservedBlocks | FeatureBlocks) -> ObservedBlocks:
    assert isinstance(blocks, ObservedBlocks)  # single features missing were refused before
    return blocks


def _exact(model: LinearGaussian | LinearGaussianMixture, latent_dim: int) -> ExactForm:
    model = model.detach().to(torch.float64)
    if isinstance(model, LinearGaussian):
        return ExactForm((model,), torch.zeros(1, dtype=torch.float64, device=model.device), latent_dim)
    used = (model.log_weights > -torch.inf).nonzero().flatten()
    return ExactForm(tuple(model.components[c] for c in used.tolist()), model.log_weights[used], latent_dim)


def _padded(lg: LinearGaussian, latent_dim: int, before: int, after: int) -> LinearGaussian:
    """The same model of the data, with latents put in that nothing depends on."""
    if not before and not after:
        return lg

    def spread(columns: Tensor) -> Tensor:
        zeros = columns.new_zeros(*columns.shape[:-1], before + after)
        parts = (columns[..., :latent_dim], zeros[..., :before], columns[..., latent_dim:], zeros[..., before:])
        return torch.cat(parts, dim=-1)

    total = lg.latent_dim + before + after
    unused = torch.ones(total, dtype=lg.dtype, device=lg.device)
    unused[:latent_dim] = 0
    unused[latent_dim + before : latent_dim + before + lg.latent_dim - latent_dim] = 0
    covariance = spread(spread(lg.prior_covariance).mT).mT + torch.diag(unused)
    loadings = {name: spread(values) for name, values in lg.loadings.items()}
    return LinearGaussian(loadings, lg.intercepts, lg.noise_variance, spread(lg.prior_mean), covariance)
