"""Conjugate models: spellings of what is observed, of what is missing, and of the noise."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from calmrl_prob.data import MultimodalData
from tests.cases.pyro_zoo.cases import DIMS, Conjugate, Normal, conjugate, make_data, numbers, tensor
from tests.cases.pyro_zoo.conjugate import observe, random_parts, standard


def latent(latent_dim: int) -> Tensor:
    """A standard normal latent."""
    z: Tensor = pyro.sample("z", dist.Normal(torch.zeros(latent_dim).double(), 1.0).to_event(1))
    return z


@conjugate
def features_plate() -> Conjugate:
    """A plate of features at -1 inside the plate of instances at -2."""
    w, b, s = random_parts(31, 3)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data), dim=-2):
            z = latent(3)  # (N, 1, K)
            for name in data.names:
                with pyro.plate(f"features of {name}", data.dims[name], dim=-1):
                    mean = (z * tensor(w[name])).sum(-1) + tensor(b[name])
                    features = dist.Normal(mean, tensor(s[name])).mask(data.observed(name)[:, None])
                    pyro.sample(name, features, obs=data.filled(name))

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def features_first() -> Conjugate:
    """Instances at -1, features at -2: every array stands on its side."""
    w, b, s = random_parts(30, 2)

    def model(data: MultimodalData) -> None:
        instances = pyro.plate("instances", len(data), dim=-1)
        with instances:
            z = latent(2)
        for name in data.names:
            with instances, pyro.plate(f"features of {name}", data.dims[name], dim=-2):
                mean = tensor(w[name]) @ z.mT + tensor(b[name])[:, None]
                features = dist.Normal(mean, tensor(s[name])[:, None]).mask(data.observed(name))
                pyro.sample(name, features, obs=data.filled(name).mT)

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def latents_in_a_plate() -> Conjugate:
    """Latents in a plate of their own inside that of the instances, too."""
    w, b, s = random_parts(32, 3)

    def model(data: MultimodalData) -> None:
        instances = pyro.plate("instances", len(data), dim=-2)
        factors = pyro.plate("factors", 3, dim=-1)
        with instances, factors:
            z = pyro.sample("z", dist.Normal(torch.tensor([0.0, 1.0, 2.0]).double(), 1.0))  # (N, K)
        for name in data.names:
            features = dist.Normal(z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]))
            seen = poutine.mask(mask=data.observed(name)[:, None])
            with instances, pyro.plate(f"{name}_dim", data.dims[name], dim=-1), seen:
                pyro.sample(name, features, obs=data.filled(name))

    return Conjugate(model, make_data(), Normal(w, b, standard(w, b, s).noise, np.array([0.0, 1.0, 2.0]), np.eye(3)))


@conjugate
def mask_keyword() -> Conjugate:
    """obs_mask, by which Pyro itself splits each site in two."""
    w, b, s = random_parts(33, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                features = dist.Normal(z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name])).to_event(1)
                pyro.sample(name, features, obs=data.filled(name), obs_mask=data.observed(name))

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def mask_context() -> Conjugate:
    """poutine.mask around the statement, and a value of its own in the absent rows."""
    w, b, s = random_parts(34, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                with poutine.mask(mask=data.observed(name)):
                    mean = z @ tensor(w[name]).T + tensor(b[name])
                    features = dist.Normal(mean, tensor(s[name])).to_event(1)
                    pyro.sample(name, features, obs=data.filled(name, value=-99.0))

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def mask_every_feature() -> Conjugate:
    """The mask on single features, below to_event, over data that lack whole modalities."""
    w, b, s = random_parts(35, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                features = dist.Normal(z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]))
                seen = data.feature_mask(name)
                pyro.sample(name, features.mask(seen).to_event(1), obs=data[name].nan_to_num())

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def single_features_missing() -> Conjugate:
    """Data that lack single features."""
    w, b, s = random_parts(36, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                features = dist.Normal(z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]))
                pyro.sample(name, features.mask(data.feature_mask(name)).to_event(1), obs=data.filled(name))

    return Conjugate(model, make_data(missing="features"), standard(w, b, s))


@conjugate
def location_only_where_present() -> Conjugate:
    """The model leaves zeros in the location where the modality is missing: such rows say nothing of the loadings."""
    w, b, s = random_parts(37, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                seen = data.observed(name)
                mean = torch.where(seen[:, None], z @ tensor(w[name]).T + tensor(b[name]), 0.0)
                observe(name, mean, torch.where(seen[:, None], tensor(s[name]), 1.0), data)

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def one_number() -> Conjugate:
    """Modalities of one feature, observed without an event dimension."""
    w = {"height": np.array([[1.5, -0.5]]), "weight": np.array([[0.3, 0.8]]), "ecg": numbers(38)(5, 2)}
    b = {"height": np.array([2.0]), "weight": np.array([0.0]), "ecg": np.arange(5.0)}
    s = {"height": np.array([0.4]), "weight": np.array([0.9]), "ecg": np.full(5, 0.6)}

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in ("height", "weight"):
                mean = (z * tensor(w[name][0])).sum(-1) + float(b[name][0])
                number = dist.Normal(mean, float(s[name][0])).mask(data.observed(name))
                pyro.sample(name, number, obs=data.filled(name).squeeze(-1))
            observe("ecg", z @ tensor(w["ecg"]).T + tensor(b["ecg"]), tensor(s["ecg"]), data)

    return Conjugate(model, make_data(dims={"height": 1, "weight": 1, "ecg": 5}), standard(w, b, s))


@conjugate
def diagonal_matrix_noise() -> Conjugate:
    """Multivariate normals whose covariance, or precision, happens to be diagonal."""
    w, b, s = random_parts(39, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                mean, variance = z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name] ** 2)
                if name == "image":
                    noisy = dist.MultivariateNormal(mean, covariance_matrix=torch.diag(variance))
                elif name == "text":
                    noisy = dist.MultivariateNormal(mean, precision_matrix=torch.diag(1 / variance))
                else:
                    noisy = dist.LowRankMultivariateNormal(mean, variance.new_zeros(2, 1), variance)
                pyro.sample(name, noisy.mask(data.observed(name)), obs=data.filled(name))

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def full_matrix_noise() -> Conjugate:
    """Features whose noise is correlated, by a full covariance."""
    w, b, s = random_parts(40, 2)
    root = numbers(400)(4, 4)
    noise = root @ root.T + np.eye(4)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            mean = z @ tensor(w["image"]).T + tensor(b["image"])
            picture = dist.MultivariateNormal(mean, covariance_matrix=tensor(noise))
            pyro.sample("image", picture.mask(data.observed("image")), obs=data.filled("image"))
            for name in ("text", "audio"):
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    plain = standard(w, b, s)
    return Conjugate(
        model,
        make_data(),
        Normal(w, b, {**plain.noise, "image": noise}, plain.mean, plain.covariance),
        form="correlated noise",
    )


@conjugate
def low_rank_noise() -> Conjugate:
    """Features whose noise is of low rank plus diagonal: a private latent that was integrated out by hand."""
    w, b, s = random_parts(41, 2)
    own = {name: numbers(410 + i)(width, 1) for i, (name, width) in enumerate(DIMS.items())}

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                mean = z @ tensor(w[name]).T + tensor(b[name])
                noisy = dist.LowRankMultivariateNormal(mean, tensor(own[name]), tensor(s[name] ** 2))
                pyro.sample(name, noisy.mask(data.observed(name)), obs=data.filled(name))

    plain = standard(w, b, s)
    noise = {name: own[name] @ own[name].T + np.diag(s[name] ** 2) for name in DIMS}
    return Conjugate(model, make_data(), Normal(w, b, noise, plain.mean, plain.covariance), form="correlated noise")
