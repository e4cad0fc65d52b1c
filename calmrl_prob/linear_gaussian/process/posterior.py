"""The posterior of latents that are Gaussian processes, seen through missing modalities, and their evidence.

Latent k of all N instances is f_k ~ N(0, C_k), independent over k, and the data speak of instance n through
log p(x_n | f_n) = c_n + h_n^T f_n - 1/2 f_n^T P_n f_n alone (``latent_likelihood.py``). Write C_k = L_k L_k^T + a
remainder of diagonal d_k (``pivoted_cholesky.py``), so f_k = L_k w_k with w ~ N(0, I), R weights over all k. Then

    M = I + sum_n L_n^T P_n L_n,  b = sum_n L_n^T h_n          L_n = blockdiag_k(L_k[n]), shape (K, R)
    w | x ~ N(M^-1 b, M^-1)
    log p(x) >= sum_n c_n + 1/2 b^T M^-1 b - 1/2 logdet M - 1/2 sum_nk P_n[k, k] d_k[n]

Nothing is inverted that could be singular: M has no eigenvalue below 1. Where the remainder is nil, which is where the
numerical rank of C_k is not above what was allowed, the bound is the evidence and the posterior is exact. Where it is
not, this is the collapsed variational bound of Titsias (2009), with the pivots as inducing points.

``JointPosterior`` factorises M, for N R^2 + R^3 operations, free of the number of features. ``FactorisedPosterior``
factorises only its K diagonal blocks M_k, for sum_k (N r_k^2 + r_k^3), and takes the mean by conjugate gradients, for
which the blocks are the preconditioner: mean and draws are still exact, covariances are those of the best posterior
in which the latents are independent, and the bound falls short by 1/2 (sum_k logdet M_k - logdet M) >= 0. With a nugget
in the latents and informative data, P_n is nearly diagonal, and that is next to nothing beside the remainder which more
weights remove.

Sources: Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 8; Titsias, Variational
learning of inducing variables in sparse Gaussian processes (2009); Papandreou & Yuille, Gaussian sampling by local
perturbations (2010), for draws by solves. The model, for one modality: Yu et al., Gaussian-process factor analysis
(2009).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from calmrl_prob.errors import NumericalError
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.process.latent_likelihood import LatentLikelihood
from calmrl_prob.linear_gaussian.products import row_chunks

#: Weights in all up to which the posterior is joint, unless told otherwise: about a second of arithmetic.
JOINT_LIMIT = 2000
#: Conjugate gradients stop at this share of the right-hand side's norm, and give up after so many steps.
_SOLVED, _MOST_STEPS = 1e-11, 1000


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

    def __getitem__(self, rows: slice | Tensor) -> LowRankProcess:
        return LowRankProcess([factor[rows] for factor in self.factors], self.residual[rows])

    @property
    def ranks(self) -> list[int]:
        """r_k of each latent; R is their sum."""
        return [factor.shape[1] for factor in self.factors]

    def evaluate(self, weights: Tensor) -> Tensor:
        """f = L w, shape (..., n, K), from weights (..., R)."""
        parts = weights.split(self.ranks, dim=-1)
        return torch.stack([part @ factor.mT for part, factor in zip(parts, self.factors, strict=True)], dim=-1)

    def gather(self, values: Tensor) -> Tensor:
        """L^T v, shape (..., R), from v (..., n, K): the adjoint of ``evaluate``."""
        columns = values.unbind(-1)
        return torch.cat([v @ factor for v, factor in zip(columns, self.factors, strict=True)], dim=-1)


class ProcessPosterior(ABC):
    """The posterior of the weights, and through it of the processes anywhere. Made by :func:`process_posterior`.

    Attributes:
        likelihood, prior: what it was made from.
        mean: of the weights, (R,).
        slack: sum_nk P_n[k, k] d_k[n], at least 0: twice what the remainder costs the bound, nats.
        log_determinant: of M, or what stands for it.
    """

    mean: Tensor
    log_determinant: Tensor

    def __init__(self, likelihood: LatentLikelihood, prior: LowRankProcess) -> None:
        self.likelihood, self.prior, self.ranks = likelihood, prior, prior.ranks
        self.slack = (likelihood.precision_diagonal * prior.residual).sum()
        self._natural = prior.gather(likelihood.natural_mean)

    @property
    def lower_bound(self) -> Tensor:
        """Of log p(x), nats, a scalar."""
        quadratic = self._natural @ self.mean - self.log_determinant - self.slack
        return self.likelihood.constant.sum() + 0.5 * quadratic

    @abstractmethod
    def moments(self, at: LowRankProcess) -> tuple[Tensor, Tensor]:
        """Mean (n, K) and covariance (n, K, K) of the processes at n points, each point by itself."""

    @abstractmethod
    def marginals(self) -> tuple[Tensor, Tensor]:
        """The same at the N instances themselves, as well as they can be had."""

    @abstractmethod
    def sample_weights(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the weights, shape (S, R): each is a draw of whole processes."""

    @abstractmethod
    def weight_second(self, latent: int) -> tuple[slice, Tensor]:
        """Columns of the covariance of the weights: those of one latent, and the rows that they stand in."""

    def slopes(self) -> list[Tensor]:
        """Gradients of the lower bound by natural means, pattern precisions, residuals and factors.

        By Fisher's identity, with E[.] over the posterior and Q = E[w w^T]:

            d/dh_n = E[f_n],  d/dP_n = -1/2 E[f_n f_n^T],  d/dd_k[n] = -1/2 P_n[k, k]
            d/dL_k[n] = h_n[k] mean_k - sum_j P_n[k, j] L_j[n] Q_jk
        """
        likelihood, prior = self.likelihood, self.prior
        mean, covariance = self.moments(prior)
        second = covariance + mean[:, :, None] * mean[:, None, :]
        by_pattern = torch.zeros_like(likelihood.pattern_precision).index_add(0, likelihood.pattern_index, second)
        force = likelihood.natural_mean - likelihood.apply(likelihood.pattern_precision, mean)
        factors = [torch.outer(v, part) for v, part in zip(force.mT, self.mean.split(self.ranks), strict=True)]
        ranks = torch.tensor(self.ranks, device=mean.device)
        starts = [0, *torch.cumsum(ranks, 0).tolist()]
        for k, slope in enumerate(factors):
            rows, columns = self.weight_second(k)
            whole = rows == slice(0, starts[-1])
            latents = range(len(starts) - 1) if whole else range(k, k + 1)
            for chunk in row_chunks(len(prior), rows.stop - rows.start):
                precision = likelihood.pattern_precision[likelihood.pattern_index[chunk], k]
                spread = [prior.factors[j][chunk] * precision[:, j : j + 1] for j in latents]
                slope[chunk] -= torch.cat(spread, dim=1) @ columns
        return [mean, -0.5 * by_pattern, -0.5 * likelihood.precision_diagonal, *factors]


class JointPosterior(ProcessPosterior):
    """N(M^-1 b, M^-1): exact, but for the remainder.

    Attributes:
        factor: lower Cholesky factor of M, (R, R).
    """

    def __init__(self, likelihood: LatentLikelihood, prior: LowRankProcess) -> None:
        super().__init__(likelihood, prior)
        self.factor = factorize(weight_precision(likelihood, prior))
        self.mean = torch.cholesky_solve(self._natural[:, None], self.factor).squeeze(1)
        self.log_determinant = 2 * self.factor.diagonal().log().sum()

    @cached_property
    def covariance(self) -> Tensor:
        """M^-1, of the weights, shape (R, R)."""
        return torch.cholesky_inverse(self.factor)

    @cached_property
    def upper_bound(self) -> Tensor:
        """An upper bound of log p(x), nats, a scalar; it costs one more factorisation.

        With t the slack and u_n the least solution of P_n^(1/2) u_n = h_n, the terms of the lower bound in b and d make
        room for 1/2 |u|^2 - 1/2 (|u|^2 - b^T (M + t I)^-1 b) / (1 + t).

        Source: Titsias, Variational inference for Gaussian and determinantal point processes (2014).
        """
        likelihood, slack = self.likelihood, self.slack
        values, vectors = torch.linalg.eigh(likelihood.pattern_precision)
        kept = values > torch.finfo(values.dtype).eps * len(vectors[0]) * values[:, -1:]
        inverse_root = torch.where(kept, values, 1).rsqrt() * kept
        least = likelihood.apply((vectors * inverse_root[:, None, :]).mT, likelihood.natural_mean)
        square = least.square().sum()
        moved = self.factor @ self.factor.mT
        moved.diagonal().add_(slack)
        solved = torch.cholesky_solve(self._natural[:, None], factorize(moved)).squeeze(1)
        quadratic = square - (square - self._natural @ solved) / (1 + slack)
        bound: Tensor = likelihood.constant.sum() + 0.5 * (quadratic - self.log_determinant)
        return bound

    def moments(self, at: LowRankProcess) -> tuple[Tensor, Tensor]:
        """Mean (n, K) and covariance (n, K, K) of the processes at n points."""
        mean, num_latents = at.evaluate(self.mean), len(self.ranks)
        out = mean.new_empty(len(at), num_latents, num_latents)
        blocks = [part.split(self.ranks, dim=1) for part in self.covariance.split(self.ranks)]
        for k, factor in enumerate(at.factors):
            for j in range(k + 1):
                entries = ((factor @ blocks[k][j]) * at.factors[j]).sum(1)
                out[:, k, j] = out[:, j, k] = entries
            out[:, k, k] += at.residual[:, k]
        return mean, out

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean (N, K) and covariance (N, K, K) at the instances."""
        return self.moments(self.prior)

    def sample_weights(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the weights, shape (S, R)."""
        noise = torch.randn(
            len(self.mean), num_draws, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        draws: Tensor = self.mean + torch.linalg.solve_triangular(self.factor.mT, noise, upper=True).mT
        return draws

    def weight_second(self, latent: int) -> tuple[slice, Tensor]:
        """All rows."""
        return slice(0, len(self.mean)), self.covariance.split(self.ranks, dim=1)[latent]


class FactorisedPosterior(ProcessPosterior):
    """Mean M^-1 b and draws exact, but for the remainder; covariances blockdiag_k(M_k^-1), latent by latent.

    Among posteriors in which the latents are independent it is the closest to the exact one, in KL divergence.

    Args:
        likelihood, prior: see :func:`process_posterior`.
        solved: conjugate gradients stop at this share of the right-hand side's norm; the bound is off by its square.

    Attributes:
        factors: lower Cholesky factors of M_k, (r_k, r_k).
        num_steps: of conjugate gradients for the mean.
    """

    def __init__(self, likelihood: LatentLikelihood, prior: LowRankProcess, solved: float = _SOLVED) -> None:
        super().__init__(likelihood, prior)
        self._solved = solved
        self.factors = []
        for part, weight in zip(prior.factors, likelihood.precision_diagonal.mT, strict=True):
            block = torch.addmm(torch.eye(part.shape[1], dtype=part.dtype, device=part.device), part.mT * weight, part)
            self.factors.append(factorize(block))
        self.log_determinant = 2 * torch.stack([factor.diagonal().log().sum() for factor in self.factors]).sum()
        found, self.num_steps = self._solve(self._natural[None])
        self.mean = found[0]

    @cached_property
    def covariances(self) -> list[Tensor]:
        """M_k^-1 of each latent, (r_k, r_k)."""
        return [torch.cholesky_inverse(factor) for factor in self.factors]

    def moments(self, at: LowRankProcess) -> tuple[Tensor, Tensor]:
        """Mean (n, K) and covariance (n, K, K), diagonal, of the processes at n points."""
        return at.evaluate(self.mean), torch.diag_embed(self._carried(at) + at.residual)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance at the instances, the latter with what an instance's own data say of its latents jointly.

        With s_k its variance by M_k, what the other instances say is taken to be independent over latents, of precision
        1 / s_k - P_n[k, k]; to that its own P_n is added, in full.
        """
        carried = self._carried(self.prior).clamp(min=torch.finfo(self.mean.dtype).tiny)
        others = (1 / carried - self.likelihood.precision_diagonal).clamp(min=0)
        out = carried.new_empty(*carried.shape, len(self.ranks))
        index = self.likelihood.pattern_index
        for chunk in row_chunks(len(out), len(self.ranks) ** 2):
            precision = self.likelihood.pattern_precision[index[chunk]] + torch.diag_embed(others[chunk])
            scale = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
            scaled = scale[:, :, None] * precision * scale[:, None, :]
            inverse = torch.cholesky_inverse(factorize(scaled))
            out[chunk] = scale[:, :, None] * inverse * scale[:, None, :]
        return self.prior.evaluate(self.mean), out + torch.diag_embed(self.prior.residual)

    def sample_weights(self, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the weights, shape (S, R): M^-1 (b + e), e ~ N(0, M) being made of draws of prior and data."""
        likelihood, prior = self.likelihood, self.prior

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)

        values, vectors = torch.linalg.eigh(likelihood.pattern_precision)
        root = vectors * values.clamp(min=0).sqrt()[:, None, :]
        noise = likelihood.apply(root, normal(num_draws, len(prior), len(self.ranks)))
        moved = prior.gather(noise) + normal(num_draws, len(self.mean))
        return self.mean + self._solve(moved)[0]

    def weight_second(self, latent: int) -> tuple[slice, Tensor]:
        """Those of the latent itself."""
        start = sum(self.ranks[:latent])
        return slice(start, start + self.ranks[latent]), self.covariances[latent]

    def _carried(self, at: LowRankProcess) -> Tensor:
        """diag(L_k M_k^-1 L_k^T) of each latent, (n, K)."""
        pairs = zip(at.factors, self.covariances, strict=True)
        return torch.stack([((factor @ covariance) * factor).sum(1) for factor, covariance in pairs], dim=1)

    def _multiply(self, weights: Tensor) -> Tensor:
        """M w for each row of (S, R)."""
        outer = self.likelihood.apply(self.likelihood.pattern_precision, self.prior.evaluate(weights))
        return weights + self.prior.gather(outer)

    def _precondition(self, weights: Tensor) -> Tensor:
        parts = zip(weights.split(self.ranks, dim=1), self.factors, strict=True)
        return torch.cat([torch.cholesky_solve(part.mT, factor).mT for part, factor in parts], dim=1)

    def _solve(self, right: Tensor) -> tuple[Tensor, int]:
        """M^-1 of each row of (S, R) by conjugate gradients, and how many steps that took."""
        solution, residual = torch.zeros_like(right), right.clone()
        wanted = self._solved * right.norm(dim=1)
        direction = moved = self._precondition(residual)
        product = (residual * moved).sum(1)
        for step in range(_MOST_STEPS):
            if bool((residual.norm(dim=1) <= wanted).all()):
                return solution, step
            image = self._multiply(direction)
            length = product / (direction * image).sum(1).clamp(min=torch.finfo(right.dtype).tiny)
            solution = solution + length[:, None] * direction
            residual = residual - length[:, None] * image
            moved = self._precondition(residual)
            before, product = product, (residual * moved).sum(1)
            ratio = product / before.clamp(min=torch.finfo(right.dtype).tiny)
            direction = moved + ratio[:, None] * direction
        raise NumericalError(
            f"posterior: conjugate gradients did not get there in {_MOST_STEPS} steps. Latents that the data tell "
            "apart badly may be the reason: lower latent_dim, or raise joint_limit, so that no such steps are needed."
        )


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
            spread = torch.repeat_interleave(precision[:, k, : k + 1], sizes[: k + 1], dim=1)
            right = stacked[:, : starts[k + 1]] * spread
            out[starts[k] : starts[k + 1], : starts[k + 1]] += factor[chunk].mT @ right
    return out


def process_posterior(
    likelihood: LatentLikelihood, prior: LowRankProcess, joint_limit: int = JOINT_LIMIT, solved: float = _SOLVED
) -> ProcessPosterior:
    """The posterior of K latent processes given what N instances have.

    Args:
        likelihood: the factors of the N instances.
        prior: the processes at the N instances, in the same order.
        joint_limit: the most weights for which it is joint over latents; with more it is factorised.
        solved: how closely the mean is solved for if it is factorised, as a share of the right-hand side's norm.

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
    if sum(prior.ranks) <= joint_limit or len(prior.ranks) == 1:
        return JointPosterior(likelihood, prior)
    return FactorisedPosterior(likelihood, prior, solved)


def process_evidence(
    likelihood: LatentLikelihood, prior: LowRankProcess, joint_limit: int = JOINT_LIMIT, solved: float = _SOLVED
) -> Tensor:
    """The lower bound of log p(x) as a differentiable scalar, nats; the evidence itself where nothing remains.

    Gradients flow to the likelihood's factors, and through them to loadings, intercepts and noise, and to the prior's
    factors, and through them to the parameters of kernels. They need no more than the moments of the posterior, so
    they are written out (:meth:`ProcessPosterior.slopes`), for about the cost of the value and without a graph through
    its algebra. First derivatives only.
    """
    inputs = [likelihood.natural_mean, likelihood.pattern_precision, prior.residual, *prior.factors]
    with torch.no_grad():
        given = process_posterior(likelihood, prior, joint_limit, solved)
        value = given.lower_bound - likelihood.constant.sum()
        slopes = given.slopes() if any(part.requires_grad for part in inputs) else []
    for part, slope in zip(inputs, slopes, strict=False):
        if part.requires_grad:
            value = value + (slope * (part - part.detach())).sum()  # adds nothing but the gradient
    return likelihood.constant.sum() + value
