"""Models that cannot be taken: what each gets wrong, and the words that tell its author."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from calmrl_prob.data import MultimodalData
from tests.cases.pyro_zoo.cases import Broken, broken, make_data, tensor
from tests.cases.pyro_zoo.conjugate import observe, random_parts
from tests.cases.pyro_zoo.observation import latent

W, B, S = random_parts(91, 2)


def decode(z: Tensor, data: MultimodalData, names: tuple[str, ...]) -> None:
    """The plain likelihoods."""
    for name in names:
        observe(name, z @ tensor(W[name]).T + tensor(B[name]), tensor(S[name]), data)


def standard_normal(*shape: int) -> dist.TorchDistribution:
    """With no event dimension."""
    return dist.Normal(torch.zeros(*shape).double(), 1.0)


@broken
def no_plate() -> Broken:
    def model(data: MultimodalData) -> None:
        z = pyro.sample("z", standard_normal(len(data), 2).to_event(1))
        decode(z, data, data.names)

    return Broken(model, make_data(), ("instances", "plate"))


@broken
def plate_of_another_name() -> Broken:
    def model(data: MultimodalData) -> None:
        with pyro.plate("data", len(data)):
            decode(latent(2), data, data.names)

    return Broken(model, make_data(), ("instances", "plate", "data"))


@broken
def plate_of_another_size() -> Broken:
    """One row short."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data) - 1):
            z = latent(2)
            for name in data.names:
                mean = z @ tensor(W[name]).T
                features = dist.Normal(mean, 1.0).to_event(1).mask(data.observed(name)[1:])
                pyro.sample(name, features, obs=data.filled(name)[1:])

    return Broken(model, make_data(), ("instances",))


@broken
def subsampled_plate() -> Broken:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data), subsample_size=1) as rows:
            z = latent(2)
            for name in data.names:
                features = dist.Normal(z @ tensor(W[name]).T, 1.0).to_event(1).mask(data.observed(name)[rows])
                pyro.sample(name, features, obs=data.filled(name)[rows])

    return Broken(model, make_data(), ("instances", "subsampl"))


@broken
def forgotten_modality() -> Broken:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            decode(latent(2), data, ("image", "text"))

    return Broken(model, make_data(), ("audio",))


@broken
def misnamed_modality() -> Broken:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "text"))
            sound = dist.Normal(z @ tensor(W["audio"]).T, 1.0).to_event(1).mask(data.observed("audio"))
            pyro.sample("audios", sound, obs=data.filled("audio"))

    return Broken(model, make_data(), ("audio", "audios"))


@broken
def unobserved_modality() -> Broken:
    """obs= was forgotten, so the modality is sampled."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "text"))
            pyro.sample("audio", dist.Normal(z @ tensor(W["audio"]).T, 1.0).to_event(1))

    return Broken(model, make_data(), ("audio", "obs"))


@broken
def no_latent() -> Broken:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            decode(torch.zeros(len(data), 2).double(), data, data.names)

    return Broken(model, make_data(), ("latent",))


@broken
def latent_sampled_outside() -> Broken:
    """A latent for each instance, drawn before the plate opens."""

    def model(data: MultimodalData) -> None:
        z = pyro.sample("z", standard_normal(len(data), 2).to_event(2))
        with pyro.plate("instances", len(data)):
            decode(z, data, data.names)

    return Broken(model, make_data(), ("'z'", "instances"))


@broken
def latent_used_outside() -> Broken:
    """One modality in a plate of the rows that have it."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "text"))
        rows = data.observed("audio")
        with pyro.plate("instances with audio", int(rows.sum())):
            sound = dist.Normal(z[rows] @ tensor(W["audio"]).T, 1.0).to_event(1)
            pyro.sample("audio", sound, obs=data["audio"][rows])

    return Broken(model, make_data(), ("audio", "instances"))


@broken
def modality_outside() -> Broken:
    """The indentation of the last modality slipped."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "text"))
        decode(z, data, ("audio",))

    return Broken(model, make_data(), ("audio", "instances"))


@broken
def sites_change() -> Broken:
    """Another latent at every other call."""
    calls = itertools.count()

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            if next(calls) % 2:
                z = z + pyro.sample("extra", standard_normal(2).to_event(1))
            decode(z, data, data.names)

    return Broken(model, make_data(), ("extra",))


@broken
def sites_depend_on_the_latent() -> Broken:
    """Control flow by the value of a latent."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            if float(z.sum()) > 0:
                z = z + pyro.sample("extra", standard_normal(2).to_event(1))
            decode(z, data, data.names)

    return Broken(model, make_data(), ("extra",))


@broken
def random_location() -> Broken:
    """Dropout left in training mode: the location is another at every call."""
    dropout = nn.Dropout(0.5)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            decode(dropout(latent(2)), data, data.names)

    return Broken(model, make_data(), ("image",))


def with_scale(scale: Callable[[MultimodalData], Tensor]) -> Callable[[MultimodalData], None]:
    """One modality's scale is not what it should be."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "audio"))
            observe("text", z @ tensor(W["text"]).T, scale(data), data)

    return model


@broken
def nan_scale() -> Broken:
    return Broken(with_scale(lambda _: torch.tensor([1.0, torch.nan, 1.0]).double()), make_data(), ("text",))


@broken
def negative_scale() -> Broken:
    return Broken(with_scale(lambda _: torch.tensor([1.0, -1.0, 1.0]).double()), make_data(), ("text",))


@broken
def infinite_scale() -> Broken:
    return Broken(with_scale(lambda _: torch.tensor([1.0, torch.inf, 1.0]).double()), make_data(), ("text",))


@broken
def nan_location() -> Broken:
    """A NaN among the loadings, validation switched off."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "audio"))
            mean = z @ tensor(W["text"]).T * torch.tensor([1.0, torch.nan, 1.0]).double()
            features = dist.Normal(mean, 1.0, validate_args=False).to_event(1).mask(data.observed("text"))
            pyro.sample("text", features, obs=data.filled("text"))

    return Broken(model, make_data(), ("text", "NaN"))


@broken
def nan_location_of_one_row() -> Broken:
    """A covariate of one row, out of sixty, is NaN."""

    def model(data: MultimodalData) -> None:
        dose = torch.where(torch.as_tensor(data.covariates["rare"]), torch.nan, 1.0).double()[:, None]
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "audio"))
            features = dist.Normal(z @ tensor(W["text"]).T + dose, 1.0, validate_args=False).to_event(1)
            pyro.sample("text", features.mask(data.observed("text")), obs=data.filled("text"))

    return Broken(model, make_data(60), ("text", "NaN"))


@broken
def nan_prior() -> Broken:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            prior = dist.Normal(torch.tensor([0.0, torch.nan]).double(), 1.0, validate_args=False)
            decode(pyro.sample("z", prior.to_event(1)), data, data.names)

    return Broken(model, make_data(), ("'z'", "NaN"))


@broken
def forgotten_mask() -> Broken:
    """Absent rows count as zeros: the density is finite and wrong."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                features = dist.Normal(z @ tensor(W[name]).T + tensor(B[name]), tensor(S[name])).to_event(1)
                pyro.sample(name, features, obs=data.filled(name))

    return Broken(model, make_data(), ("image", "mask", "data.observed"))


@broken
def inverted_mask() -> Broken:
    """True for what is missing."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                features = dist.Normal(z @ tensor(W[name]).T + tensor(B[name]), tensor(S[name])).to_event(1)
                pyro.sample(name, features.mask(~data.observed(name)), obs=data.filled(name))

    return Broken(model, make_data(), ("image", "mask", "data.observed"))


@broken
def standardised_inside() -> Broken:
    """Observes standardised values, which are not the data's."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "audio"))
            features = dist.Normal(z @ tensor(W["text"]).T, 1.0).to_event(1).mask(data.observed("text"))
            pyro.sample("text", features, obs=(data.filled("text") - 1.5) / 2.0)

    return Broken(model, make_data(), ("text", "obs"))


@broken
def residual_observed() -> Broken:
    """The residual is observed around zero, so the latent hides in obs."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "audio"))
            features = dist.Normal(torch.zeros(3).double(), 1.0).to_event(1).mask(data.observed("text"))
            pyro.sample("text", features, obs=data.filled("text") - z @ tensor(W["text"]).T)

    return Broken(model, make_data(), ("text", "obs"))


@broken
def writes_to_the_store() -> Broken:
    def model(data: MultimodalData) -> None:
        loadings = pyro.get_param_store().setdefault("W", tensor(W["image"]))
        with pyro.plate("instances", len(data)):
            z = latent(2)
            observe("image", z @ loadings.T, torch.tensor(1.0).double(), data)
            decode(z, data, ("text", "audio"))

    return Broken(model, make_data(), ("parameter store", "'W'"))


@broken
def too_narrow() -> Broken:
    """A location of two features for a modality of three."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "audio"))
            observe("text", z @ tensor(W["text"][:2]).T, torch.tensor(1.0).double(), data)

    return Broken(model, make_data(), ("text",))


@broken
def forgotten_event() -> Broken:
    """No to_event: the features would be a batch dimension, which the plate refuses."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                pyro.sample(name, dist.Normal(z @ tensor(W[name]).T, 1.0), obs=data.filled(name))

    return Broken(model, make_data(), ("image", ("to_event", "shape", "dim")))


@broken
def raises_by_itself() -> Broken:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            latent(2)
            raise KeyError("config['learning_rate']")

    return Broken(model, make_data(), ("KeyError", "learning_rate"))


@broken
def takes_no_data() -> Broken:
    def model() -> None:
        with pyro.plate("instances", 14):
            latent(2)

    return Broken(model, make_data(), ("data",))


@broken
def same_site_twice() -> Broken:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, data.names)
            decode(z, data, ("text",))

    return Broken(model, make_data(), ("text",))


@broken
def rows_of_the_closure() -> Broken:
    """A closure over numbers of all the rows, which fits no other rows."""
    dose = tensor(np.linspace(-1.0, 1.0, 14))[:, None]

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(dose)):
            z = latent(2)
            for name in data.names:
                observe(name, z @ tensor(W[name]).T + dose, tensor(S[name]), data)

    return Broken(model, make_data(), ("data.covariates",))


@broken
def mask_by_row_over_features_that_are_missing() -> Broken:
    """Data that lack single features, a mask of whole rows: what is absent from a present row counts as zero."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            decode(latent(2), data, data.names)

    return Broken(model, make_data(missing="features"), (("image", "text", "audio"), "data.feature_mask"))


def standardised_age(data: MultimodalData) -> Broken:
    """A covariate standardised inside the model, by the rows that it is called with."""

    def model(data: MultimodalData) -> None:
        age = torch.as_tensor(data.covariates["age"])
        age = ((age - age.mean()) / age.std())[:, None]
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                observe(name, z @ tensor(W[name]).T + age, tensor(S[name]), data)

    return Broken(model, data, ("image", "other instances"))


@broken
def standardised_covariate() -> Broken:
    """The mean of a part is not the mean of the whole, and new data would have a mean of their own."""
    return standardised_age(make_data())


@broken
def standardised_covariate_of_many_rows() -> Broken:
    """More rows than any chunk has."""
    return standardised_age(make_data(5000))


@broken
def noise_that_depends_on_the_number_of_rows() -> Broken:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            decode(z, data, ("image", "audio"))
            observe("text", z @ tensor(W["text"]).T, torch.tensor(float(len(data))).double().rsqrt(), data)

    return Broken(model, make_data(), ("text", "other instances"))
