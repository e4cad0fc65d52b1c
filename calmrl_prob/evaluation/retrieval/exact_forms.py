"""The exact form of a model, linear-Gaussian or a mixture of such, by which likelihood ratios have a closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.parameters.parameter_draws import DrawsPosterior
from calmrl_prob.inference.protocols import HasPosterior, Model
from calmrl_prob.inference.subject import STRUCTURES, stated_structure, warn_unfitted
from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.mixture import MixtureResult
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.posteriors.structured import StructuredPosterior
from calmrl_prob.posteriors.student_t import StudentTResult


@dataclass(frozen=True)
class ExactForm:
    """A model that is linear-Gaussian, or a mixture of such.

    Attributes:
        components: C of them.
        log_weights: log pi, shape (C,).
        latent_dim: K, of the model's own latents. Any that come after them carry noise that is correlated between
            features, of one measurement each: the two sides of a retrieval have nothing of them in common.
        same_axes: whether latents mean the same in all components.
        degrees_of_freedom: nu, shape (), if latent and noise of an instance share a random scale, so that all is
            multivariate t; None if all is normal. Means are the same either way.
    """

    components: tuple[LinearGaussian, ...]
    log_weights: Tensor
    latent_dim: int
    same_axes: bool = True
    degrees_of_freedom: Tensor | None = None

    @property
    def one_gaussian(self) -> bool:
        """Whether it is neither a mixture nor multivariate t."""
        return len(self.components) == 1 and self.degrees_of_freedom is None

    @property
    def plain(self) -> bool:
        """Whether means are those of one Gaussian with all latents its own."""
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


def stated_form(model: Model) -> ExactForm | None:
    """The form that a model states itself, without a look at data."""
    if isinstance(model, HasPosterior) and not isinstance(model, STRUCTURES):
        return None
    found = stated_structure(model)
    if isinstance(found, LinearGaussian | LinearGaussianMixture):
        warn_unfitted(model)
        return _exact(found.detach(), found.latent_dim)
    return None


def form_of(given: PosteriorResult) -> ExactForm | None:
    """The form that a posterior was computed by, if it is one for all instances."""
    if isinstance(given, GaussianPosterior):
        return _exact(given.linear_gaussian, given.mean.shape[1])
    if isinstance(given, MixtureResult):
        return _exact(given.mixture, given.mean.shape[1])
    if isinstance(given, StudentTResult):
        model = given.exact.model
        form = _exact(model.linear_gaussian, model.linear_gaussian.latent_dim)
        return replace(form, degrees_of_freedom=model.degrees_of_freedom.detach().double())
    if isinstance(given, DrawsPosterior):  # a mixture over draws of the parameters
        forms = [form_of(given.given(s)) for s in range(given.num_draws)]
        parts = [form.components[0] for form in forms if form is not None and form.one_gaussian]
        if len(parts) == len(forms):
            equal = torch.full((len(forms),), -math.log(len(forms)), dtype=torch.float64, device=given.mean.device)
            return ExactForm(tuple(parts), equal, given.mean.shape[1], same_axes=False)
    return None


def form_by_structure(given: StructuredPosterior, data: MultimodalData) -> tuple[ExactForm, ObservedBlocks] | None:
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
    kinds: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in first.names}
    taken: dict[str, list[Tensor]] = {}
    rows_of: dict[str, list[Tensor]] = {}
    for (members, _), lg in zip(parts, forms, strict=True):
        for name in first.names:
            rows = members[data.observed(name)[members]]
            if not len(rows):
                continue
            variance = lg.noise_variance[name]
            factor = variance.new_zeros(len(variance), 0) if lg.noise_factor is None else lg.noise_factor[name]
            own = (lg.loadings[name], variance, factor)
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
        {name: shapes[name][2] for name in taken},
    )
    return _exact(form, given.mean.shape[1]), ObservedBlocks(blocks, observed)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two parameters are the same but for what discovery rounds."""
    if one.shape != other.shape or not one.numel():
        return one.shape == other.shape
    return bool(torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max())))


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
    return replace(lg, loadings=loadings, prior_mean=spread(lg.prior_mean), prior_covariance=covariance)
