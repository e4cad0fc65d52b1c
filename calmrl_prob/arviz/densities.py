"""Log densities of what was observed, given draws of the latents.

Where all draws are of one linear-Gaussian model, log N(x; W z + mu, Psi) is quadratic in z,

    log N(x; mu, Psi) + z^T h - 1/2 z^T A z,   h = W^T Psi^-1 (x - mu),   A = W^T Psi^-1 W

so that after one pass over the data a draw costs N K^2, however wide the modality is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.posterior import Draw
from calmrl_prob.posteriors.predictive import normal_log_density


class Densities:
    """Function of draws: log p(x_n^m | z_n) of N instances, nats.

    Args:
        data: the instances.
        names: the modalities that are asked for.
    """

    def __init__(self, data: MultimodalData, names: Iterable[str]) -> None:
        self._present = {name: data.feature_mask(name) for name in names}
        self._values = {name: data.filled(name).double() for name in self._present}
        # where an instance has part of a modality, A would be its own
        self._whole = {name: bool((mask.all(1) | ~mask.any(1)).all()) for name, mask in self._present.items()}
        self._quadratic: dict[str, _Quadratic] = {}

    def __call__(self, draw: Draw, name: str) -> Tensor:
        """Shape (N,), float64; of instances that lack the modality, anything."""
        if draw.likelihood is not None and self._whole[name]:
            if name not in self._quadratic:
                self._quadratic[name] = _Quadratic(draw.likelihood, name, self._values[name])
            return self._quadratic[name](draw.latents.double())
        values = self._values[name]
        if name in draw.correlated:  # a modality is there as a whole, or not at all
            signal = draw.signal[name] if name in draw.signal else draw.location[name]
            return draw.correlated[name].log_density(values - signal.double())
        if name in draw.sites:
            cells = draw.sites[name].log_density(values)[0].double()
        else:
            cells = normal_log_density(values, draw.location[name].double(), draw.noise_variance[name].double())
        return torch.where(self._present[name], cells, 0).sum(dim=1)


class _Quadratic:
    """The density of one modality, all its features, as a function of the latents."""

    def __init__(self, lg: LinearGaussian, name: str, values: Tensor) -> None:
        lg = lg.to(torch.float64)
        loadings, noise = lg.loadings[name], lg.correlated_noise(name)
        away = values - lg.intercepts[name]
        if noise is None:
            weights = loadings / lg.noise_variance[name][:, None]
            self._constant = normal_log_density(values, lg.intercepts[name], lg.noise_variance[name]).sum(dim=1)
        else:
            weights = noise.solve(loadings)
            self._constant = noise.log_density(away)
        self._linear, self._curvature = away @ weights, loadings.mT @ weights

    def __call__(self, latents: Tensor) -> Tensor:
        return self._constant + (latents * (self._linear - 0.5 * latents @ self._curvature)).sum(dim=1)
