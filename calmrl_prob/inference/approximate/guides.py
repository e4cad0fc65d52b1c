"""Guides: normal approximations q(z_n | x_n) of the posterior of each instance, which own their parameters.

Both are torch modules that return, for the instances asked about, a multivariate normal over the K (stretched) latents.
``PerInstanceGuide`` has a mean and a scale for every instance of one data set. ``AmortizedGuide`` computes them from
what the instance has, so it also serves instances that it has never seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from calmrl_prob._support.randomness import seeded
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.linear_gaussian import LinearGaussian, solve_noise
from calmrl_prob.linear_gaussian.posterior import factorize

#: Features are standardised by their scale, but never by less than this share of the largest.
_LEAST_SCALE = 1e-6


class PerInstanceGuide(nn.Module):
    """q(z_n) = N(mean_n, L_n L_n^T), free for each instance.

    Args:
        mean: starts, (N, K).
        scale_tril: starts of L, (N, K, K) lower triangular, or (K, K) for all alike.
        covariance: "full", or "diagonal" for the mean-field approximation, which leaves out what the data say about
            latents jointly and so is too narrow.

    Example:
        >>> guide = PerInstanceGuide(torch.zeros(5, 2), torch.eye(2))
        >>> guide(torch.tensor([3, 4])).mean.shape
        torch.Size([2, 2])
    """

    def __init__(self, mean: Tensor, scale_tril: Tensor, covariance: Literal["full", "diagonal"] = "full") -> None:
        super().__init__()
        scale_tril = scale_tril.expand(*mean.shape, mean.shape[1])
        self.mean = nn.Parameter(mean.detach().clone())
        self.log_scale = nn.Parameter(scale_tril.diagonal(dim1=-2, dim2=-1).detach().log())
        self.below: nn.Parameter | None = None
        if covariance == "full":
            # the strictly lower part of L, each row divided by its diagonal
            unit = scale_tril / scale_tril.diagonal(dim1=-2, dim2=-1)[..., None]
            self.below = nn.Parameter(unit.detach().tril(-1).clone())

    def parts(self) -> dict[str, Any]:
        """Parts of which :meth:`from_parts` makes the same again."""
        return {"state": dict(self.state_dict())}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> PerInstanceGuide:
        """The guide that :meth:`parts` took apart.

        Raises:
            ArgumentError: the parts are not those of a guide.
            KeyError: one is missing.
        """
        state = parts["state"]
        mean, below = state["mean"], state.get("below")
        if mean.ndim != 2 or (below is not None and below.shape != (*mean.shape, mean.shape[1])):
            raise ArgumentError("guide: its means and factors are not of the same instances and latents.")
        guide = cls(mean, torch.eye(mean.shape[1]).to(mean), "diagonal" if below is None else "full")
        guide.load_state_dict(state)
        return guide

    def nearest(self, q: MultivariateNormal) -> MultivariateNormal:
        """Of the normals that this guide can be, those of the highest lower bound where q (N,) is the posterior."""
        if self.below is not None:
            return q
        scale = q.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
        return MultivariateNormal(q.mean, scale_tril=torch.diag_embed(scale), validate_args=False)

    @torch.no_grad()
    def place(self, rows: Tensor, mean: Tensor, scale_tril: Tensor) -> None:
        """Set q of the chosen instances: means (B, K) and L (B, K, K)."""
        scale = scale_tril.diagonal(dim1=-2, dim2=-1)
        self.mean[rows], self.log_scale[rows] = mean, scale.log()
        if self.below is not None:
            self.below[rows] = (scale_tril / scale[..., None]).tril(-1)

    def forward(self, rows: Tensor) -> MultivariateNormal:
        """q of the chosen instances, batch shape (B,)."""
        scale = self.log_scale[rows].exp()
        factor = torch.diag_embed(scale)
        if self.below is not None:
            factor = factor + self.below[rows].tril(-1) * scale[..., None]
        return MultivariateNormal(self.mean[rows], scale_tril=factor, validate_args=False)


class AmortizedGuide(nn.Module):
    """q(z_n | x_n) in the form of the exact posterior: evidence of the modalities that n has adds up.

        q = N(P^-1 h, P^-1),   h = h_0 + sum_{m in Omega_n} h_m(x_n^m),   P = P_0 + sum_{m in Omega_n} P_m(x_n^m)
        h_m(x) = B_m x + b_m + f_m(x),   P_m(x) = R_m diag(exp s_m(x)) R_m^T,   (f_m, s_m) = MLP_m(x)

    A product of experts: any missing pattern is handled, and the order of modalities does not matter. It starts as the
    exact posterior of a linear-Gaussian model, B_m = W^T Psi^-1, R_m R_m^T = W^T Psi^-1 W, with MLPs that are zero. Of
    single features that are missing it sees zeros in their place; then it is no longer exact for any model.

    Source: Wu & Goodman, Multimodal Generative Models for Scalable Weakly-Supervised Learning (2018).

    Args:
        start: the linear-Gaussian model whose posterior it starts as.
        hidden: widths of the hidden layers of each MLP; none for a guide that stays affine in x.
        seed: of the MLPs' first layers.

    Example:
        >>> lg = LinearGaussian({"x": torch.ones(1, 1)}, {"x": torch.zeros(1)}, {"x": torch.tensor(1.0)})
        >>> guide = AmortizedGuide(lg)
        >>> q = guide(MultimodalData({"x": torch.tensor([[2.0], [4.0]])}))
        >>> q.mean.flatten().tolist(), q.variance.flatten().tolist()
        ([1.0, 2.0], [0.5, 0.5])
    """

    def __init__(self, start: LinearGaussian, hidden: Sequence[int] = (128,), seed: int = 0) -> None:
        super().__init__()
        start = start.detach()
        self.dims = start.dims
        prior_factor = torch.linalg.cholesky(start.prior_covariance)
        prior_precision = torch.cholesky_inverse(prior_factor)
        self.prior_factor = nn.Parameter(torch.linalg.cholesky(prior_precision))
        self.prior_natural = nn.Parameter(prior_precision @ start.prior_mean)
        self.experts = nn.ModuleList(
            _Expert(start, name, prior_factor, hidden, seed + m) for m, name in enumerate(self.dims)
        )

    def parts(self) -> dict[str, Any]:
        """Parts of which :meth:`from_parts` makes the same again."""
        return {"dims": dict(self.dims), "state": dict(self.state_dict())}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> AmortizedGuide:
        """The guide that :meth:`parts` took apart.

        Raises:
            ArgumentError: the parts are not those of a guide.
            KeyError, RuntimeError: one is missing, or of another shape.
        """
        state, dims = parts["state"], parts["dims"]
        like = state["prior_natural"]
        weights = [value for key, value in state.items() if key.startswith("experts.0.network.") and value.ndim == 2]
        hidden = [len(weight) for weight in weights[:-1]]
        for m, width in enumerate(dims.values()):  # all there, before anything as large as it says is made
            widths = [width, *hidden, 2 * len(like)] if hidden else []
            for place, (before, after) in enumerate(itertools.pairwise(widths)):
                if state[f"experts.{m}.network.{2 * place}.weight"].shape != (after, before):
                    raise ArgumentError("guide: its networks are not of the widths that it says.")
            if state[f"experts.{m}.linear"].shape != (width, len(like)):
                raise ArgumentError("guide: its experts are not of the widths that it says.")
        start = LinearGaussian(
            {name: state[f"experts.{m}.linear"] for m, name in enumerate(dims)},
            {name: like.new_zeros(width) for name, width in dims.items()},
            {name: like.new_ones(width) for name, width in dims.items()},
        )
        guide = cls(start, hidden)
        guide.load_state_dict(state)
        return guide

    def forward(self, data: MultimodalData) -> MultivariateNormal:
        """q of all instances of ``data``, batch shape (N,)."""
        natural, precision = self.natural_parameters(data)
        # P = U U^T with U upper triangular, from the Cholesky factor of P turned about; then P^-1 = L L^T, L = U^-T
        upper = factorize(precision.flip(-2, -1)).flip(-2, -1)
        identity = torch.eye(natural.shape[1], dtype=natural.dtype, device=natural.device)
        scale_tril = torch.linalg.solve_triangular(upper, identity, upper=True).mT
        mean = (scale_tril @ (scale_tril.mT @ natural[..., None])).squeeze(-1)
        return MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False)

    def natural_parameters(self, data: MultimodalData) -> tuple[Tensor, Tensor]:
        """h (N, K) and P (N, K, K)."""
        data = data.conform(self.dims)
        natural = self.prior_natural.expand(len(data), -1)
        precision = (self.prior_factor.tril() @ self.prior_factor.tril().mT).expand(len(data), -1, -1)
        for name, expert in zip(self.dims, self.experts, strict=True):
            rows = data.observed(name).nonzero().squeeze(1)
            if len(rows):
                values = data.filled(name)[rows].to(natural.dtype)
                added, sharpened = expert(values, data.feature_mask(name)[rows])
                natural = natural.index_add(0, rows, added)
                precision = precision.index_add(0, rows, sharpened)
        return natural, precision


class _Expert(nn.Module):
    """Expert of one modality: its factor of the latents, h_m(x) and P_m(x)."""

    centre: Tensor
    origin: Tensor
    scale: Tensor

    def __init__(
        self, start: LinearGaussian, name: str, prior_factor: Tensor, hidden: Sequence[int], seed: int
    ) -> None:
        super().__init__()
        loadings, noise = start.loadings[name], start.noise_variance[name]
        signal = loadings @ prior_factor
        scale = (signal.square().sum(dim=1) + noise).sqrt()
        weighted = solve_noise(start, name, loadings)
        values, vectors = torch.linalg.eigh(loadings.mT @ weighted)
        self.root = nn.Parameter(vectors * values.clamp(min=0).sqrt())
        scale = scale.clamp(min=_LEAST_SCALE * float(scale.max()))
        self.linear = nn.Parameter(weighted * scale[:, None])  # of standardised features, so that steps have one size
        self.offset = nn.Parameter(torch.zeros_like(start.prior_mean))
        self.register_buffer("centre", loadings @ start.prior_mean + start.intercepts[name])
        self.register_buffer("scale", scale)
        self.register_buffer("origin", weighted.mT @ (loadings @ start.prior_mean))
        widths = [len(loadings), *hidden]
        layers: list[nn.Module] = []
        with seeded(seed):
            for before, after in itertools.pairwise(widths):
                layers += [nn.Linear(before, after), nn.SiLU()]
            last = nn.Linear(widths[-1], 2 * start.latent_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network: nn.Sequential | None = nn.Sequential(*layers, last).to(loadings) if hidden else None

    def forward(self, values: Tensor, feature_mask: Tensor) -> tuple[Tensor, Tensor]:
        """h_m (n, K) and P_m (n, K, K) of n instances."""
        standardised = torch.where(feature_mask, (values - self.centre) / self.scale, 0)
        natural = standardised @ self.linear + self.origin + self.offset
        if self.network is None:
            return natural, (self.root @ self.root.mT).expand(len(values), -1, -1)
        bent, sharpening = self.network(standardised).chunk(2, dim=1)
        return natural + bent, (self.root * sharpening.exp()[:, None, :]) @ self.root.mT
