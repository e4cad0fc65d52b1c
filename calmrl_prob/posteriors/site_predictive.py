"""The predictive of a site of any family: mixed over draws of the latents, with the site's own values and densities.

    p(x_nd | x_n) ~ sum_s w_ns p(x_nd | z_ns)

so that counts are imputed as counts, shares as shares, and heavy tails stay heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.posteriors.predictive import MixturePredictive
from calmrl_prob.posteriors.site_given import SiteGiven

#: Times that a bracket of a quantile is halved: to within 1e-9 of its width.
_HALVINGS = 30
#: Times that a bracket is widened at most, by twice as much each time.
_WIDENINGS = 60
#: Draws of the site for each draw of the latents, by which the score of a forecast is computed.
_SCORE_DRAWS = 4


class SitePredictive(MixturePredictive):
    """A mixture over S weighted draws of the latents of what a site of any family is given each.

    Args:
        log_weight: (S, N), log of weights that sum to one over S.
        given: the site given the draws, in parts of some draws each.
        dtype: of the results.

    Attributes:
        whole: whether its values are whole numbers; quantiles and draws are such then, and the log density is of
            probabilities.
    """

    def __init__(self, log_weight: Tensor, given: Sequence[SiteGiven], dtype: torch.dtype) -> None:
        moments = [part.moments() for part in given]
        location, variance = (torch.cat(parts).to(dtype) for parts in zip(*moments, strict=True))
        super().__init__(log_weight.to(dtype), location, location.new_zeros(()).expand_as(location), variance)
        self._given, self._weight = given, log_weight.double().exp()

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return self._given[0].whole

    def settle(self, values: Tensor) -> Tensor:
        """Values (N, D) brought to the nearest that the site takes: whole numbers, and not below its least."""
        settled, least = values.round() if self.whole else values, self._given[0].least
        if least is None or (isinstance(least, Tensor) and least.ndim):
            return settled
        return settled.clamp(min=float(least))

    def log_density(self, values: Tensor) -> Tensor:
        """log sum_s w_ns p(x_nd | z_ns), nats, (N, D): of whole numbers the log probability."""
        parts = torch.cat([part.log_density(values) for part in self._given]).double()
        return torch.logsumexp(self._weight.log()[:, :, None] + parts, dim=0).to(self.location.dtype)

    def cdf(self, values: Tensor) -> Tensor:
        """P(x_nd <= ``values`` | x_n), (N, D)."""
        return self._below(values.double()).to(self.location.dtype)

    def quantile(self, probability: float) -> Tensor:
        """The least value whose probability of not being exceeded is at least this, (N, D)."""
        low, high = self._drawn.amin(0).floor() - 1, self._drawn.amax(0).ceil() + 1
        width = high - low
        for _ in range(_WIDENINGS):
            short, long = self._below(low) >= probability, self._below(high) < probability
            if not bool((short | long).any()):
                break
            low, high, width = torch.where(short, low - width, low), torch.where(long, high + width, high), 2 * width
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self.whole:
                if bool((high - low <= 1).all()):
                    break
                middle = middle.floor()
            enough = self._below(middle) >= probability
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        return (high if self.whole else self.settle((low + high) / 2)).to(self.location.dtype)

    def crps(self, values: Tensor) -> Tensor:
        """Continuous ranked probability score at ``values`` (N, D), data units, (N, D), from draws; lower is better.

        E|X - x| - E|X - X'| / 2, with no draw set against itself. Source: Gneiting & Raftery, Strictly Proper Scoring
        Rules, Prediction, and Estimation, 2007.
        """
        weight = (self._weight / _SCORE_DRAWS).repeat(_SCORE_DRAWS, 1)[:, :, None].expand_as(self._drawn)
        error = (weight * (self._drawn - values).abs()).sum(0)
        ordered, order = self._drawn.sort(0)
        own = weight.gather(0, order)
        spread = (own * ordered * (2 * own.cumsum(0) - own - 1)).sum(0) / (1 - weight.square().sum(0)).clamp(min=1e-12)
        return (error - spread).to(self.location.dtype)

    @cached_property
    def _drawn(self) -> Tensor:
        """Draws of the site, (_SCORE_DRAWS S, N, D), always the same."""
        return torch.cat([part.sample(i) for i in range(_SCORE_DRAWS) for part in self._given])

    def _below(self, values: Tensor) -> Tensor:
        total = torch.zeros_like(self.mean, dtype=torch.float64)
        start = 0
        for part in self._given:
            below = part.cdf(values).double()
            total += torch.einsum("sn,snd->nd", self._weight[start : start + len(below)], below)
            start += len(below)
        return total
