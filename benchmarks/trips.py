"""Files that a call enters, and its moves between them, at run time: ``python -m benchmarks.trips``.

Counted by ``sys.setprofile``: how many files of the library run, how often the next function is in another file than
the last, and how often the form of a model is discovered. Each call is counted the second time it is made, so that
imports take no part. Beside them, the posterior under priors whose form the model states, against discovering it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pyro import distributions as dist
from pyro import plate, sample
from rich.console import Console
from torch import Tensor, nn

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds
from benchmarks.tables import Row, show
from calmrl_prob.priors import MixturePrior, Prior, StudentTPrior

LIBRARY = str(Path(cal.__file__).parent)
DIMS = {"image": 64, "text": 32, "audio": 16}


class OwnModule(nn.Module):
    """A factor analysis as a user writes it: nothing is stated, all is discovered."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        start = {name: torch.randn(width, latent_dim, generator=generator).double() for name, width in DIMS.items()}
        self.loadings = nn.ParameterDict(start)
        self.log_noise = nn.ParameterDict({name: torch.zeros((), dtype=torch.float64) for name in DIMS})
        self.latent_dim = latent_dim

    def forward(self, data: cal.MultimodalData) -> None:
        with plate("instances", len(data)):
            origin = torch.zeros(self.latent_dim, dtype=torch.float64)
            z = sample("z", dist.Normal(origin, 1.0).to_event(1))
            for name in data.names:
                features = dist.Normal(z @ self.loadings[name].mT, self.log_noise[name].exp()).to_event(1)
                sample(name, features.mask(data.observed(name)), obs=data.filled(name))


def make_data(num_instances: int, latent_dim: int) -> cal.MultimodalData:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    z = normal(num_instances, latent_dim)
    arrays = {name: z @ normal(latent_dim, width) + 0.5 * normal(num_instances, width) for name, width in DIMS.items()}
    arrays["text"][: num_instances // 3] = torch.nan
    arrays["audio"][num_instances // 4 : num_instances // 2] = torch.nan
    return cal.MultimodalData(arrays)


def trip(call: Callable[[], Any]) -> tuple[int, int, int]:
    """Files entered, moves between files, and calls that probe a model for its form."""
    call()
    entered: list[str] = []
    probes = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal probes
        if event != "call" or not frame.f_code.co_filename.startswith(LIBRARY):
            return
        probes += frame.f_code.co_name == "discover"
        if not entered or entered[-1] != frame.f_code.co_filename:
            entered.append(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len(set(entered)), len(entered) - 1, probes


def with_prior(prior: Prior, data: cal.MultimodalData) -> cal.SharedLatentModel:
    model = cal.SharedLatentModel(data.dims, prior.latent_dim, prior=prior)
    cal.fit(model, data, tolerance=1e-2)
    return model


def trips(data: cal.MultimodalData) -> list[Row]:
    normal = cal.SharedLatentModel(data.dims, 4)
    mixture, student_t = with_prior(MixturePrior(4, num_components=3), data), with_prior(StudentTPrior(4), data)
    calls: dict[str, Callable[[], Any]] = {
        "fit by EM": lambda: cal.fit(normal, data, tolerance=1e-2),
        "impute": lambda: cal.impute(normal, data).mean["text"],
        "impute, mixture prior": lambda: cal.impute(mixture, data).mean["text"],
        "impute, Student-t prior": lambda: cal.impute(student_t, data).mean["text"],
        "fit of one's own module": lambda: cal.fit(OwnModule(4), data, tolerance=1e-2),
    }
    rows = []
    for name, call in calls.items():
        files, moves, discoveries = trip(call)
        rows.append({"call": name, "files": str(files), "moves": str(moves), "discoveries": str(discoveries)})
    return rows


def run(model: cal.SharedLatentModel, data: cal.MultimodalData) -> Tensor:
    """The model as nothing but a Pyro callable."""
    return model(data)


def posteriors(data: cal.MultimodalData) -> list[Row]:
    rows = []
    for prior in (MixturePrior(8, num_components=4), StudentTPrior(8)):
        model = with_prior(prior, data)
        stated = min(cpu_seconds(lambda model=model: cal.posterior(model, data).mean) for _ in range(5))
        discovered = min(
            cpu_seconds(lambda model=model: cal.posterior(partial(run, model), data).mean) for _ in range(5)
        )
        rows.append(
            {
                "prior": prior.name,
                "stated, ms": f"{1e3 * stated:.1f}",
                "discovered, ms": f"{1e3 * discovered:.1f}",
                "ratio": f"{stated / discovered:.2f}",
            }
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    console = Console()
    show(console, "Files entered and moves between them", trips(make_data(200, 4)))
    show(console, "Posterior of 2,000 instances, 112 features, 8 latents, CPU", posteriors(make_data(2000, 8)))


if __name__ == "__main__":
    main()
