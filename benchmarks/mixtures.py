"""CPU seconds of fits under a mixture prior: 2,000 x 1,024 features, K 32, 5 components, 30% of the cells missing.

    python -m benchmarks.mixtures

``SharedLatentModel`` with a ``MixturePrior``, by closed-form EM, and a Pyro model with a mixture of its own, which
follows the exact gradient. One thread, the import of the library left out.
"""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds
from calmrl_prob.datasets import make_synthetic
from calmrl_prob.errors import CalmrlWarning
from calmrl_prob.priors import MixturePrior

DIMS = {"image": 512, "text": 384, "audio": 128}
NUM_INSTANCES, NUM_LATENTS, NUM_COMPONENTS = 2_000, 32, 5


def own_model(data: cal.MultimodalData) -> None:
    """A mixture of unit normals, its centres and weights learned with the likelihood."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(NUM_COMPONENTS, NUM_LATENTS, generator=generator).double()
    centres = pyro.param("centres", drawn)
    share = torch.full((NUM_COMPONENTS,), 1 / NUM_COMPONENTS, dtype=torch.float64)
    share = pyro.param("share", share, constraint=constraints.simplex)
    with pyro.plate("instances", len(data)):
        prior = dist.MixtureSameFamily(dist.Categorical(share), dist.Normal(centres, 1.0).to_event(1))
        z = pyro.sample("z", prior)
        for name, width in data.dims.items():
            start = 0.1 * torch.randn(width, NUM_LATENTS, generator=generator).double()
            loadings = pyro.param(f"loadings_{name}", start)
            intercept = pyro.param(f"intercept_{name}", torch.zeros(width).double())
            scale = pyro.param(f"scale_{name}", torch.ones(()).double(), constraint=constraints.positive)
            features = dist.Normal(z @ loadings.mT + intercept, scale).to_event(1)
            pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))


def main() -> None:
    """Time one fit of each."""
    warnings.simplefilter("ignore", CalmrlWarning)
    torch.set_num_threads(1)
    data = make_synthetic(NUM_INSTANCES, DIMS, NUM_LATENTS, missing_rate=0.3, seed=0).data
    prior = MixturePrior(NUM_LATENTS, NUM_COMPONENTS)
    shared = cal.SharedLatentModel(data.dims, NUM_LATENTS, prior=prior)
    print(data)
    for name, model in (("SharedLatentModel", shared), ("own Pyro model", own_model)):
        found: list[object] = []
        seconds = cpu_seconds(lambda model=model, found=found: found.append(cal.fit(model, data)))
        print(f"{name}: {seconds:.1f} CPU seconds; {found[-1]}")


if __name__ == "__main__":
    main()
