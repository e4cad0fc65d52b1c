"""Counts: Poisson or negative binomial features of one shared latent, by the route "svi".

    z_n    ~ N(0, I)                                          K latents, shared by all modalities of instance n
    w      ~ N(0, weight_scale^2)                             each loading, taken at its mode
    x_nd^m ~ Poisson(e_n^m exp(w_d^m . z_n + mu_d^m))         or negative binomial of the same mean a and variance
                                                              a + a^2 / r_d, for each modality m that n has

e_n^m is the exposure, such as the number of molecules of a cell that were read: the covariate "exposure_<modality>" of
the data, 1 where they have none. With the exposure known, depth is not part of what latents explain.

``fit_to`` starts intercepts at the log of what is counted for each unit of exposure; the rest is left to stochastic
variational inference. Predictives are of whole numbers (``cal.impute(...).interval``), mixtures over draws of latents.

Source: Collins, Dasgupta & Schapire, A Generalization of Principal Component Analysis to the Exponential Family (2001);
for single cells Townes et al., Feature selection and dimension reduction for single-cell RNA-Seq based on a multinomial
model (2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.approximate.svi import SVIResult, run_svi
from calmrl_prob.programs.bound import BoundModel

#: Counts for each instance below which a feature's rate is not taken to be: of features never counted.
_LEAST = 1e-3


class Counts(nn.Module):
    """Factor analysis of counts.

    Args:
        dims: number of features D_m of each modality.
        latent_dim: K.
        family: "poisson" or "negative_binomial".
        weight_scale: standard deviation of the loadings under their prior.
        seed: of the small random loadings that it starts from.

    Raises:
        ArgumentError: there is no such family.

    Example:
        >>> import calmrl_prob as cal
        >>> made = torch.Generator().manual_seed(0)
        >>> z = torch.randn(80, 1, generator=made).double()
        >>> counts = {name: torch.poisson((z + torch.ones(3)).exp(), made) for name in ("rna", "protein")}
        >>> data = cal.MultimodalData(counts)
        >>> fit = cal.fit(Counts(data.dims, 1), data, max_iterations=60, patience=1, tolerance=0.1)
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as told:  # of importance weights in the tail of low rates
        ...     warnings.simplefilter("always")
        ...     imputed = cal.impute(fit.model, data.select(["rna"]), ["protein"])
        >>> bool((imputed.interval(0.9)["protein"][1] % 1 == 0).all())
        True
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        latent_dim: int = 8,
        family: Literal["poisson", "negative_binomial"] = "poisson",
        weight_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if family not in ("poisson", "negative_binomial"):
            raise ArgumentError(f"family: expected 'poisson' or 'negative_binomial', got {family!r}.")
        self.dims, self.latent_dim, self.family, self.weight_scale = dict(dims), latent_dim, family, weight_scale
        made = torch.Generator().manual_seed(seed)
        start = {name: 0.1 * torch.randn(width, latent_dim, generator=made).double() for name, width in dims.items()}
        self.loadings = nn.ParameterDict(start)
        self.intercepts = nn.ParameterDict({name: torch.zeros(width).double() for name, width in self.dims.items()})
        if family == "negative_binomial":
            self.log_size = nn.ParameterDict({name: torch.zeros(width).double() for name, width in self.dims.items()})

    def log_rate(self, z: Tensor, name: str) -> Tensor:
        """Log of the expected counts for each unit of exposure, (N, D_m), of latents (N, K)."""
        return z @ self.loadings[name].mT + self.intercepts[name]

    def forward(self, data: MultimodalData) -> Tensor:
        """The generative process; the prior of the loadings is a factor, outside the plate."""
        weights = torch.cat([loadings.flatten() for loadings in self.loadings.values()])
        pyro.factor("weights", -0.5 * (weights / self.weight_scale).square().sum())
        with pyro.plate("instances", len(data)):
            z: Tensor = pyro.sample("z", dist.Normal(weights.new_zeros(self.latent_dim), 1.0).to_event(1))
            for name in data.names:
                log_mean = self.log_rate(z, name) + exposure(data, name).log()[:, None]
                if self.family == "poisson":
                    features = dist.Poisson(log_mean.exp())
                else:
                    log_size = self.log_size[name]
                    features = dist.NegativeBinomial(log_size.exp(), logits=log_mean - log_size)
                observed = features.to_event(1).mask(data.observed(name))
                pyro.sample(name, observed, obs=data.filled(name).to(z.dtype))
        return z

    def fit_to(self, data: MultimodalData, seed: int, callback: Callback | None, **options: Any) -> SVIResult:
        """Fit by SVI: options are the keywords of ``calmrl_prob.inference.approximate.svi.run_svi``."""
        with torch.no_grad():
            for name in self.dims:
                rows = data.observed(name)
                rate = data[name][rows].double().sum(0) / exposure(data, name)[rows].sum()
                self.intercepts[name].copy_(rate.clamp(min=_LEAST / float(rows.sum())).log())
        return run_svi(BoundModel(self), data, seed, callback, **options)


def exposure(data: MultimodalData, name: str) -> Tensor:
    """What counts of a modality are expected in proportion to, (N,) float64: 1 where the data have none.

    Raises:
        ArgumentError: some are not positive numbers.
    """
    found = data.covariates.get(f"exposure_{name}")
    values = torch.ones(len(data)).double() if found is None else torch.as_tensor(np.asarray(found, dtype=np.float64))
    if not bool((values > 0).all() & values.isfinite().all()):
        raise ArgumentError(
            f"exposure_{name}: expected positive numbers, one for each instance; leave out instances of which nothing "
            "was counted, or give those that lack the modality any positive number."
        )
    return values.to(data.device)
