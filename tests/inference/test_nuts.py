"""The third oracle of the exact posterior: a sampler that knows nothing of conjugacy, run on the Pyro model itself."""

from __future__ import annotations

import arviz as az
import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS

from calmrl_prob.data import MultimodalData
from calmrl_prob.inference import posterior
from calmrl_prob.model import SharedLatentModel
from tests.cases.linear_gaussian_cases import random_model


def test_nuts_finds_the_exact_posterior() -> None:
    """Mean and variance of every latent within 6 standard errors, from as many draws as the sampler's are worth."""
    dims = {"image": 4, "text": 3}
    model = SharedLatentModel(dims, 2)
    model.load_linear_gaussian(random_model(dims, 2, seed=3, prior="standard", noise="isotropic"))
    generator = torch.Generator().manual_seed(1)
    x = {name: torch.randn(4, width, generator=generator, dtype=torch.float64) for name, width in dims.items()}
    x["text"][0], x["image"][1] = torch.nan, torch.nan
    data = MultimodalData(x)
    pyro.set_rng_seed(0)
    kernel = NUTS(poutine.block(model, hide_types=["param"]))
    sampler = MCMC(kernel, num_samples=400, warmup_steps=100, disable_progbar=True)
    sampler.run(data)
    draws = sampler.get_samples()["z"].detach()
    assert draws.shape == (400, 4, 2)
    size = torch.tensor([[float(az.ess(draws[None, :, n, k].numpy())) for k in range(2)] for n in range(4)])
    assert float(size.min()) > 100
    exact = posterior(model, data)
    mean, variance = exact.mean.detach(), exact.covariance.diagonal(dim1=-2, dim2=-1).detach()
    assert bool(((draws.mean(0) - mean).abs() < 6 * (variance / size).sqrt()).all())
    assert bool(((draws.var(0) - variance).abs() < 6 * variance * (2 / size).sqrt()).all())
