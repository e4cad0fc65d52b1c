"""Importance weighting: evidence, posterior moments and draws from a guide that is only near the posterior.

With S draws z_s ~ q(z | x) and weights w_s = p(x, z_s) / q(z_s | x), for each instance on its own:

    log p(x) ~ log 1/S sum_s w_s                 its expectation is a lower bound that rises to log p(x) with S
    E[f(z) | x] ~ sum_s w_s f(z_s) / sum_s w_s   self-normalised
    k-hat                                        the shape of the generalised Pareto tail of the weights

k-hat says whether to believe it: the weights have 1 / k moments. Below 0.5 the usual error rates hold, up to 0.7
smoothed weights still do well, above that the guide misses too much of the posterior for any practical S.

Source: Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders (2016); Vehtari, Simpson, Gelman, Yao & Gabry,
Pareto Smoothed Importance Sampling (2024); Zhang & Stephens, A New and Efficient Estimation Method for the
Generalized Pareto Distribution (2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError

#: Above this k-hat an estimate cannot be relied on (Vehtari et al., 2024).
MAX_K_HAT = 0.7
#: Below this many draws the tail, a fifth of them, is too short to tell its shape.
MIN_DRAWS = 100

#: Zhang & Stephens' weakly informative prior: on the scale of their parameter, and on k, worth 10 observations of 1/2.
_PRIOR_SCALE, _PRIOR_COUNT, _PRIOR_SHAPE = 3.0, 10, 0.5
#: Log weights that differ by no more than this many roundings of themselves are taken as equal.
_ROUNDINGS = 256


@dataclass(frozen=True, eq=False)
class ImportanceWeights:
    """Weights of S draws for each of N instances.

    Attributes:
        log_evidence: log 1/S sum_s w_s, shape (N,), nats; from the weights as they are.
        standard_error: of ``log_evidence``, to first order, shape (N,), nats; trustworthy only where ``k_hat`` is low.
        log_weights: (S, N), Pareto-smoothed and normalised: their exponentials sum to one over S.
        k_hat: (N,); minus infinity where all weights are equal but for rounding.
    """

    log_evidence: Tensor
    standard_error: Tensor
    log_weights: Tensor
    k_hat: Tensor

    @property
    def effective_draws(self) -> Tensor:
        """1 / sum_s w_s^2 of the normalised weights, shape (N,): how many equally weighted draws they are worth."""
        return torch.exp(-torch.logsumexp(2 * self.log_weights, dim=0))

    def problems(self, remedy: str, what: str = "evidence and moments") -> list[str]:
        """Signs that the weights cannot be relied on; empty if there are none.

        Args:
            remedy: what can be done, by whoever drew them: it knows what is in use already.
            what: is computed from them.
        """
        bad = ~(self.k_hat <= MAX_K_HAT)
        if not bool(bad.any()):
            return []
        return [
            f"Pareto k-hat is above {MAX_K_HAT} for {int(bad.sum())} of {len(bad)} instances (largest "
            f"{float(self.k_hat.max()):.2f}): their {what} cannot be relied on; {remedy}"
        ]


def importance_weights(log_ratio: Tensor) -> ImportanceWeights:
    """Evidence, smoothed weights and k-hat from log w = log p(x, z) - log q(z | x).

    Args:
        log_ratio: (S, N), nats, of S draws for each instance.

    Raises:
        ArgumentError: fewer than 100 draws: too few to tell the tail.

    Example:
        >>> ratio = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = importance_weights(0.1 * ratio)
        >>> bool((found.k_hat < 0.3).all()), found.log_evidence.round(decimals=1).abs().tolist()
        (True, [0.0, 0.0])
    """
    num_draws = len(log_ratio)
    if num_draws < MIN_DRAWS:
        raise ArgumentError(f"num_draws: expected at least {MIN_DRAWS}, so that k-hat can be told, got {num_draws}.")
    log_evidence = torch.logsumexp(log_ratio, dim=0) - math.log(num_draws)
    relative = (log_ratio - log_evidence).exp()
    standard_error = relative.std(dim=0) / math.sqrt(num_draws)
    smoothed, k_hat = pareto_smooth(log_ratio)
    return ImportanceWeights(log_evidence, standard_error, smoothed, k_hat)


def pareto_smooth(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the largest weights of each instance by quantiles of a Pareto tail fitted to them.

    The M = min(S / 5, 3 sqrt(S)) largest are taken as draws of a generalised Pareto distribution above the next one.

    Args:
        log_ratio: (S, N), nats.

    Returns:
        Normalised log weights (S, N), and k-hat (N,).
    """
    num_draws = len(log_ratio)
    num_tail = math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))
    shifted = log_ratio - log_ratio.amax(dim=0)
    ascending, order = shifted.sort(dim=0)
    cutoff = ascending[-num_tail - 1].exp()
    excess = ascending[-num_tail:].exp() - cutoff
    k_hat, scale = fit_generalized_pareto(excess)
    rounding = _ROUNDINGS * torch.finfo(log_ratio.dtype).eps * log_ratio.abs().amax(dim=0).clamp(min=1)
    k_hat = torch.where(ascending[0] > -rounding, -torch.inf, k_hat)  # what differs is no tail
    ranks = (torch.arange(num_tail, dtype=excess.dtype, device=excess.device) + 0.5) / num_tail
    quantiles = _generalized_pareto_quantile(ranks[:, None], k_hat, scale)
    fitted = k_hat.isfinite()
    # no weight above the largest that was seen: the fitted tail may reach to infinity
    tail = torch.where(fitted, (cutoff + quantiles).log().clamp(max=0.0), ascending[-num_tail:])
    smoothed = shifted.scatter(0, order[-num_tail:], tail)
    return smoothed - torch.logsumexp(smoothed, dim=0), k_hat


def fit_generalized_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape k and scale sigma of generalised Pareto distributions, by an approximate posterior mean.

    With b = -k / sigma the profile log likelihood is n (log(-b / k(b)) - k(b) - 1), k(b) = mean log(1 - b y). It is
    averaged over a grid of b; k is then drawn towards 1/2 as by 10 more observations.

    Args:
        excess: (M, N), each column ascending, not below 0.

    Returns:
        k (N,), the shape in the sense in which the mean is finite for k < 1: minus infinity where a column is all
        zeros, infinity where more than a quarter of it is; and sigma (N,).
    """
    n = len(excess)
    largest, quartile = excess[-1], excess[int(n / 4 + 0.5) - 1]
    usable = quartile > 0
    y = torch.where(usable, excess, torch.arange(1, n + 1, dtype=excess.dtype, device=excess.device)[:, None])
    largest, quartile = torch.where(usable, largest, n), torch.where(usable, quartile, max(1, int(n / 4 + 0.5)))
    size = 30 + int(math.sqrt(n))
    grid = 1 - (size / (torch.arange(1, size + 1, dtype=y.dtype, device=y.device) - 0.5)).sqrt()
    b = 1 / largest + grid[:, None] / (_PRIOR_SCALE * quartile)  # (G, N)
    shape = torch.stack([torch.log1p(-row * y).mean(dim=0) for row in b])  # one grid point at a time: (M, N) numbers
    weight = torch.softmax(n * ((-b / shape).log() - shape - 1), dim=0)
    best = (weight * b).sum(dim=0)
    k = torch.log1p(-best * y).mean(dim=0)
    scale = -k / best
    k = (n * k + _PRIOR_COUNT * _PRIOR_SHAPE) / (n + _PRIOR_COUNT)
    unusable = torch.where(excess[-1] > 0, torch.inf, -torch.inf).to(k.dtype)
    return torch.where(usable, k, unusable), scale


def _generalized_pareto_quantile(probability: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    """sigma ((1 - p)^-k - 1) / k, and -sigma log(1 - p) at k = 0."""
    survival = torch.log1p(-probability)
    flat = shape.abs() < 1e-12
    safe = torch.where(flat, 1.0, shape)
    return scale * torch.where(flat, -survival, torch.expm1(-safe * survival) / safe)


def weighted_moments(draws: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of weighted draws.

    Args:
        draws: (S, N, K).
        log_weights: (S, N), normalised over S.

    Returns:
        (N, K) and (N, K, K).
    """
    weights = log_weights.exp().to(draws.dtype)
    mean = torch.einsum("sn,snk->nk", weights, draws)
    centred = draws - mean
    return mean, torch.einsum("sn,snj,snk->njk", weights, centred, centred)


def resample(draws: Tensor, log_weights: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Draws with equal weights, by systematic resampling of each instance on its own.

    Source: Kitagawa, Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models (1996).

    Args:
        draws: (S, N, K).
        log_weights: (S, N), normalised over S.
        num_draws: how many to return, R.
        generator: source of randomness.

    Returns:
        (R, N, K), in an order that is random for each instance.
    """
    num_instances = draws.shape[1]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=draws.dtype, device=draws.device)

    steps = torch.arange(num_draws, dtype=draws.dtype, device=draws.device)
    points = (steps + uniform(num_instances, 1)) / num_draws  # (N, R), ascending
    points = points.gather(1, uniform(num_instances, num_draws).argsort(dim=1))
    chosen = torch.searchsorted(log_weights.exp().mT.cumsum(dim=1).to(draws.dtype).contiguous(), points).clamp(
        max=len(draws) - 1
    )
    return draws[chosen.mT, torch.arange(num_instances, device=draws.device)]
