"""A modality's site given draws of the latents: what it says of each feature, whatever its family."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.zero_inflated import ZeroInflatedDistribution
from torch import Tensor

from calmrl_prob._support.randomness import seeded
from calmrl_prob.conjugacy.gaussian_sites import unwrap
from calmrl_prob.programs.sites import Site
from calmrl_prob.programs.unvalidated import unvalidated

#: Draws of a site whose family has no distribution function that is known here, by which it is estimated.
_DRAWS = 64
_SEED = 0

_NORMAL = (torch.distributions.Normal, torch.distributions.MultivariateNormal)
_ONE_OF_K = (torch.distributions.OneHotCategorical, torch.distributions.RelaxedOneHotCategorical)


class SiteGiven:
    """The distribution of one modality's features given each of S draws of the latents of N instances.

    Args:
        site: in a call on S N rows, the N instances of the first draw first.
        features: the marginals of its features, one by one (:func:`features_of`).
        num_instances: N.
    """

    def __init__(self, site: Site, features: Any, num_instances: int) -> None:  # noqa: ANN401 - any distribution
        self._site, self._features, self._num_instances = site, features, num_instances
        self._drawn: Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return bool(self._features.support.is_discrete)

    @property
    def least(self) -> Tensor | float | None:
        """The least value that it takes; None where there is none that is known."""
        found: Tensor | float | None = getattr(self._features.support, "lower_bound", None)
        return 0.0 if found is None and isinstance(self._features, torch.distributions.Bernoulli) else found

    def sample(self, seed: int) -> Tensor:
        """A draw of whole rows, features together, (S, N, D)."""
        with seeded(seed, self._site.value.device), unvalidated():
            return self._by_draw(self._site.rows(self._site.fn.sample()).double())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (S, N, D)."""
        features = self._features
        if isinstance(features, torch.distributions.Categorical):
            number = torch.arange(features.probs.shape[-1]).to(features.probs)
            mean = (features.probs * number).sum(-1)
            variance = (features.probs * number.square()).sum(-1) - mean.square()
        else:
            mean, variance = features.mean, features.variance
        return self._by_draw(self._site.rows(mean)), self._by_draw(self._site.rows(variance))

    def log_density(self, values: Tensor) -> Tensor:
        """log p(x_nd | z_ns) at (N, D), nats, (S, N, D): of what is counted the log probability, never above 0."""
        at, features = self._shaped(values), self._features
        with unvalidated():
            inside = features.support.check(at)
            # somewhere inside, so that nothing is computed of what lies outside
            density = features.log_prob(torch.where(inside, at, self._site.value.expand(at.shape).to(at)))
            density = torch.where(inside, density, -torch.inf)
            density = torch.where(at.isnan(), torch.nan, density)
        return self._by_draw(self._site.rows(density))

    def joint_log_density(self, values: Tensor) -> Tensor:
        """log p(x_n | z_n) of whole rows, features together, at T values of each, (T, N, D); given one draw, (T, N)."""
        fn = unwrap(self._site.fn)
        at = torch.stack([self._site.shaped(rows) for rows in values])
        with unvalidated():
            density = fn.log_prob(at.to(self._site.value.dtype))
            if not fn.event_shape:
                density = torch.where(fn.support.check(at), density, -torch.inf)
        shape = self._site.fn.shape()[: len(self._site.fn.shape()) - len(fn.event_shape)]
        by_row: Tensor = density.double().expand(len(at), *shape).movedim(1 + self._site.place(), 1)
        total: Tensor = by_row.reshape(*values.shape[:2], -1).sum(2)
        return total

    def cdf(self, values: Tensor) -> Tensor:
        """P(x_nd <= values | z_ns) at (N, D), (S, N, D)."""
        with unvalidated():
            found = cumulative(self._features, self._shaped(values))
        if found is not None:
            return self._by_draw(self._site.rows(found))
        if self._drawn is None:
            self._drawn = torch.stack([self.sample(_SEED + i) for i in range(_DRAWS)])
        return (self._drawn <= values).double().mean(0)

    def _shaped(self, values: Tensor) -> Tensor:
        rows = values.repeat(len(self._site.rows(self._site.value)) // self._num_instances, 1)
        return self._site.shaped(rows)

    def _by_draw(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, self._num_instances, rows.shape[1])


def features_of(site: Site) -> Any:  # noqa: ANN401 - any distribution
    """The marginals of a site's features as a distribution of single numbers; None of normal ones and unknown families.

    Example:
        >>> fn = dist.Dirichlet(torch.ones(3, 2))
        >>> features_of(Site("x", fn, torch.full((3, 2), 0.5), -1, None, 1.0))
        Beta()
    """
    fn = unwrap(site.fn)
    if isinstance(fn, _NORMAL):
        return None
    if isinstance(fn, _ONE_OF_K):
        return torch.distributions.Bernoulli(fn.probs, validate_args=False)
    if isinstance(fn, torch.distributions.Dirichlet):
        total = fn.concentration.sum(-1, keepdim=True)
        return dist.Beta(fn.concentration, total - fn.concentration, validate_args=False)
    if isinstance(fn, torch.distributions.Multinomial):
        return torch.distributions.Binomial(fn.total_count, fn.probs, validate_args=False)
    if isinstance(fn, dist.MultivariateStudentT):
        scale = fn.scale_tril.square().sum(-1).sqrt()
        return torch.distributions.StudentT(fn.df[..., None], fn.loc, scale, validate_args=False)
    return fn if not fn.event_shape and _has_support(fn) else None


def _has_support(fn: Any) -> bool:  # noqa: ANN401
    try:
        return fn.support is not None and fn.support.event_dim == 0
    except NotImplementedError:
        return False


def cumulative(fn: Any, values: Tensor) -> Tensor | None:  # noqa: ANN401
    """P(x <= values) of a distribution of single numbers; None where its family has no such function here."""
    if fn.support.is_discrete:
        return _counted(fn, values.floor())
    low = getattr(fn.support, "lower_bound", None)
    high = getattr(fn.support, "upper_bound", None)
    at = values if low is None else torch.maximum(values, torch.as_tensor(low).to(values))
    at = at if high is None else torch.minimum(at, torch.as_tensor(high).to(values))
    if isinstance(fn, torch.distributions.Beta):
        return _beta(fn.concentration1, fn.concentration0, at)
    if isinstance(fn, torch.distributions.StudentT):
        z = (at - fn.loc) / fn.scale
        tail = 0.5 * _beta(fn.df / 2, torch.full_like(fn.df, 0.5), fn.df / (fn.df + z.square()))
        return torch.where(z > 0, 1 - tail, tail)
    try:
        found: Tensor = fn.cdf(at)
    except NotImplementedError:
        return None
    return found


def _counted(fn: Any, k: Tensor) -> Tensor | None:  # noqa: ANN401
    """P(x <= k) of whole numbers that begin at 0."""
    at = k.clamp(min=0)
    if isinstance(fn, ZeroInflatedDistribution):
        inner = _counted(unwrap(fn.base_dist), k)
        found = None if inner is None else fn.gate + (1 - fn.gate) * inner
    elif isinstance(fn, torch.distributions.Poisson):
        found = torch.special.gammaincc(at + 1, fn.rate.expand(at.shape).to(at))
    elif isinstance(fn, torch.distributions.Bernoulli):
        found = torch.where(at >= 1, 1.0, 1 - fn.probs)
    elif isinstance(fn, torch.distributions.Binomial):
        total = torch.as_tensor(fn.total_count).to(at)
        found = _beta((total - at).clamp(min=0.5), at + 1, 1 - fn.probs)
        found = torch.where(at >= total, 1.0, found)
    elif isinstance(fn, torch.distributions.NegativeBinomial):
        found = _beta(torch.as_tensor(fn.total_count).to(at), at + 1, 1 - fn.probs)
    elif isinstance(fn, dist.GammaPoisson):
        found = _beta(fn.concentration, at + 1, fn.rate / (1 + fn.rate))
    elif isinstance(fn, torch.distributions.Geometric):
        found = 1 - (1 - fn.probs) ** (at + 1)
    elif isinstance(fn, torch.distributions.Categorical):
        below = fn.probs.cumsum(-1).expand(*at.shape, -1)
        last = (at.long().clamp(max=below.shape[-1] - 1))[..., None]
        found = below.gather(-1, last)[..., 0]
    else:
        return None
    return None if found is None else torch.where(k < 0, 0.0, found)


def _beta(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """The regularised incomplete beta function I_x(a, b)."""
    from scipy import special

    parts = [part.detach().double().cpu().numpy() for part in (a, b, x)]
    return torch.as_tensor(special.betainc(*parts)).to(x)
