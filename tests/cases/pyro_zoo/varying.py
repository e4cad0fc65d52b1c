"""Conjugate models in which something varies by instance, and mixtures: exact, though not one LinearGaussian."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from calmrl_prob.data import MultimodalData
from tests.cases.pyro_zoo.cases import Conjugate, Mixture, Normal, conjugate, make_data, numbers, tensor
from tests.cases.pyro_zoo.conjugate import observe, random_parts, standard
from tests.cases.pyro_zoo.observation import latent


def covariate(data: MultimodalData, name: str) -> torch.Tensor:
    """One of them, for torch."""
    return torch.as_tensor(data.covariates[name])


@conjugate
def design_by_group() -> Conjugate:
    """Loadings that depend on a discrete covariate: three scanners that see the latent differently."""
    w, b, s = random_parts(51, 2)
    scanner = numbers(510)(3, 4, 2)
    data = make_data(20)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            own = tensor(scanner)[covariate(data, "site")]  # (N, D, K)
            observe("image", (own @ z[..., None])[..., 0] + tensor(b["image"]), tensor(s["image"]), data)
            for name in ("text", "audio"):
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    def truth(row: int) -> Mixture:
        return [(1.0, standard({**w, "image": scanner[data.covariates["site"][row]]}, b, s))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def design_by_number() -> Conjugate:
    """Random slopes: the second latent acts in proportion to age, a number of its own for each row."""
    w, b, s = random_parts(52, 2)
    data = make_data()

    def model(data: MultimodalData) -> None:
        age = covariate(data, "age")[:, None]
        with pyro.plate("instances", len(data)):
            level = pyro.sample("level", dist.Normal(torch.tensor(0.0).double(), 1.0))[..., None]
            slope = pyro.sample("slope", dist.Normal(torch.tensor(0.5).double(), 0.3))[..., None]
            for name in data.names:
                mean = level * tensor(w[name][:, 0]) + slope * age * tensor(w[name][:, 1]) + tensor(b[name])
                observe(name, mean, tensor(s[name]), data)

    def truth(row: int) -> Mixture:
        age = data.covariates["age"][row]
        loadings = {name: v * np.array([1.0, age]) for name, v in w.items()}
        noise = standard(w, b, s).noise
        return [(1.0, Normal(loadings, b, noise, np.array([0.0, 0.5]), np.diag([1.0, 0.09])))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def regression_intercepts() -> Conjugate:
    """Intercepts that regress on covariates, through an embedding and a nonlinear network (of known inputs)."""
    w, b, s = random_parts(53, 2)
    per_site = numbers(530)(3, 3)
    embedding = nn.Embedding.from_pretrained(tensor(per_site))
    data = make_data()

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            age = covariate(data, "age")[:, None]
            observe("image", z @ tensor(w["image"]).T + torch.tanh(age) * tensor(b["image"]), tensor(s["image"]), data)
            observe("text", z @ tensor(w["text"]).T + embedding(covariate(data, "site")), tensor(s["text"]), data)
            dog = torch.as_tensor(data.labels == "dog").double()[:, None]
            observe("audio", z @ tensor(w["audio"]).T + dog * tensor(b["audio"]), tensor(s["audio"]), data)

    def truth(row: int) -> Mixture:
        intercepts = {
            "image": np.tanh(data.covariates["age"][row]) * b["image"],
            "text": per_site[data.covariates["site"][row]],
            "audio": b["audio"] * float(data.labels[row] == "dog"),
        }
        return [(1.0, standard(w, intercepts, s))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def prior_mean_by_group() -> Conjugate:
    """Instances in known groups, each group with a mean of its own."""
    w, b, s = random_parts(54, 2)
    centres = 2 * numbers(540)(3, 2)
    places = ("north", "south", "west")
    data = make_data()

    def model(data: MultimodalData) -> None:
        group = torch.tensor([places.index(name) for name in data.covariates["hospital"]])
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(tensor(centres)[group], 0.7).to_event(1))
            for name in data.names:
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    def truth(row: int) -> Mixture:
        centre = centres[places.index(data.covariates["hospital"][row])]
        return [(1.0, Normal(w, b, standard(w, b, s).noise, centre, 0.49 * np.eye(2)))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def prior_covariance_by_group() -> Conjugate:
    """Instances in known groups, each group with a covariance of its own."""
    w, b, s = random_parts(55, 2)
    factors = np.tril(numbers(550)(3, 2, 2)) + 0.5 * np.eye(2)
    factors[:, [0, 1], [0, 1]] = np.abs(factors[:, [0, 1], [0, 1]]) + 0.1
    data = make_data()

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            factor = tensor(factors)[covariate(data, "site")]
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2).double(), scale_tril=factor))
            for name in data.names:
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    def truth(row: int) -> Mixture:
        factor = factors[data.covariates["site"][row]]
        return [(1.0, Normal(w, b, standard(w, b, s).noise, np.zeros(2), factor @ factor.T))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def noise_by_covariate() -> Conjugate:
    """Noise that grows with a known covariate of each row."""
    w, b, s = random_parts(56, 2)
    data = make_data()

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            factor = covariate(data, "age").exp()[:, None]
            for name in data.names:
                scale = tensor(s[name]) * (factor if name == "text" else 1.0)
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), scale, data)

    def truth(row: int) -> Mixture:
        grown = {**s, "text": s["text"] * np.exp(data.covariates["age"][row])}
        return [(1.0, standard(w, b, grown))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def one_odd_row() -> Conjugate:
    """The loadings of a single row, out of sixty, have the other sign: a few probed rows do not show it."""
    w, b, s = random_parts(57, 2)
    data = make_data(60)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            sign = 1.0 - 2.0 * covariate(data, "rare").double()[:, None]
            for name in data.names:
                observe(name, sign * (z @ tensor(w[name]).T) + tensor(b[name]), tensor(s[name]), data)

    def truth(row: int) -> Mixture:
        return [(1.0, standard({name: v * (-1.0 if row == 5 else 1.0) for name, v in w.items()}, b, s))]

    return Conjugate(model, data, truth, form="by instance")


def three_clusters(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (3,), means (3, 2) and scales (3, 2)."""
    normal = numbers(seed)
    return np.array([0.5, 0.3, 0.2]), 2 * normal(3, 2), 0.3 + np.abs(normal(3, 2))


@conjugate
def mixture_prior() -> Conjugate:
    """A mixture of diagonal normals as one distribution."""
    w, b, s = random_parts(61, 2)
    weights, means, scales = three_clusters(610)

    def model(data: MultimodalData) -> None:
        prior = dist.MixtureSameFamily(
            dist.Categorical(tensor(weights)), dist.Normal(tensor(means), tensor(scales)).to_event(1)
        )
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", prior)
            for name in data.names:
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    noise = standard(w, b, s).noise
    parts = [(float(p), Normal(w, b, noise, m, np.diag(v**2))) for p, m, v in zip(weights, means, scales, strict=True)]
    return Conjugate(model, make_data(), lambda _: parts, form="mixture")


@conjugate
def mixture_of_full_normals() -> Conjugate:
    """A mixture of full-covariance normals by logits, expanded over the rows, beside a plain second latent."""
    w, b, s = random_parts(62, 3)
    weights, means, _ = three_clusters(620)
    roots = numbers(621)(3, 2, 2)
    covariances = roots @ roots.transpose(0, 2, 1) + 0.2 * np.eye(2)

    def model(data: MultimodalData) -> None:
        components = dist.MultivariateNormal(tensor(means), covariance_matrix=tensor(covariances))
        prior = dist.MixtureSameFamily(dist.Categorical(logits=3.0 + tensor(weights).log()), components)
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", prior.expand([len(data)]))
            extra = pyro.sample("extra", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            both = torch.cat([z, extra], dim=-1)
            for name in data.names:
                observe(name, both @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    def part(mean: np.ndarray, covariance: np.ndarray) -> Normal:
        full = np.eye(3)
        full[:2, :2] = covariance
        return Normal(w, b, standard(w, b, s).noise, np.append(mean, 0.0), full)

    parts = [(float(p), part(m, v)) for p, m, v in zip(weights, means, covariances, strict=True)]
    return Conjugate(model, make_data(), lambda _: parts, form="mixture")


@conjugate
def discrete_component() -> Conjugate:
    """A discrete site for each instance chooses the mean of its latent."""
    w, b, s = random_parts(63, 2)
    weights, means, scales = three_clusters(630)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            c = pyro.sample("c", dist.Categorical(tensor(weights)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(tensor(means)[c], tensor(scales)[c]).to_event(1))
            for name in data.names:
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    noise = standard(w, b, s).noise
    parts = [(float(p), Normal(w, b, noise, m, np.diag(v**2))) for p, m, v in zip(weights, means, scales, strict=True)]
    return Conjugate(model, make_data(), lambda _: parts, form="discrete")


@conjugate
def mixture_of_factor_analysers() -> Conjugate:
    """A discrete site for each instance chooses loadings, intercepts and noise; the latent is the same for all."""
    weights = np.array([0.6, 0.4])
    experts = [random_parts(64, 2), random_parts(65, 2)]

    def stacked(part: int, name: str) -> torch.Tensor:
        return tensor(np.stack([expert[part][name] for expert in experts]))

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            c = pyro.sample("expert", dist.Bernoulli(torch.tensor(0.4).double())).long()
            z = latent(2)
            for name in data.names:
                mean = (stacked(0, name)[c] @ z[..., None])[..., 0] + stacked(1, name)[c]
                observe(name, mean, stacked(2, name)[c], data)

    parts = [(float(p), standard(*expert)) for p, expert in zip(weights, experts, strict=True)]
    return Conjugate(model, make_data(), lambda _: parts, form="discrete", tolerance=1e-6)
