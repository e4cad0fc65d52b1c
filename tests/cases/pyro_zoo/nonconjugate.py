"""Models that are not linear-Gaussian, most of them only just: each says which site breaks which condition."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import transforms
from torch import Tensor, nn
from torch.nn import functional

from calmrl_prob.data import MultimodalData
from tests.cases.pyro_zoo.cases import NotConjugate, make_data, not_conjugate, tensor
from tests.cases.pyro_zoo.conjugate import observe, random_parts
from tests.cases.pyro_zoo.observation import latent
from tests.cases.pyro_zoo.varying import covariate

W, B, S = random_parts(71, 2)
Locations = Callable[[Tensor, str], Tensor]


def affine(z: Tensor, name: str) -> Tensor:
    """The plain location."""
    return z @ tensor(W[name]).T + tensor(B[name])


def with_prior(make: Callable[[], dist.TorchDistribution]) -> Callable[[MultimodalData], None]:
    """Affine likelihoods under some prior of the two latents."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", make())
            for name in data.names:
                observe(name, affine(z, name), tensor(S[name]), data)

    return model


def with_location(location: Locations) -> Callable[[MultimodalData], None]:
    """A standard normal prior and some location."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                observe(name, location(z, name), tensor(S[name]), data)

    return model


def zeros() -> Tensor:
    """Two of them."""
    return torch.zeros(2).double()


# ---- priors ------------------------------------------------------------------------------------------------------


@not_conjugate
def laplace_prior() -> NotConjugate:
    model = with_prior(lambda: dist.Laplace(zeros(), 1.0).to_event(1))
    return NotConjugate(model, make_data(), "z", "non-gaussian prior")


@not_conjugate
def student_t_prior() -> NotConjugate:
    model = with_prior(lambda: dist.StudentT(5.0, zeros(), 1.0).to_event(1))
    return NotConjugate(model, make_data(), "z", "non-gaussian prior")


@not_conjugate
def lognormal_prior() -> NotConjugate:
    model = with_prior(lambda: dist.LogNormal(zeros(), 1.0).to_event(1))
    return NotConjugate(model, make_data(), "z", "non-gaussian prior")


@not_conjugate
def half_normal_latent() -> NotConjugate:
    """One of two latent sites only."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            plain = pyro.sample("plain", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            positive = pyro.sample("positive", dist.HalfNormal(torch.ones(1).double()).to_event(1))
            for name in data.names:
                observe(name, affine(torch.cat([plain, positive], dim=-1), name), tensor(S[name]), data)

    return NotConjugate(model, make_data(), "positive", "non-gaussian prior")


@not_conjugate
def flow_prior() -> NotConjugate:
    """A planar flow of a standard normal."""
    flow = transforms.Planar(2).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double())
    for parameter in flow.parameters():
        parameter.requires_grad_(False)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            base = dist.Normal(zeros(), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
            for name in data.names:
                observe(name, affine(z, name), tensor(S[name]), data)

    return NotConjugate(model, make_data(), "z", "non-gaussian prior")


@not_conjugate
def spline_prior() -> NotConjugate:
    """A spline flow, which is the identity outside a box."""
    flow = transforms.Spline(2, count_bins=4, bound=3.0).double()
    for parameter in flow.parameters():
        parameter.requires_grad_(False)
    model = with_prior(lambda: dist.TransformedDistribution(dist.Normal(zeros(), 1.0).to_event(1), [flow]))
    return NotConjugate(model, make_data(), "z", "non-gaussian prior")


@not_conjugate
def scale_by_hand() -> NotConjugate:
    """A Student-t written out: a latent scale for each instance."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            tau = pyro.sample("tau", dist.Gamma(torch.tensor(2.0).double(), 2.0))
            z = pyro.sample("z", dist.Normal(zeros(), 1.0).to_event(1))
            for name in data.names:
                observe(name, affine(z, name), tensor(S[name]) / tau.sqrt()[:, None], data)

    return NotConjugate(model, make_data(), "tau", "non-gaussian prior")


@not_conjugate
def laplace_mixture_prior() -> NotConjugate:
    """A mixture, but not of normals."""

    def prior() -> dist.TorchDistribution:
        parts = dist.Laplace(torch.tensor([[-1.0, 0.0], [2.0, 1.0]]).double(), 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), parts)

    return NotConjugate(with_prior(prior), make_data(), "z", "non-gaussian prior")


@not_conjugate
def nonlinear_hierarchy() -> NotConjugate:
    """z2 | z1 is normal, but its mean is not affine in z1."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z1 = pyro.sample("z1", dist.Normal(zeros(), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(z1.sin(), 0.5).to_event(1))
            for name in data.names:
                observe(name, affine(z2, name), tensor(S[name]), data)

    return NotConjugate(model, make_data(), "z2", "location not affine")


@not_conjugate
def scale_in_the_hierarchy() -> NotConjugate:
    """z2 | z1 has a scale that depends on z1 (a funnel)."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z1 = pyro.sample("z1", dist.Normal(zeros(), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(z1, (0.5 * z1).exp()).to_event(1))
            for name in data.names:
                observe(name, affine(z2, name), tensor(S[name]), data)

    return NotConjugate(model, make_data(), "z2", "scale depends on the latent")


# ---- locations ---------------------------------------------------------------------------------------------------


@not_conjugate
def tanh_decoder() -> NotConjugate:
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double())

    model = with_location(lambda z, name: decoder(z) if name == "text" else affine(z, name))
    return NotConjugate(model, make_data(), "text", "location not affine")


@not_conjugate
def rare_kink() -> NotConjugate:
    """A relu whose kink lies where the prior puts one draw in a thousand."""
    weight = torch.tensor([0.6, 0.8]).double()  # of unit norm

    def location(z: Tensor, name: str) -> Tensor:
        mean = affine(z, name)
        return mean if name != "audio" else mean + functional.relu(z @ weight - 3.0)[..., None]

    return NotConjugate(with_location(location), make_data(), "audio", "location not affine")


@not_conjugate
def relu_network() -> NotConjugate:
    """Piecewise linear, with biases that leave the first latent's axis in one piece."""

    def location(z: Tensor, name: str) -> Tensor:
        mean = affine(z, name)
        return mean if name != "image" else mean + functional.relu(z[..., 1:] - 1.5) * tensor(B["image"])

    return NotConjugate(with_location(location), make_data(), "image", "location not affine")


@not_conjugate
def clipped() -> NotConjugate:
    """Locations clipped to a range that nearly all of them keep."""
    model = with_location(lambda z, name: affine(z, name).clamp(-12.0, 12.0))
    return NotConjugate(model, make_data(), "image", "location not affine")


@not_conjugate
def tiny_nonlinearity() -> NotConjugate:
    model = with_location(lambda z, name: affine(z + (1e-3 * z.sin() if name == "image" else 0.0), name))
    return NotConjugate(model, make_data(), "image", "location not affine")


@not_conjugate
def periodic() -> NotConjugate:
    """A sine that vanishes at every whole number: at zero, at the unit vectors and their sums all looks affine."""
    model = with_location(lambda z, name: affine(z + 0.1 * (torch.pi * z).sin(), name))
    return NotConjugate(model, make_data(), "image", "location not affine")


@not_conjugate
def quadratic() -> NotConjugate:
    """A product of two latents: affine along each axis."""

    def location(z: Tensor, name: str) -> Tensor:
        mean = affine(z, name)
        return mean if name != "text" else mean + 0.2 * (z[..., :1] * z[..., 1:])

    return NotConjugate(with_location(location), make_data(), "text", "location not affine")


@not_conjugate
def product_of_sites() -> NotConjugate:
    """A latent gain times a latent signal."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            gain = pyro.sample("gain", dist.Normal(torch.tensor(1.0).double(), 0.1))
            z = latent(2)
            for name in data.names:
                observe(name, gain[..., None] * affine(z, name), tensor(S[name]), data)

    return NotConjugate(model, make_data(), "image", "location not affine")


@not_conjugate
def unit_norm() -> NotConjugate:
    """Homogeneous of degree one: f(2 z) = 2 f(z) for every z, and still not affine."""

    def location(z: Tensor, name: str) -> Tensor:
        mean = affine(z, name)
        return mean if name != "text" else mean + 0.3 * z.norm(dim=-1, keepdim=True)

    return NotConjugate(with_location(location), make_data(), "text", "location not affine")


@not_conjugate
def nonlinear_for_one_row() -> NotConjugate:
    """Affine for all rows but one of sixty: a few probed rows do not show it."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            rare = covariate(data, "rare")[:, None]
            for name in data.names:
                observe(name, affine(torch.where(rare, z.tanh(), z), name), tensor(S[name]), data)

    return NotConjugate(model, make_data(60), "image", "location not affine")


@not_conjugate
def nonlinear_for_a_tenth_of_the_sites() -> NotConjugate:
    """Bends only where a covariate is large."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            old = functional.relu(covariate(data, "age") - 1.3)[:, None]
            for name in data.names:
                observe(name, affine(z + old * z**2, name), tensor(S[name]), data)

    return NotConjugate(model, make_data(60), "image", "location not affine")


# ---- scales ------------------------------------------------------------------------------------------------------


@not_conjugate
def scale_from_the_latent() -> NotConjugate:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                scale = z[..., :1].exp().expand(len(data), 3) if name == "text" else tensor(S[name])
                observe(name, affine(z, name), scale, data)

    return NotConjugate(model, make_data(), "text", "scale depends on the latent")


@not_conjugate
def scale_that_hardly_moves() -> NotConjugate:
    """One feature of one modality, by a thousandth."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                scale = tensor(S[name]).expand(len(data), -1)
                if name == "image":
                    scale = scale + 1e-3 * torch.eye(4).double()[2] * z[..., 1:] ** 2
                observe(name, affine(z, name), scale, data)

    return NotConjugate(model, make_data(), "image", "scale depends on the latent")


@not_conjugate
def mask_from_the_latent() -> NotConjugate:
    """Which rows count depends on the latent: neither location nor scale shows it."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                seen = data.observed(name) & (z[..., 0] > -1.0) if name == "text" else data.observed(name)
                features = dist.Normal(affine(z, name), tensor(S[name])).to_event(1)
                pyro.sample(name, features.mask(seen), obs=data.filled(name))

    return NotConjugate(model, make_data(), "text", None)


# ---- instances and modalities that lean on each other ------------------------------------------------------------


@not_conjugate
def batch_normalised() -> NotConjugate:
    """Locations standardised over the instances of the call."""

    def location(z: Tensor, name: str) -> Tensor:
        mean = affine(z, name)
        return mean if name != "image" else (mean - mean.mean(0)) / (mean.std(0) + 1e-3)

    return NotConjugate(with_location(location), make_data(), "image", "instances coupled")


@not_conjugate
def centred_over_instances() -> NotConjugate:
    """Linear in all latents together, but each location reads those of all instances."""
    model = with_location(lambda z, name: affine(z - z.mean(0, keepdim=True), name))
    return NotConjugate(model, make_data(), "image", "instances coupled")


@not_conjugate
def differenced() -> NotConjugate:
    """Each instance less the one before."""

    def location(z: Tensor, name: str) -> Tensor:
        steps = torch.cat([z[:1], z[1:] - z[:-1]])
        return affine(steps if name == "audio" else z, name)

    return NotConjugate(with_location(location), make_data(), "audio", "instances coupled")


@not_conjugate
def random_walk() -> NotConjugate:
    """Innovations for each instance, their sum as the location."""
    model = with_location(lambda z, name: affine(z.cumsum(0), name))
    return NotConjugate(model, make_data(), "image", "instances coupled")


@not_conjugate
def modality_from_modality() -> NotConjugate:
    """The location of text reads the image that was observed."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                mean = affine(z, name)
                if name == "text":
                    mean = mean + 0.5 * data.filled("image")[:, :3]
                observe(name, mean, tensor(S[name]), data)

    return NotConjugate(model, make_data(), "text", "modalities coupled")


@not_conjugate
def centred_by_its_own_mean() -> NotConjugate:
    """The intercept is the mean of the values that the model is called with."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                observe(name, affine(z, name) + data[name].nanmean(0), tensor(S[name]), data)

    return NotConjugate(model, make_data(), "image", "modalities coupled")


@not_conjugate
def modality_from_sampled_modality() -> NotConjugate:
    """The same through the value that pyro.sample returns."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            seen = data.observed("image")
            picture = dist.Normal(affine(z, "image"), tensor(S["image"])).to_event(1).mask(seen)
            image = pyro.sample("image", picture, obs=data.filled("image"))
            observe("text", affine(z, "text") + 0.1 * image[:, 1:], tensor(S["text"]), data)
            observe("audio", affine(z, "audio"), tensor(S["audio"]), data)

    return NotConjugate(model, make_data(), "text", "modalities coupled")


# ---- discrete sites ----------------------------------------------------------------------------------------------


@not_conjugate
def counts() -> NotConjugate:
    """A discrete site with no end of values."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            count = pyro.sample("count", dist.Poisson(torch.tensor(2.0).double()))
            z = latent(2)
            for name in data.names:
                observe(name, affine(z, name) + count[..., None], tensor(S[name]), data)

    return NotConjugate(model, make_data(), "count", "discrete site")


@not_conjugate
def categorical_with_nonlinear_experts() -> NotConjugate:
    """Given the choice, one of two experts is still not linear."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            c = pyro.sample("c", dist.Categorical(torch.ones(2).double()))
            z = latent(2)
            for name in data.names:
                observe(name, affine(torch.where(c[..., None] == 1, z.tanh(), z), name), tensor(S[name]), data)

    return NotConjugate(model, make_data(), "image", "location not affine")


# ---- likelihoods -------------------------------------------------------------------------------------------------


def with_text(make: Callable[[Tensor], dist.TorchDistribution]) -> Callable[[MultimodalData], None]:
    """One modality of another family; the data are made to lie in its support."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in ("image", "audio"):
                observe(name, affine(z, name), tensor(S[name]), data)
            features = make(affine(z, "text")).to_event(1)
            pyro.sample("text", features.mask(data.observed("text")), obs=data.filled("text"))

    return model


def with_values(function: Callable[[Tensor], Tensor]) -> MultimodalData:
    """The usual data, one modality changed."""
    data = make_data()
    return MultimodalData(
        {name: function(data[name]) if name == "text" else data[name] for name in data.names},
        covariates=data.covariates,
    )


@not_conjugate
def bernoulli_likelihood() -> NotConjugate:
    data = with_values(lambda x: torch.where(x.isnan(), x, (x > 0).double()))
    return NotConjugate(with_text(lambda mean: dist.Bernoulli(logits=mean)), data, "text", "non-gaussian likelihood")


@not_conjugate
def poisson_likelihood() -> NotConjugate:
    data = with_values(lambda x: x.abs().round())
    return NotConjugate(with_text(lambda mean: dist.Poisson(mean.exp())), data, "text", "non-gaussian likelihood")


@not_conjugate
def student_t_likelihood() -> NotConjugate:
    model = with_text(lambda mean: dist.StudentT(4.0, mean, 0.5))
    return NotConjugate(model, make_data(), "text", "non-gaussian likelihood")


@not_conjugate
def laplace_likelihood() -> NotConjugate:
    model = with_text(lambda mean: dist.Laplace(mean, 0.5))
    return NotConjugate(model, make_data(), "text", "non-gaussian likelihood")


@not_conjugate
def lognormal_likelihood() -> NotConjugate:
    """A subclass of TransformedDistribution whose base is normal and affine in the latent."""
    data = with_values(torch.exp)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in ("image", "audio"):
                observe(name, affine(z, name), tensor(S[name]), data)
            features = dist.LogNormal(affine(z, "text"), 0.5).to_event(1).mask(data.observed("text"))
            pyro.sample("text", features, obs=data.filled("text", value=1.0))

    return NotConjugate(model, data, "text", "non-gaussian likelihood")


@not_conjugate
def outlier_likelihood() -> NotConjugate:
    """A mixture of a narrow and a wide normal for every feature."""

    def robust(mean: Tensor) -> dist.TorchDistribution:
        parts = dist.Normal(mean[..., None].expand(*mean.shape, 2), torch.tensor([0.5, 5.0]).double())
        return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.9, 0.1]).double().expand(*mean.shape, 2)), parts)

    return NotConjugate(with_text(robust), make_data(), "text", "non-gaussian likelihood")


# ---- factors and weights -----------------------------------------------------------------------------------------


@not_conjugate
def factor_of_the_latent() -> NotConjugate:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            pyro.factor("penalty", -z.abs().sum(-1))
            for name in data.names:
                observe(name, affine(z, name), tensor(S[name]), data)

    return NotConjugate(model, make_data(), "penalty", "extra factor")


@not_conjugate
def classifier_on_the_latent() -> NotConjugate:
    """Labels observed beside the modalities: a supervised factor."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                observe(name, affine(z, name), tensor(S[name]), data)
            label = torch.as_tensor(data.labels == "dog").double()
            pyro.sample("label", dist.Bernoulli(logits=z[..., 0]), obs=label)

    return NotConjugate(model, make_data(), "label", "extra factor")


@not_conjugate
def tempered_likelihood() -> NotConjugate:
    """poutine.scale on one modality: the trace's location and scale do not show it."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                with poutine.scale(scale=0.1 if name == "image" else 1.0):
                    observe(name, affine(z, name), tensor(S[name]), data)

    return NotConjugate(model, make_data(), "image", None)
