"""The exact posterior of latents that are Gaussian processes, seen through missing modalities, and its evidence.

Latent k of all N instances is f_k ~ N(0, C_k), independent over k, and the data speak of instance n through
log p(x_n | f_n) = c_n + h_n^T f_n - 1/2 f_n^T P_n f_n alone (``latent_likelihood.py``). Write C_k = L_k L_k^T + a
remainder of diagonal d_k (``pivoted_cholesky.py``), so f_k = L_k w_k with w ~ N(0, I), R weights over all k. Then

    M = I + sum_n L_n^T P_n L_n,  b = sum_n L_n^T h_n          L_n = blockdiag_k(L_k[n]), shape (K, R)
    w | x ~ N(M^-1 b, M^-1)
    log p(x) >= sum_n c_n + 1/2 b^T M^-1 b - 1/2 logdet M - 1/2 sum_nk P_n[k, k] d_k[n]

Nothing is inverted that could be singular: M has no eigenvalue below 1. Where the remainder is nil, which is where the
numerical rank of C_k is not above what was allowed, the bound is the evidence and the posterior is exact. Where it is
not, this is the collapsed variational bound of Titsias (2009), with the pivots as inducing points; and an upper bound
goes with it (Titsias, 2014): with t = sum_nk P_n[k, k] d_k[n] and u_n the least solution of P_n^(1/2) u_n = h_n, the
terms with b and d make room for

    1/2 |u|^2 - 1/2 (|u|^2 - b^T (M + t I)^-1 b) / (1 + t)

Cost: N R^2 + R^3, free of the number of features. Sources: Rasmussen & Williams, Gaussian Processes for Machine
Learning (2006), chapters 2 and 8; Titsias, Variational learning of inducing variables in sparse Gaussian processes
(2009); Titsias, Variational inference for Gaussian and determinantal point processes (2014); the model, for one
modality, is that of Yu et al., Gaussian-process factor analysis (2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.latent_likelihood import LatentLikelihood
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.products import row_chunks


@dataclass(frozen=True, eq=False)
class LowRankProcess:
    """The prior of K latent processes at n points: f_k = factors_k w_k + what has variance ``residual``.

    Attributes:
        factors: for each latent L_k, shape (n, r_k).
        residual: the variance that they leave out, (n, K), at least 0.
    """

    factors: Sequence[Tensor]
    residual: Tensor

    def __len__(self) -> int:
        return len(self.residual)

    @property
    def ranks(self) -> list[int]:
        """r_k of each latent; R is their sum."""
        return [factor.shape[1] for factor in self.factors]

    def evaluate(self, weights: Tensor) -> Tensor:
        """f = L w, shape (..., n, K), from weights (..., R)."""
        parts = weights.split(self.ranks, dim=-1)
        return torch.stack([part @ factor.mT for part, factor in zip(parts, self.factors, strict=True)], dim=-1)

    def __getitem__(self, rows: slice | Tensor) -> LowRankProcess:
        return LowRankProcess([factor[rows] for factor in self.factors], self.residual[rows])


class ProcessPosterior:
    """The posterior of the weights, N(mean, precision^-1), and through it of the processes anywhere.

    Made by :func:`process_posterior`.

    Attributes:
        mean: of the weights, (R,).
        factor: lower Cholesky factor of their precision M, (R, R).
        ranks: r_k of each latent.
        lower_bound: of log p(x), nats, a scalar; the evidence itself where ``slack`` is nil.
        slack: sum_nk P_n[k, k] d_k[n], at least 0: twice what the remainder costs the bound, nats.
    """

    def __init__(self, likelihood: LatentLikelihood, prior: LowRankProcess) -> None:
        self.ranks = prior.ranks
        self.factor = factorize(weight_precision(likelihood, prior))
        self._natural = torch.cat([h @ part for h, part in zip(likelihood.natural_mean.mT, prior.factors, strict=True)])
        self.mean = torch.cholesky_solve(self._natural[:, None], self.factor).squeeze(1)
        self.slack = (likelihood.precision_diagonal * prior.residual).sum()
        self._constant = likelihood.constant.sum() - self.factor.diagonal().log().sum()
        self.lower_bound = self._constant + 0.5 * self._natural @ self.mean - 0.5 * self.slack
        self._likelihood = likelihood

    @cached_property
    def covariance(self) -> Tensor:
        """M^-1, of the weights, shape (R, R)."""
        return torch.cholesky_inverse(self.factor)

    @cached_property
    def upper_bound(self) -> Tensor:
        """An upper bound of log p(x), nats, a scalar; it costs one more factorisation."""
        likelihood, slack = self._likelihood, self.slack
        values, vectors = torch.linalg.eigh(likelihood.pattern_precision)
        kept = values > torch.finfo(values.dtype).eps * len(vectors[0]) * values[:, -1:]
        inverse_root = torch.where(kept, values, 1).rsqrt() * kept
        least = likelihood.apply((vectors * inverse_root[:, None, :]).mT, likelihood.natural_mean)
        square = least.square().sum()
        moved = self.factor @ self.factor.mT
        moved.diagonal().add_(slack)
        solved = torch.cholesky_solve(self._natural[:, None], factorize(moved)).squeeze(1)
        bound: Tensor = self._constant + 0.5 * square - 0.5 * (square - self._natural @ solved) / (1 + slack)
        return bound

    def moments(self, at: LowRankProcess) -> tuple[Tensor, Tensor]:
        """Mean (n, K) and covariance (n, K, K) of the processes at n points, each point by itself."""
        mean, num_latents = at.evaluate(self.mean), len(self.ranks)
        out = mean.new_empty(len(at), num_latents, num_latents)
        blocks = [part.split(self.ranks, dim=1) for part in self.covariance.split(self.ranks)]
        for k, factor in enumerate(at.factors):
            for j in range(k + 1):
                entries = ((factor @ blocks[k][j]) * at.factors[j]).sum(1)
                out[:, k, j] = out[:, j, k] = entries
            out[:, k, k] += at.residual[:, k]
        return mean, out

    def sample_weights(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the weights, shape (S, R): each is a draw of whole processes."""
        noise = torch.randn(
            len(self.mean), num_draws, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        draws: Tensor = self.mean + torch.linalg.solve_triangular(self.factor.mT, noise, upper=True).mT
        return draws


def weight_precision(likelihood: LatentLikelihood, prior: LowRankProcess) -> Tensor:
    """M = I + sum_n L_n^T P_n L_n, shape (R, R); of the blocks above the diagonal, which nothing reads, those of I."""
    ranks = prior.ranks
    starts = [sum(ranks[:k]) for k in range(len(ranks) + 1)]
    sizes = torch.tensor(ranks, device=prior.residual.device)
    out = torch.eye(starts[-1], dtype=prior.residual.dtype, device=prior.residual.device)
    for chunk in row_chunks(len(prior), max(starts[-1], len(ranks) ** 2)):
        precision = likelihood.pattern_precision[likelihood.pattern_index[chunk]]
        stacked = torch.cat([factor[chunk] for factor in prior.factors], dim=1)
        for k, factor in enumerate(prior.factors):
            right = stacked[:, : starts[k + 1]] * torch.repeat_interleave(
                precision[:, k, : k + 1], sizes[: k + 1], dim=1
            )
            out[starts[k] : starts[k + 1], : starts[k + 1]] += factor[chunk].mT @ right
    return out


def process_posterior(likelihood: LatentLikelihood, prior: LowRankProcess) -> ProcessPosterior:
    """The posterior of K latent processes given what N instances have.

    Args:
        likelihood: the factors of the N instances.
        prior: the processes at the N instances, in the same order.

    Raises:
        NumericalError: the precision of the weights is not positive definite, or not finite.

    Example:
        >>> import torch
        >>> likelihood = LatentLikelihood(  # two instances with covariance [[1, 1], [1, 1]]; one was observed to be 3
        ...     torch.zeros(2), torch.tensor([[3.0], [0.0]]), torch.tensor([[[1.0]], [[0.0]]]), torch.tensor([0, 1]),
        ...     torch.tensor([1, 1]))
        >>> prior = LowRankProcess([torch.ones(2, 1)], torch.zeros(2, 1))
        >>> mean, covariance = process_posterior(likelihood, prior).moments(prior)
        >>> mean.flatten().tolist(), covariance.flatten().tolist()
        ([1.5, 1.5], [0.5, 0.5])
    """
    return ProcessPosterior(likelihood, prior)


def process_evidence(likelihood: LatentLikelihood, prior: LowRankProcess) -> Tensor:
    """The lower bound of log p(x) as a differentiable scalar, nats; the evidence itself where nothing remains.

    Gradients flow to the likelihood's factors, and through them to loadings, intercepts and noise, and to the prior's
    factors, and through them to the parameters of kernels. By Fisher's identity they need no more than the moments of
    the posterior, so they are written out, for about the cost of the value and without a graph through its algebra:
    with E[.] over the posterior and Q = E[w w^T] = M^-1 + mean mean^T,

        d/dh_n = E[f_n],  d/dP_n = -1/2 E[f_n f_n^T],  d/dL_k[n] = h_n[k] mean_k - sum_j P_n[k, j] L_j[n] Q_jk

    First derivatives only.
    """
    inputs = [likelihood.natural_mean, likelihood.pattern_precision, prior.residual, *prior.factors]
    with torch.no_grad():
        given = ProcessPosterior(likelihood, prior)
        value = given.lower_bound - likelihood.constant.sum()
        slopes = _slopes(likelihood, prior, given) if any(part.requires_grad for part in inputs) else []
    for part, slope in zip(inputs, slopes, strict=False):
        if part.requires_grad:
            value = value + (slope * (part - part.detach())).sum()  # adds nothing but the gradient
    return likelihood.constant.sum() + value


def _slopes(likelihood: LatentLikelihood, prior: LowRankProcess, given: ProcessPosterior) -> list[Tensor]:
    """Gradients of the bound by natural means, precisions, residuals and factors."""
    mean, covariance = given.moments(prior)
    second = covariance + mean[:, :, None] * mean[:, None, :]
    by_pattern = torch.zeros_like(likelihood.pattern_precision).index_add(0, likelihood.pattern_index, second)
    columns = (given.covariance + torch.outer(given.mean, given.mean)).split(given.ranks, dim=1)
    means = given.mean.split(given.ranks)
    factors = [torch.outer(h, part) for h, part in zip(likelihood.natural_mean.mT, means, strict=True)]
    ranks = torch.tensor(given.ranks, device=mean.device)
    for chunk in row_chunks(len(prior), max(len(given.mean), len(ranks) ** 2)):
        precision = likelihood.pattern_precision[likelihood.pattern_index[chunk]]
        stacked = torch.cat([factor[chunk] for factor in prior.factors], dim=1)
        for k, slope in enumerate(factors):
            slope[chunk] -= (stacked * torch.repeat_interleave(precision[:, k], ranks, dim=1)) @ columns[k]
    return [mean, -0.5 * by_pattern, -0.5 * likelihood.precision_diagonal, *factors]
