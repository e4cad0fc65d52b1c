"""What users hold, one small thing of every kind: models, fits, posteriors, imputations, validations, choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import calmrl_prob as cal
from calmrl_prob import priors
from calmrl_prob.inference import PosteriorResult
from calmrl_prob.inference.exact.process import gaussian_process_posterior
from models.gaussian_process import GaussianProcessModel
from models.student_t import StudentT
from tests.cases.held_parts import PARTS
from tests.cases.linear_gaussian_cases import random_model as random_structure
from tests.cases.model_cases import DIMS, random_data
from tests.cases.route_cases import loadings, observe

#: A model, and what is made of it and of the data that go with it.
Case = Callable[[], Any]


def own_loadings(data: cal.MultimodalData) -> None:
    """A Pyro model whose loadings are drawn; a function of a module, so that it can be pickled by its name."""
    weights = {
        name: pyro.sample(f"w_{name}", dist.Normal(torch.zeros(width, 2).double(), 1.0).to_event(2))
        for name, width in data.dims.items()
    }
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name in data.names:
            features = dist.Normal(z @ weights[name].mT, 0.7).to_event(1)
            pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))


def own_parameters(data: cal.MultimodalData) -> None:
    """A Pyro model with a parameter of its own."""
    shift = pyro.param("shift", torch.zeros((), dtype=torch.float64))
    with pyro.plate("instances", len(data)):
        observe(pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)), data, shift)


def bent(data: cal.MultimodalData) -> None:
    """A Pyro model that no exact route serves."""
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        observe(z + 0.2 * z.square(), data)


def heavy(data: cal.MultimodalData) -> None:
    """A Pyro model with a scale for every modality of an instance."""
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name in data.names:
            mean, scale = z @ loadings(name, 2).mT, 0.7 * torch.eye(data.dims[name]).double()
            features = dist.MultivariateStudentT(9.0, mean, scale)
            pyro.sample(name, features.mask(data.observed(name)), obs=data.filled(name))


def counted(data: cal.MultimodalData) -> None:
    """A Pyro model of counts, which no exact route serves."""
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        for name in data.names:
            rate = dist.Poisson((0.3 * z).exp().expand(-1, data.dims[name])).to_event(1)
            pyro.sample(name, rate.mask(data.observed(name)), obs=data.filled(name))


@cache
def counts() -> cal.MultimodalData:
    """Counts of which some instances lack a modality."""
    made = torch.poisson(torch.full((6, 2), 2.0), torch.Generator().manual_seed(0)).double()
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[0, 1] = False
    return cal.MultimodalData({"a": made, "b": made[:, :1]}, observed_mask=mask)


@cache
def data() -> cal.MultimodalData:
    """Sixty rows of two modalities that share two latents, with what every prior asks for."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 2))
    arrays = {name: z @ rng.normal(size=(2, width)) for name, width in (("image", 4), ("text", 3), ("audio", 2))}
    arrays = {name: array + 0.3 * rng.normal(size=array.shape) for name, array in arrays.items()}
    mask = rng.random((60, 3)) > 0.2
    mask[np.arange(60), np.arange(60) % 3] = True
    covariates = {"time": np.arange(60) / 10, "group": np.array(["u", "v"] * 30)}
    return cal.MultimodalData(arrays, observed_mask=mask, covariates=covariates)


@cache
def asked() -> cal.MultimodalData:
    """The rows of them that fits are asked about: few, as approximate posteriors take a search each time."""
    return data().subset(slice(0, 8))


def model(prior: priors.Prior | None = None, noise: Any = "auto", latent_dim: int | None = 2) -> cal.SharedLatentModel:  # noqa: ANN401
    """An unfitted model of the data."""
    return cal.SharedLatentModel(data().dims, latent_dim, noise, prior)


@cache
def fit() -> cal.FitResult:
    """The fit that most is asked of."""
    return cal.fit(model(), data())


def process() -> Any:  # noqa: ANN401
    """The posterior under a Gaussian process, given further instances."""
    held, prior = data(), priors.GaussianProcessPrior(2, covariate="time")
    lg = random_structure(held.dims, 2, 0, prior="standard")
    return gaussian_process_posterior(lg, prior, held.subset(slice(0, 20)), given=held.subset(slice(20, 60)))


#: Fits of every method.
FITS: dict[str, Callable[[], cal.FitResult]] = {
    "em": fit,
    "chosen": lambda: cal.fit(model(latent_dim=None), data()),
    "full noise": lambda: cal.fit(model(noise="full"), data()),
    "low-rank noise": lambda: cal.fit(model(noise="low_rank"), data()),
    "mixture em": lambda: cal.fit(model(priors.MixturePrior(2, num_components=2)), data(), tolerance=1e-2),
    "scale em": lambda: cal.fit(model(priors.StudentTPrior(2)), data(), tolerance=1e-1),
    "group": lambda: cal.fit(model(priors.GroupPrior(2, ["u", "v"], "group")), data(), tolerance=1e-2),
    "gradient": lambda: cal.fit(own_parameters, data(), tolerance=1e-2),
    "map": lambda: cal.fit(own_loadings, data(), method="map"),
    "collapsed svi": lambda: cal.fit(own_loadings, data(), method="collapsed svi", num_steps=20),
    "nuts": lambda: cal.fit(own_loadings, data(), method="nuts", num_draws=4, num_warmup=4, num_chains=1),
    "svi": lambda: cal.fit(bent, data(), max_iterations=10),
    "flow": lambda: cal.fit(model(priors.FlowPrior(2, hidden=(4,))), data(), max_iterations=10),
    "gaussian process": lambda: cal.fit(GaussianProcessModel(data().dims, 2, covariate="time"), data(), tolerance=0.1),
}

#: Everything else that calls return.
RESULTS: dict[str, Case] = {
    "data": data,
    "linear-Gaussian, differentiable": lambda: model().linear_gaussian(),
    "structure, differentiable": lambda: model(priors.MixturePrior(2, num_components=2)).structure(),
    "retrieval": lambda: cal.retrieve(fit(), data(), data()),
    "value of information": lambda: cal.value_of_information(fit(), data()),
    "masked validation": lambda: cal.masked_validation(fit(), data(), folds=2),
    "recalibration, scale": lambda: cal.recalibrate(fit(), data(), "scale"),
    "recalibration, conformal": lambda: cal.recalibrate(fit(), data(), "conformal"),
    "recalibration, cv": lambda: cal.recalibrate(fit(), data(), "cv"),
    "recalibration, cv+": lambda: cal.recalibrate(fit(), data(), "cv+"),
    "recalibrated by scale": lambda: cal.impute(fit(), data(), recalibrated=cal.recalibrate(fit(), data(), "scale")),
    "recalibrated": lambda: cal.impute(fit(), data(), recalibrated=cal.recalibrate(fit(), data(), "cv+")),
    "latent dim": lambda: cal.choose_latent_dim(data(), [1, 2]),
    "shrinkage": lambda: cal.choose_shrinkage(model(), data(), {"pseudo_rows": [0.0, 10.0]}, tolerance=1e-2),
    "parameter draws": lambda: cal.parameter_draws(fit(), data(), num_draws=4),
    "posterior over draws": lambda: cal.posterior(cal.parameter_draws(fit(), data(), num_draws=4), data()),
    "imputed over draws": lambda: cal.impute(cal.parameter_draws(fit(), data(), num_draws=4), data()),
    "collapsed": lambda: cal.marginalize(own_loadings, data()),
    "form": lambda: cal.discover(own_parameters, data()),
    "process, given others": process,
    "sampled": lambda: cal.posterior(bent, data().subset(slice(0, 4)), method="svi", max_iterations=5),
    "sampled scales": lambda: cal.posterior(heavy, data().subset(slice(0, 4)), num_draws=100),
    "arviz": lambda: cal.to_arviz(fit(), data(), num_draws=4),
    "student-t": lambda: cal.posterior(StudentT(DIMS, 2), random_data()),
    "imputed, student-t": lambda: cal.impute(StudentT(DIMS, 2), random_data()),
    "counts": lambda: cal.impute(counted, counts(), method="svi", max_iterations=5),
    "imputed, by draws of scales": lambda: cal.impute(heavy, data().subset(slice(0, 4)), num_draws=100),
}


#: For fits of models that are a user's, what makes the model to hand to ``cal.load``.
GIVEN: dict[str, Callable[[], Any]] = {
    "gradient": lambda: own_parameters,
    "map": lambda: own_loadings,
    "collapsed svi": lambda: own_loadings,
    "nuts": lambda: own_loadings,
    "svi": lambda: bent,
    "gaussian process": lambda: GaussianProcessModel(data().dims, 2, covariate="time", seed=3),
}


@cache
def made(name: str) -> tuple[Any, ...]:
    """The things of a case, made once: a result; or a fit with its model, its report and what is asked of it."""
    if name in RESULTS or name in PARTS:
        return ((RESULTS | PARTS)[name](),)
    result = FITS[name]()
    return result, result.model, result.report, result.posterior(asked()), cal.impute(result, asked())


def answers(thing: Any) -> list[Tensor]:  # noqa: ANN401
    """Numbers that a thing gives when asked, by attribute and by modality."""
    found: list[Tensor] = []
    for name in ("mean", "covariance", "log_marginal", "variance", "log_likelihood", "hidden_count", "ranks", "values"):
        value = getattr(thing, name, None)
        values = [value[key] for key in value] if isinstance(value, Mapping) else [value]
        found += [torch.as_tensor(np.asarray(v)) for v in values if isinstance(v, Tensor | np.ndarray)]
    if dataclasses.is_dataclass(thing):
        held = [getattr(thing, field.name) for field in dataclasses.fields(thing)]
        found += [torch.as_tensor(value) for value in held if isinstance(value, Tensor)]
    if isinstance(thing, torch.nn.Module):
        found += [parameter.detach() for parameter in thing.parameters()]
    if isinstance(thing, PosteriorResult):
        found.append(thing.sample(2, seed=1))
    if isinstance(thing, cal.Imputation):
        found += [end for name in thing.names for end in thing.interval(0.8)[name]]
    return found


def found_in(thing: object, deep: int = 12) -> dict[int, object]:
    """Everything that a thing holds, by identity: attributes, entries, and what those hold."""
    known: dict[int, object] = {}
    front = [(thing, 0)]
    while front:
        here, depth = front.pop()
        if id(here) in known or depth > deep or isinstance(here, type):
            continue
        known[id(here)] = here
        inner: list[object] = []
        if isinstance(here, Mapping):
            inner += [here[key] for key in here]
        elif isinstance(here, list | tuple):
            inner += here
        if type(here).__module__.split(".")[0] in {"calmrl_prob", "models", "tests"}:
            inner += vars(here).values() if hasattr(here, "__dict__") else []
        front += [(each, depth + 1) for each in inner]
    return known
