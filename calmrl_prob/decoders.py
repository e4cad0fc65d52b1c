"""Functions of the latent that are Gaussian processes: the non-parametric decoder of one modality.

    f_d(z) = w_d^T z + b_d + s_d g_d(z),   g_d ~ GP(0, k),   d = 1 .. D, independent given one kernel k of variance 1

with g known through its values at R inducing points Z, whitened: g_d(Z) = L v_d with L L^T = k(Z, Z), and a variational
posterior q(v_d) = N(m_d, S), the same S for all features, as it is at the optimum where the noise is the same. Then

    a(z) = L^-1 k(Z, z):   E f_d(z) = w_d^T z + b_d + s_d m_d^T a(z)
                           Var f_d(z) = s_d^2 (1 - |a(z)|^2 + a(z)^T S a(z))

Source: Hensman, Matthews & Ghahramani, Scalable Variational Gaussian Process Classification (2015), for q; Titsias &
Lawrence, Bayesian Gaussian Process Latent Variable Model (2010), and Lalchand, Ravuri & Lawrence, Generalised GPLVM
with Stochastic Variational Inference (2022), for latents as inputs; a kernel for each modality, whose length scales
tell which latents it uses, is manifold relevance determination: Damianou, Ek, Titsias & Lawrence (2012).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from calmrl_prob._support.arguments import checked_seed, whole_number
from calmrl_prob._support.gpytorch import gpytorch

#: Added to the diagonal of k(Z, Z), whose own is 1.
_JITTER = 1e-6
#: What s starts from, as a share of the noise's standard deviation: the start is all but linear.
_SHARE = 0.1


class ProcessDecoder(nn.Module):
    """f(z) of one modality as above, with a squared-exponential kernel that has a length scale for each latent.

    Args:
        width: number of features D.
        latent_dim: K.
        num_inducing: R.
        linear: whether f has the linear part w_d^T z; without, it is a process about a constant.
        seed: of the inducing points, which start as draws from N(0, I), and of small random loadings.

    Raises:
        MissingDependencyError: GPyTorch is not installed.
        ArgumentError: a number is below 1.
        ArgumentTypeError: an argument is of another type.

    Example:
        >>> decoder = ProcessDecoder(width=3, latent_dim=2, num_inducing=10)
        >>> location, spread = decoder(torch.zeros(5, 2, dtype=torch.float64))
        >>> tuple(location.shape), tuple(spread.shape), float(decoder.divergence().detach())
        ((5, 3), (5, 3), 0.0)
    """

    unit: Tensor

    def __init__(
        self, width: int, latent_dim: int, num_inducing: int = 50, *, linear: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        width, latent_dim = whole_number("width", width, least=1), whole_number("latent_dim", latent_dim, least=1)
        num_inducing = whole_number("num_inducing", num_inducing, least=1)
        generator = torch.Generator().manual_seed(checked_seed(seed))
        kernel = gpytorch("decoder").kernels.RBFKernel(ard_num_dims=latent_dim).double()
        kernel.lengthscale = latent_dim**0.5
        self.kernel: nn.Module = kernel
        self.linear = linear
        #: of the features: all parameters below count in it, so that one rate of learning suits every modality
        self.register_buffer("unit", torch.ones((), dtype=torch.float64))

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        zero = torch.zeros(width, dtype=torch.float64)
        self.loadings = nn.Parameter(0.1 * normal(width, latent_dim) * linear, requires_grad=linear)
        self.intercepts = nn.Parameter(zero.clone())
        self.log_scale = nn.Parameter(zero - 1)
        self.log_noise = nn.Parameter(zero[0].clone())
        self.inducing = nn.Parameter(normal(num_inducing, latent_dim))
        self.mean = nn.Parameter(zero.new_zeros(num_inducing, width))
        self.root = nn.Parameter(zero.new_zeros(num_inducing, num_inducing))

    @property
    def noise_variance(self) -> Tensor:
        """Of all features, a scalar, in the data's units squared."""
        return self.log_noise.exp() * self.unit.square()

    @property
    def relevance(self) -> Tensor:
        """1 / length scale^2 of each latent, shape (K,): how fast g varies along it; near 0 if it does not."""
        kernel: Any = self.kernel
        values: Tensor = kernel.lengthscale.squeeze(0) ** -2
        return values

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of f at latents (N, K), each (N, D)."""
        factor = self._corner()
        kernel: Any = self.kernel
        inputs = torch.linalg.solve_triangular(factor, kernel(self.inducing, latents).to_dense(), upper=False)
        scale = self.log_scale.exp()
        location = torch.addmm(self.intercepts, latents, self.loadings.mT) + scale * (inputs.mT @ self.mean)
        known = (self._square_root().mT @ inputs).square().sum(0) - inputs.square().sum(0)
        return self.unit * location, (self.unit * scale).square() * (1 + known).clamp(min=1e-9)[:, None]

    def divergence(self) -> Tensor:
        """KL(q(v) || N(0, I)) of all features, nats, a scalar."""
        root = self._square_root()
        size, width = self.mean.shape
        shape = root.square().sum() - size - 2 * root.diagonal().log().sum()
        return 0.5 * (width * shape + self.mean.square().sum())

    @torch.no_grad()
    def start(self, loadings: Tensor, intercepts: Tensor, noise_variance: Tensor, inducing: Tensor) -> None:
        """Start from a linear map (D, K) with intercepts (D,), and noise, a scalar, and from inducing points (R, K)."""
        self.unit.copy_((loadings.square().sum(1).mean() + noise_variance).sqrt())
        loadings, noise_variance = loadings / self.unit, noise_variance / self.unit.square()
        self.inducing.copy_(inducing)
        self.intercepts.copy_(intercepts / self.unit)
        self.log_noise.copy_(noise_variance.log())
        self.mean.zero_()
        self.root.zero_()
        if self.linear:
            self.loadings.copy_(loadings)
            self.log_scale.fill_(float((_SHARE * noise_variance.sqrt()).log()))
            return
        spread = loadings.square().sum(1) + 0.01 * noise_variance
        self.log_scale.copy_(0.5 * spread.log())
        values = (inducing @ loadings.mT) / self.log_scale.exp()
        self.mean.copy_(torch.linalg.solve_triangular(self._corner(), values, upper=False))

    def _corner(self) -> Tensor:
        kernel: Any = self.kernel
        matrix: Tensor = kernel(self.inducing, self.inducing).to_dense()
        factor: Tensor = torch.linalg.cholesky(matrix + _JITTER * torch.eye(len(matrix)).to(matrix))
        return factor

    def _square_root(self) -> Tensor:
        """Lower triangular with a positive diagonal, S = root root^T, (R, R)."""
        return self.root.tril(-1) + torch.diag(self.root.diagonal().exp())
