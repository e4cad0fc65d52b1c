"""The Gaussian-process prior: latents that vary smoothly over time, place or any other covariate of the instances.

    z_nk = f_k(t_n) + e_nk,   f_k ~ GP(0, (1 - nu_k) kernel_k),   e_nk ~ N(0, nu_k),   independent over k

so that two instances are alike as far as their covariates t are close, and the nugget nu_k in [0, 1) is the share of
latent k that each instance has to itself. At nu = 1 this would be the standard normal prior, which knows no neighbours;
at nu = 0 every latent is a smooth function of t. With the default kernel, of variance 1, each z_n by itself is N(0, I).

Source: Rasmussen & Williams, Gaussian Processes for Machine Learning (2006); as latents of high-dimensional data, Yu et
al., Gaussian-process factor analysis for low-dimensional single-trial analysis of neural population activity (2009).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from calmrl_prob._support.arguments import checked_dtype, described, real_number, whole_number
from calmrl_prob._support.gpytorch import gpytorch
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, NotConjugateError
from calmrl_prob.linear_gaussian.process.pivoted_cholesky import pivoted_cholesky
from calmrl_prob.linear_gaussian.process.posterior import LowRankProcess
from calmrl_prob.priors.prior import Prior

#: Added to the diagonal at inducing points, as a share of the variance, where gradients run through its factorisation.
_JITTER = 1e-10
#: Numbers that the factors of all latents may hold.
_MEMORY = 2**28


@dataclass(frozen=True, eq=False)
class InducingPoints:
    """Covariates at which the processes carry all that is known of them elsewhere.

    Attributes:
        places: for each latent, (r_k, d).
        factors: for each latent the lower Cholesky factor of the covariance there, (r_k, r_k).
    """

    places: Sequence[Tensor]
    factors: Sequence[Tensor]


class GaussianProcessPrior(Prior):
    """Latents that are Gaussian processes over a covariate of the instances.

    Instances are not independent under this prior, so it has no density of one instance, and ``SharedLatentModel``,
    which draws them one by one, refuses it; ``models/gaussian_process.py`` is a model that takes all of them together.

    Args:
        latent_dim: K.
        kernel: a GPyTorch kernel, copied for each latent; or K of them, one for each (the same object may stand for
            several latents, which then share its parameters); by default Matern-5/2 of variance 1, whose length
            scale :func:`calmrl_prob.fit` starts from the data.
        covariate: which entry of ``MultimodalData.covariates`` holds the t_n: numbers, (N,) or (N, d).
        nugget: nu to start from, at least 0 and below 1; at 0 there is none, and it is not learned.
        dtype: of all parameters.

    Raises:
        MissingDependencyError: GPyTorch is not installed.
        ArgumentTypeError: an argument is of another type.
        ArgumentError: one is out of range, or there are not K kernels.

    Example:
        >>> prior = GaussianProcessPrior(2, covariate="time")
        >>> prior
        GaussianProcessPrior(latent_dim=2, covariate='time', kernel=MaternKernel, nugget=[0.1, 0.1])
        >>> places = torch.tensor([[0.0], [1.0], [50.0]], dtype=torch.float64)
        >>> prior.covariance(0, places, places)[0].round(decimals=2).tolist()
        [0.9, 0.28, 0.0]
    """

    name: ClassVar[str] = "gaussian_process"

    def __init__(
        self,
        latent_dim: int,
        kernel: nn.Module | Sequence[nn.Module] | None = None,
        covariate: str = "time",
        nugget: float = 0.1,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        latent_dim, dtype = whole_number("latent_dim", latent_dim, least=1), checked_dtype(dtype)
        super().__init__(latent_dim)
        if not isinstance(covariate, str) or not covariate:
            raise ArgumentTypeError(
                f"covariate: expected the name of a covariate, got {described(covariate)}; use 'time', say."
            )
        nugget = real_number("nugget", nugget, 0.1)
        if not 0 <= nugget < 1:
            raise ArgumentError(f"nugget: expected a share of at least 0 and below 1, got {nugget}.")
        self.covariate = covariate
        #: whether no kernel was given, so that length scales may be started from the data
        self.default_kernel = kernel is None
        self.kernels = nn.ModuleList(_kernels(kernel, latent_dim)).to(dtype)
        start = math.log(nugget / (1 - nugget)) if nugget > 0 else -math.inf
        self.nugget_logit = nn.Parameter(torch.full((latent_dim,), start, dtype=dtype), requires_grad=nugget > 0)

    @property
    def nugget(self) -> Tensor:
        """nu of each latent, shape (K,)."""
        return self.nugget_logit.sigmoid()

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of its tensors."""
        return self.nugget_logit.dtype

    def covariance(self, latent: int, first: Tensor, second: Tensor) -> Tensor:
        """(1 - nu_k) kernel_k between covariates (n, d) and (m, d), shape (n, m)."""
        kernel: Any = self.kernels[latent]
        matrix: Tensor = kernel(first, second).to_dense()
        return matrix * (1 - self.nugget[latent])

    def variance(self, latent: int, places: Tensor) -> Tensor:
        """The diagonal of the same, shape (n,)."""
        kernel: Any = self.kernels[latent]
        values: Tensor = kernel(places, diag=True)
        return values * (1 - self.nugget[latent])

    @torch.no_grad()
    def factorize(
        self, places: Tensor, weight: Tensor, *, tolerance: float, max_rank: int
    ) -> tuple[InducingPoints, LowRankProcess]:
        """Low-rank factors of all K covariances at the instances, from inducing points among them.

        Args:
            places: covariates of all instances, (N, d).
            weight: the precision that the data have in each latent of each instance, (N, K): what a unit of
                variance left over costs, see :mod:`calmrl_prob.linear_gaussian.process.posterior`.
            tolerance: of the weighted variance left over in all, nats.
            max_rank: the most inducing points for each latent; fewer, where memory asks for it.

        Returns:
            The points, and the processes at the instances.
        """
        points, corners, factors, residuals = [], [], [], []
        for k in range(self.latent_dim):
            partial = pivoted_cholesky(
                lambda index, k=k: self.covariance(k, places[index], places),  # type: ignore[misc]
                self.variance(k, places),
                weight[:, k],
                tolerance=tolerance / self.latent_dim,
                max_rank=min(max_rank, max(1, _MEMORY // (self.latent_dim * max(1, len(places))))),
            )
            points.append(places[partial.pivots])
            corners.append(partial.factor[partial.pivots].tril())
            factors.append(partial.factor)
            residuals.append(partial.residual)
        return InducingPoints(points, corners), LowRankProcess(factors, torch.stack(residuals, dim=1))

    def at(self, places: Tensor, inducing: InducingPoints) -> LowRankProcess:
        """The processes at other covariates, in terms of the same weights.

        Args:
            places: (n, d).
            inducing: from :meth:`factorize`.
        """
        factors, residuals = [], []
        for k, (points, corner) in enumerate(zip(inducing.places, inducing.factors, strict=True)):
            factor = torch.linalg.solve_triangular(corner, self.covariance(k, points, places), upper=False).mT
            factors.append(factor)
            residuals.append((self.variance(k, places) - factor.square().sum(1)).clamp(min=0))
        return LowRankProcess(factors, torch.stack(residuals, dim=1))

    def differentiable(self, places: Tensor, inducing: InducingPoints) -> LowRankProcess:
        """The same as :meth:`at`, through which gradients flow to the parameters of the kernels; the points stay."""
        corners = []
        for k, points in enumerate(inducing.places):
            matrix = self.covariance(k, points, points)
            jitter = torch.diag_embed(_JITTER * self.variance(k, points).detach())
            corners.append(_cholesky(matrix + jitter))
        return self.at(places, InducingPoints(inducing.places, corners))

    def process(self, places: Tensor, tolerance: float = 1e-9) -> LowRankProcess:
        """The processes at the instances by themselves, up to their numerical rank: f_k = L_k w_k with w ~ N(0, I).

        For a generative model: gradients flow to the parameters of the kernels. What is left over is dropped.

        Args:
            places: (N, d).
            tolerance: how much of the variance may be left over on average.
        """
        weight = torch.ones(len(places), self.latent_dim, dtype=self.dtype, device=places.device)
        tolerance = tolerance * len(places) * self.latent_dim
        inducing, _ = self.factorize(places, weight, tolerance=tolerance, max_rank=len(places))
        return self.differentiable(places, inducing)

    @torch.no_grad()
    def extend(self, places: Tensor, known: LowRankProcess, *, tolerance: float, max_rank: int) -> LowRankProcess:
        """Further factors, of the variance at ``places`` that ``known`` leaves over: what makes draws there joint."""
        factors, residuals = [], []
        for k, start in enumerate(known.factors):
            partial = pivoted_cholesky(
                lambda index, k=k: self.covariance(k, places[index], places),  # type: ignore[misc]
                self.variance(k, places),
                torch.ones(len(places), dtype=start.dtype, device=start.device),
                tolerance=tolerance,
                max_rank=max_rank,
                start=start,
            )
            factors.append(partial.factor)
            residuals.append(partial.residual)
        return LowRankProcess(factors, torch.stack(residuals, dim=1))

    def set_lengthscale(self, latent: int, value: float) -> None:
        """Set the length scale of a default kernel, in units of the covariate."""
        kernel: Any = self.kernels[latent]
        kernel.lengthscale = value

    def distribution(self, data: MultimodalData | None = None) -> NoReturn:
        """There is none of one instance alone.

        Raises:
            NotConjugateError: always; it says what to use.
        """
        raise NotConjugateError(
            "z",
            "instances coupled",
            "Under a Gaussian process instances depend on each other, so that no instance has a prior of its own; "
            "models/gaussian_process.py is a model that takes all of them together.",
            "gaussian process",
        )

    def gaussian(self) -> NoReturn:
        """There is no Gaussian of one instance alone.

        Raises:
            NotConjugateError: always; it says what to use.
        """
        self.distribution()

    def __repr__(self) -> str:
        """One line."""
        kinds = ", ".join(dict.fromkeys(type(kernel).__name__ for kernel in self.kernels))
        shown = [round(value, 3) for value in self.nugget.tolist()[:4]] + (["..."] if self.latent_dim > 4 else [])
        nugget = str(shown).replace("'", "")
        return (
            f"GaussianProcessPrior(latent_dim={self.latent_dim}, covariate={self.covariate!r}, kernel={kinds}, "
            f"nugget={nugget})"
        )


def _kernels(kernel: nn.Module | Sequence[nn.Module] | None, latent_dim: int) -> list[nn.Module]:
    kernels_of = gpytorch("kernel").kernels
    if kernel is None:
        kernel = kernels_of.MaternKernel(nu=2.5)
    if isinstance(kernel, kernels_of.Kernel):
        return [copy.deepcopy(kernel) for _ in range(latent_dim)]
    if isinstance(kernel, str) or not isinstance(kernel, Sequence):
        raise ArgumentTypeError(
            f"kernel: expected a gpytorch.kernels.Kernel or a list of {latent_dim}, got {described(kernel)}."
        )
    kernels = list(copy.deepcopy(kernel))  # as one, so that kernels that are shared remain so
    for k, one in enumerate(kernels):
        if not isinstance(one, kernels_of.Kernel):
            raise ArgumentTypeError(f"kernel[{k}]: expected a gpytorch.kernels.Kernel, got {described(one)}.")
        if len(one.batch_shape):
            raise ArgumentError(f"kernel[{k}]: expected one without batch shape, got {tuple(one.batch_shape)}.")
    if len(kernels) != latent_dim:
        raise ArgumentError(f"kernel: expected {latent_dim} kernels, one for each latent, got {len(kernels)}.")
    return kernels


def _cholesky(matrix: Tensor) -> Tensor:
    """The lower factor of a covariance at pivots: definite, but for rounding, which more jitter makes up for."""
    jitter = 0.0
    scale = matrix.detach().diagonal().mean()
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    while True:
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * scale * identity)
        if not bool(failed) or jitter > 1e-2:
            return factor
        jitter = max(10 * jitter, _JITTER)
