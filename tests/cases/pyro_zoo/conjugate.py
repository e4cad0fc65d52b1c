"""Conjugate models: spellings of the latent, of its prior and of the loadings. One LinearGaussian describes each."""

from __future__ import annotations

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.nn import functional

from calmrl_prob.data import MultimodalData
from tests.cases.pyro_zoo.cases import DIMS, Array, Conjugate, Normal, conjugate, make_data, numbers, tensor


def flat(width: int) -> Array:
    """No intercept."""
    return np.zeros(width)


def random_parts(seed: int, latent_dim: int) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Loadings, intercepts and standard deviations (one a feature) for all modalities."""
    normal = numbers(seed)
    return (
        {name: normal(width, latent_dim) for name, width in DIMS.items()},
        {name: normal(width) for name, width in DIMS.items()},
        {name: 0.5 + np.abs(normal(width)) for name, width in DIMS.items()},
    )


def standard(loadings: dict[str, Array], intercepts: dict[str, Array], scale: dict[str, Array]) -> Normal:
    """With a standard normal prior."""
    latent_dim = next(iter(loadings.values())).shape[1]
    noise = {name: s**2 for name, s in scale.items()}
    return Normal(loadings, intercepts, noise, np.zeros(latent_dim), np.eye(latent_dim))


def observe(name: str, location: Tensor, scale: Tensor, data: MultimodalData) -> None:
    """One modality, in the most common spelling."""
    pyro.sample(name, dist.Normal(location, scale).to_event(1).mask(data.observed(name)), obs=data.filled(name))


@conjugate
def closure() -> Conjugate:
    """A function over tensors of its surroundings; modalities in an order of its own."""
    w, b, s = random_parts(1, 3)

    def model(data: MultimodalData) -> Tensor:
        with pyro.plate("instances", data.num_instances):
            z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), torch.ones(3).double()).to_event(1))
            for name in ("audio", "text", "image"):
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)
        return z

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def linear_layers() -> Conjugate:
    """nn.Linear decoders in a ModuleDict, log variances as nn.Parameter."""

    class Decoders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decode = nn.ModuleDict({name: nn.Linear(2, width).double() for name, width in DIMS.items()})
            self.log_variance = nn.ParameterDict({name: torch.full((), 0.3).double() for name in DIMS})

        def forward(self, data: MultimodalData) -> None:
            with pyro.plate("instances", len(data)):
                z = pyro.sample("code", dist.Normal(0.0, 1.0).expand([2]).to_event(1)).double()
                for name in data.names:
                    observe(name, self.decode[name](z), (0.5 * self.log_variance[name]).exp(), data)

    model = Decoders()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.decode.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double())
    w = {name: model.decode[name].weight.detach().numpy() for name in DIMS}
    b = {name: model.decode[name].bias.detach().numpy() for name in DIMS}
    scale = {name: np.full(width, np.exp(0.15)) for name, width in DIMS.items()}
    return Conjugate(model, make_data(), standard(w, b, scale), tolerance=1e-5)  # 0.3 is a float32 number


@conjugate
def pyro_module() -> Conjugate:
    """A PyroModule with constrained PyroParams; torch's functional.linear."""
    w, b, s = random_parts(3, 2)

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            for name in DIMS:
                setattr(self, f"w_{name}", nn.Parameter(tensor(w[name])))
                setattr(self, f"b_{name}", nn.Parameter(tensor(b[name])))
                setattr(self, f"s_{name}", PyroParam(tensor(s[name]), constraint=constraints.positive))

        def forward(self, data: MultimodalData) -> Tensor:
            with pyro.plate("instances", len(data), dim=-1):
                z = pyro.sample("z", dist.Independent(dist.Normal(torch.zeros(2).double(), 1.0), 1))
                for name in data.names:
                    mean = functional.linear(z, getattr(self, f"w_{name}"), getattr(self, f"b_{name}"))
                    observe(name, mean, getattr(self, f"s_{name}"), data)
            return z

    return Conjugate(Model(), make_data(), standard(w, b, s))


@conjugate
def param_statements() -> Conjugate:
    """pyro.param everywhere, as in most tutorials."""
    w, b, s = random_parts(4, 3)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(data), 3).double(), 1.0).to_event(1))
            for name in data.names:
                loadings = pyro.param(f"W_{name}", lambda name=name: tensor(w[name]))
                intercept = pyro.param(f"mu_{name}", tensor(b[name]))
                scale = pyro.param(f"sigma_{name}", tensor(s[name]), constraint=constraints.positive)
                observe(name, intercept + z @ loadings.T, scale, data)

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def registered_module() -> Conjugate:
    """pyro.module inside the model, as in Pyro's own VAE tutorial."""
    decoder = nn.Linear(2, sum(DIMS.values())).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double())

    def model(data: MultimodalData) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            parts = decoder(z).split(tuple(DIMS.values()), dim=-1)
            for name, mean in zip(DIMS, parts, strict=True):
                observe(name, mean, torch.tensor(0.7).double(), data)

    ends = np.cumsum([0, *DIMS.values()])
    weight, bias = decoder.weight.detach().numpy(), decoder.bias.detach().numpy()
    return Conjugate(
        model,
        make_data(),
        standard(
            {name: weight[a:b] for name, a, b in zip(DIMS, ends, ends[1:], strict=False)},
            {name: bias[a:b] for name, a, b in zip(DIMS, ends, ends[1:], strict=False)},
            {name: np.full(width, 0.7) for name, width in DIMS.items()},
        ),
    )


@conjugate
def full_covariance_prior() -> Conjugate:
    """A prior with a mean and a full covariance, modalities by einsum."""
    w, b, s = random_parts(6, 3)
    normal = numbers(60)
    root, mean = normal(3, 3), normal(3)
    covariance = root @ root.T + 0.4 * np.eye(3)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.MultivariateNormal(tensor(mean), covariance_matrix=tensor(covariance)))
            for name in data.names:
                location = torch.einsum("...k,dk->...d", z, tensor(w[name])) + tensor(b[name])
                observe(name, location, tensor(s[name]), data)

    truth = standard(w, b, s)
    return Conjugate(model, make_data(), Normal(w, b, truth.noise, mean, covariance))


@conjugate
def precision_prior() -> Conjugate:
    """A prior by its precision, expanded by hand."""
    w, b, s = random_parts(7, 2)
    precision = np.array([[2.0, -0.8], [-0.8, 1.0]])

    def model(data: MultimodalData) -> None:
        prior = dist.MultivariateNormal(torch.ones(2).double(), precision_matrix=tensor(precision))
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", prior.expand([len(data)]))
            for name in data.names:
                observe(name, (tensor(w[name]) @ z.unsqueeze(-1)).squeeze(-1) + tensor(b[name]), tensor(s[name]), data)

    return Conjugate(
        model, make_data(), Normal(w, b, standard(w, b, s).noise, np.ones(2), np.array([[1.0, 0.8], [0.8, 2.0]]) / 1.36)
    )


@conjugate
def triangular_prior() -> Conjugate:
    """A prior by its Cholesky factor; the plate by hand, as an iterable-free context with a name for it."""
    w, b, s = random_parts(8, 3)
    factor = np.array([[1.5, 0.0, 0.0], [0.7, 0.4, 0.0], [-0.2, 0.9, 1.1]])

    def model(data: MultimodalData) -> None:
        rows = pyro.plate("instances", size=len(data), dim=-1)
        with rows:
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(3).double(), scale_tril=tensor(factor)))
        with rows:
            for name in data.names:
                observe(name, z.matmul(tensor(w[name]).t()).add(tensor(b[name])), tensor(s[name]), data)

    return Conjugate(model, make_data(), Normal(w, b, standard(w, b, s).noise, np.zeros(3), factor @ factor.T))


@conjugate
def low_rank_prior() -> Conjugate:
    """A prior of low rank plus diagonal."""
    w, b, s = random_parts(9, 4)
    normal = numbers(90)
    factor, mean, diagonal = normal(4, 1), normal(4), np.array([0.3, 0.6, 1.0, 0.2])

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            prior = dist.LowRankMultivariateNormal(tensor(mean), cov_factor=tensor(factor), cov_diag=tensor(diagonal))
            z = pyro.sample("z", prior)
            for name in data.names:
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    covariance = factor @ factor.T + np.diag(diagonal)
    return Conjugate(model, make_data(), Normal(w, b, standard(w, b, s).noise, mean, covariance))


@conjugate
def shared_and_private() -> Conjugate:
    """Inter-battery: one shared latent and one private to each modality, declared between the observations."""
    w, b, s = random_parts(10, 2)
    own = {name: numbers(100 + i)(width, 1) for i, (name, width) in enumerate(DIMS.items())}

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            shared = pyro.sample("shared", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            for name in data.names:
                private = pyro.sample(f"private/{name}", dist.Normal(torch.zeros(1).double(), 2.0).to_event(1))
                mean = shared @ tensor(w[name]).T + private @ tensor(own[name]).T + tensor(b[name])
                observe(name, mean, tensor(s[name]), data)

    loadings = {name: np.zeros((width, 5)) for name, width in DIMS.items()}
    for i, name in enumerate(DIMS):
        loadings[name][:, :2] = w[name]
        loadings[name][:, 2 + i] = own[name][:, 0]
    covariance = np.diag([1.0, 1.0, 4.0, 4.0, 4.0])
    return Conjugate(model, make_data(), Normal(loadings, b, standard(w, b, s).noise, np.zeros(5), covariance))


@conjugate
def hierarchical() -> Conjugate:
    """A latent given a latent: z2 | z1 ~ N(A z1 + c, diag), and only z2 is seen by some modalities."""
    w, b, s = random_parts(11, 2)
    normal = numbers(110)
    a, c, d = normal(2, 3), normal(2), np.array([0.5, 0.8])
    top = normal(2, 3)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z1 = pyro.sample("z1", dist.Normal(torch.ones(3).double(), 0.5).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(z1 @ tensor(a).T + tensor(c), tensor(d)).to_event(1))
            for name in ("image", "text"):
                observe(name, z2 @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)
            observe("audio", z1 @ tensor(top).T + tensor(b["audio"]), tensor(s["audio"]), data)

    mean = np.concatenate([np.ones(3), a @ np.ones(3) + c])
    first = 0.25 * np.eye(3)
    covariance = np.block([[first, first @ a.T], [a @ first, a @ first @ a.T + np.diag(d**2)]])
    loadings = {name: np.hstack([np.zeros((DIMS[name], 3)), w[name]]) for name in ("image", "text")}
    loadings["audio"] = np.hstack([top, np.zeros((2, 2))])
    return Conjugate(model, make_data(), Normal(loadings, b, standard(w, b, s).noise, mean, covariance))


@conjugate
def scalar_latents() -> Conjugate:
    """Two latents without an event dimension, combined by broadcasting."""
    w, b, s = random_parts(12, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            size = pyro.sample("size", dist.Normal(torch.tensor(1.0).double(), 2.0))
            shape = pyro.sample("shape", dist.Normal(torch.tensor(0.0).double(), 1.0))
            for name in data.names:
                mean = size[..., None] * tensor(w[name][:, 0]) + shape.unsqueeze(-1) * tensor(w[name][:, 1])
                observe(name, mean + tensor(b[name]), tensor(s[name]), data)

    noise = standard(w, b, s).noise
    return Conjugate(model, make_data(), Normal(w, b, noise, np.array([1.0, 0.0]), np.diag([4.0, 1.0])))


@conjugate
def matrix_latent() -> Conjugate:
    """A latent matrix (2, 2), flattened by the model in an order of its own."""
    w, b, s = random_parts(13, 4)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, 2).double(), 1.0).to_event(2))
            columns = z.mT.flatten(-2)
            for name in data.names:
                observe(name, columns @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    return Conjugate(model, make_data(), standard({n: v[:, [0, 2, 1, 3]] for n, v in w.items()}, b, s))


@conjugate
def reparametrised() -> Conjugate:
    """Standard normal innovations, moved and scaled inside the model, with deterministic sites along the way."""
    w, b, s = random_parts(14, 2)
    factor, centre = np.array([[1.2, 0.0], [0.5, 0.3]]), np.array([2.0, -1.0])

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            innovation = pyro.sample("innovation", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            z = pyro.deterministic("z", innovation @ tensor(factor).T + tensor(centre), event_dim=1)
            for name in data.names:
                mean = pyro.deterministic(f"mean_{name}", z @ tensor(w[name]).T + tensor(b[name]), event_dim=1)
                observe(name, mean, tensor(s[name]), data)

    return Conjugate(
        model,
        make_data(),
        standard({n: v @ factor for n, v in w.items()}, {n: b[n] + w[n] @ centre for n in w}, s),
    )


@conjugate
def tied_loadings() -> Conjugate:
    """Modalities that share a basis, scaled by each; one sees the latent through another's loadings."""
    normal = numbers(15)
    basis = normal(4, 3)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
            base = z @ tensor(basis).T
            observe("image", base, torch.tensor(0.5).double(), data)
            observe("text", 2.0 * base[..., :3] - 1.0, torch.tensor(1.5).double(), data)
            observe("audio", base[..., 1:3].flip(-1) / 3.0, torch.tensor(1.0).double(), data)

    return Conjugate(
        model,
        make_data(),
        standard(
            {"image": basis, "text": 2 * basis[:3], "audio": basis[[2, 1]] / 3},
            {"image": flat(4), "text": -np.ones(3), "audio": flat(2)},
            {"image": np.full(4, 0.5), "text": np.full(3, 1.5), "audio": np.ones(2)},
        ),
    )


@conjugate
def structured_loadings() -> Conjugate:
    """Loadings by the user's own algebra: non-negative, orthogonal and of rank one."""
    normal = numbers(16)
    raw, square, left, right = normal(4, 2), normal(3, 2), normal(2), normal(2)

    def model(data: MultimodalData) -> None:
        loadings = {
            "image": functional.softplus(tensor(raw)),
            "text": torch.linalg.qr(tensor(square)).Q * 3.0,
            "audio": torch.outer(tensor(left), tensor(right)),
        }
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            for name, w in loadings.items():
                observe(name, z @ w.T, torch.tensor(0.8).double(), data)

    first = square[:, 0] / np.linalg.norm(square[:, 0])  # Gram-Schmidt; Householder's signs make R's diagonal negative
    rest = square[:, 1] - first * (first @ square[:, 1])
    signs = np.sign(np.diag(np.linalg.qr(square).R))
    orthogonal = np.stack([first * signs[0], rest / np.linalg.norm(rest) * signs[1]], axis=1)
    w = {"image": np.log1p(np.exp(raw)), "text": 3 * orthogonal, "audio": left[:, None] * right}
    return Conjugate(
        model,
        make_data(),
        standard(w, {n: flat(d) for n, d in DIMS.items()}, {n: np.full(d, 0.8) for n, d in DIMS.items()}),
    )


@conjugate
def deep_but_linear() -> Conjugate:
    """nn.Sequential of linear layers only, in evaluation mode with dropout that then does nothing."""
    layers = {
        name: nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Identity(), nn.Linear(5, width)).double().eval()
        for name, width in DIMS.items()
    }
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for layer in layers.values():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator).double())

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
            for name in data.names:
                observe(name, layers[name](z), torch.tensor(1.0).double(), data)

    w, b = {}, {}
    for name, layer in layers.items():
        first, last = layer[0], layer[3]
        w[name] = (last.weight @ first.weight).detach().numpy()
        b[name] = (last.weight @ first.bias + last.bias).detach().numpy()
    return Conjugate(model, make_data(), standard(w, b, {n: np.ones(d) for n, d in DIMS.items()}))


@conjugate
def affine_in_disguise() -> Conjugate:
    """relu(a) - relu(-a) = a everywhere, and |a| cancels; a check by the names of functions would refuse it."""
    w, b, s = random_parts(18, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            for name in data.names:
                a = z @ tensor(w[name]).T
                observe(name, torch.relu(a) - torch.relu(-a) + tensor(b[name]), tensor(s[name]), data)

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def moved_normal_prior() -> Conjugate:
    """A normal prior as an affinely transformed standard normal."""
    w, b, s = random_parts(19, 2)

    def model(data: MultimodalData) -> None:
        base = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
        move = dist.transforms.AffineTransform(torch.tensor([1.0, -1.0]).double(), torch.tensor([2.0, 0.5]).double(), 1)
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.TransformedDistribution(base, [move]))
            for name in data.names:
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    noise = standard(w, b, s).noise
    return Conjugate(model, make_data(), Normal(w, b, noise, np.array([1.0, -1.0]), np.diag([4.0, 0.25])))


@conjugate
def unused_latent() -> Conjugate:
    """A modality that sees nothing of the latent, and a latent that nothing sees."""
    w, b, s = random_parts(20, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("idle", dist.Normal(torch.tensor(3.0).double(), 0.1))
            for name in ("image", "text"):
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)
            observe("audio", tensor(b["audio"]).expand(len(data), 2), tensor(s["audio"]), data)

    loadings = {name: np.hstack([w[name], np.zeros((width, 1))]) for name, width in DIMS.items()}
    loadings["audio"][:] = 0
    noise = standard(w, b, s).noise
    return Conjugate(
        model, make_data(), Normal(loadings, b, noise, np.array([0, 0, 3.0]), np.diag([1, 1, 0.01])), tolerance=1e-6
    )


def loadings_with_priors(data: MultimodalData) -> None:
    """Loadings, intercepts and noise with priors of their own, outside the plate."""
    loadings, intercepts, scales = {}, {}, {}
    for name, width in data.dims.items():
        zeros = torch.zeros(width, 2).double()
        loadings[name] = pyro.sample(f"W_{name}", dist.Normal(zeros, 1.0).to_event(2))
        intercepts[name] = pyro.sample(f"mu_{name}", dist.Normal(zeros[:, 0], 10.0).to_event(1))
        scales[name] = pyro.sample(f"sigma_{name}", dist.HalfNormal(torch.tensor(1.0).double()))
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        for name in data.names:
            observe(name, z @ loadings[name].mT + intercepts[name], scales[name], data)


@conjugate
def conditioned_globals() -> Conjugate:
    """Global latents with priors, held at values by pyro.condition."""
    w, b, _ = random_parts(21, 2)
    values = {f"W_{n}": tensor(w[n]) for n in DIMS} | {f"mu_{n}": tensor(b[n]) for n in DIMS}
    values |= {f"sigma_{name}": torch.tensor(0.9).double() for name in DIMS}
    model = pyro.condition(loadings_with_priors, data=values)
    return Conjugate(model, make_data(), standard(w, b, {n: np.full(d, 0.9) for n, d in DIMS.items()}))


@conjugate
def callable_with_settings() -> Conjugate:
    """functools.partial of a method of a plain class, and a model in float32 over float64 data."""
    w, b, s = random_parts(22, 2)

    class Study:
        def __init__(self) -> None:
            self.w = {name: tensor(w[name]).float() for name in DIMS}

        def run(self, data: MultimodalData, *, offset: float, jitter: float = 0.0) -> None:
            with pyro.plate("instances", len(data)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                for name in data.names:
                    mean = torch.tensordot(z, self.w[name], dims=([-1], [-1])) + tensor(b[name]).float() + offset
                    observe(name, mean, tensor(s[name]).float() + jitter, data)

    model = functools.partial(Study().run, offset=0.5)
    return Conjugate(model, make_data(), standard(w, {n: v + 0.5 for n, v in b.items()}, s), tolerance=2e-4)
