"""Random linear-Gaussian Pyro programs: latent sites, priors, algebra, noise and masks, each spelled at random.

An affine map of the latents is carried along twice: as torch code on the latents of the call, and as a matrix and an
offset in numpy, (A, c) for A z + c. Neither knows of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.nn import functional

from calmrl_prob.data import MultimodalData
from tests.cases.pyro_zoo.cases import Array, Conjugate, Mixture, Normal, make_data, tensor

Random = np.random.Generator
#: A tensor (..., d) from the values of the latents by site.
Code = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Map:
    """A z + c of the stacked latents z: as torch code, and as numbers."""

    code: Code
    matrix: Array
    offset: Array

    @property
    def width(self) -> int:
        return len(self.offset)


# ---- affine steps, each a pair of torch and numpy ----------------------------------------------------------------


def times_matrix(given: Map, width: int, random: Random) -> Map:
    """W a, in one of many spellings."""
    w = random.normal(size=(width, given.width)) / np.sqrt(given.width)
    t, layer = tensor(w), torch.nn.Linear(given.width, width, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(t)
    spellings: list[Callable[[Tensor], Tensor]] = [
        lambda a: a @ t.T,
        lambda a: functional.linear(a, t),
        lambda a: torch.einsum("...k,dk->...d", a, t),
        lambda a: torch.tensordot(a, t, dims=([-1], [1])),
        lambda a: (a.unsqueeze(-2) * t).sum(-1),
        lambda a: (t @ a.unsqueeze(-1)).squeeze(-1),
        lambda a: torch.stack([a @ row for row in t], dim=-1),
        layer,
    ]
    spelling = spellings[int(random.integers(len(spellings)))]
    return Map(lambda z: spelling(given.code(z)), w @ given.matrix, w @ given.offset)


def add_constant(given: Map, random: Random) -> Map:
    c = random.normal(size=given.width)
    return Map(lambda z: given.code(z) + tensor(c), given.matrix, given.offset + c)


def scale_features(given: Map, random: Random) -> Map:
    s = random.normal(size=given.width)
    return Map(lambda z: given.code(z).mul(tensor(s)), s[:, None] * given.matrix, s * given.offset)


def running_sum(given: Map, random: Random) -> Map:
    return Map(lambda z: given.code(z).cumsum(-1), given.matrix.cumsum(0), given.offset.cumsum())


def centre_features(given: Map, random: Random) -> Map:
    def code(z: dict[str, Tensor]) -> Tensor:
        a = given.code(z)
        return a - a.mean(-1, keepdim=True)

    return Map(code, given.matrix - given.matrix.mean(0), given.offset - given.offset.mean())


def reverse(given: Map, random: Random) -> Map:
    return Map(lambda z: given.code(z).flip(-1), given.matrix[::-1], given.offset[::-1])


def permute(given: Map, random: Random) -> Map:
    order = random.permutation(given.width)
    return Map(lambda z: given.code(z)[..., torch.as_tensor(order)], given.matrix[order], given.offset[order])


def both_halves(given: Map, random: Random) -> Map:
    """relu(a) - relu(-a) is a."""

    def code(z: dict[str, Tensor]) -> Tensor:
        a = given.code(z)
        return torch.relu(a) - torch.relu(-a)

    return Map(code, given.matrix, given.offset)


def widen(given: Map, random: Random) -> Map:
    """The vector beside a multiple of itself."""

    def code(z: dict[str, Tensor]) -> Tensor:
        a = given.code(z)
        return torch.cat([a, 0.5 * a - 1.0], dim=-1)

    return Map(code, np.vstack([given.matrix, given.matrix / 2]), np.append(given.offset, given.offset / 2 - 1))


def total(left: Map, right: Map) -> Map:
    return Map(lambda z: left.code(z) + right.code(z), left.matrix + right.matrix, left.offset + right.offset)


STEPS = (add_constant, scale_features, running_sum, centre_features, reverse, permute, both_halves, widen)


def random_map(sources: list[Map], width: int, random: Random) -> Map:
    """Some sources through some steps, summed, of a given width."""
    chosen = [source for source in sources if random.random() < 0.7] or [sources[int(random.integers(len(sources)))]]
    parts = []
    for source in chosen:
        part = source
        for _ in range(int(random.integers(0, 3))):
            part = STEPS[int(random.integers(len(STEPS)))](part, random)
        parts.append(times_matrix(part, width, random))
    summed = parts[0]
    for part in parts[1:]:
        summed = total(summed, part)
    return add_constant(summed, random) if random.random() < 0.7 else summed


# ---- latent sites ------------------------------------------------------------------------------------------------


def normal_distribution(centre: Tensor, covariance: Array, random: Random) -> dist.TorchDistribution:
    """N(centre, covariance) over the last dimension, in one of the spellings that can say it."""
    diagonal = np.count_nonzero(covariance - np.diag(np.diag(covariance))) == 0
    spellings = ["covariance", "precision", "tril", *(["normal", "lowrank", "moved"] if diagonal else [])]
    spelling = str(random.choice(spellings))
    if spelling == "precision":
        return dist.MultivariateNormal(centre, precision_matrix=tensor(np.linalg.inv(covariance)))
    if spelling == "tril":
        return dist.MultivariateNormal(centre, scale_tril=tensor(np.linalg.cholesky(covariance)))
    if spelling == "covariance":
        return dist.MultivariateNormal(centre, covariance_matrix=tensor(covariance))
    scale = tensor(np.sqrt(np.diag(covariance)))
    if spelling == "normal":
        independent = random.random() < 0.5
        base = dist.Normal(centre, scale)
        return dist.Independent(base, 1) if independent else base.to_event(1)
    if spelling == "lowrank":
        return dist.LowRankMultivariateNormal(centre, scale.new_zeros(len(scale), 1), scale**2)
    base = dist.Normal(torch.zeros_like(scale), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [dist.transforms.AffineTransform(centre, scale, 1)])


def random_covariance(width: int, random: Random) -> Array:
    """Full, or diagonal."""
    if random.random() < 0.5:
        return np.diag(0.2 + random.gamma(2.0, 0.5, size=width))
    root = random.normal(size=(width, width))
    covariance: Array = root @ root.T + 0.2 * np.eye(width)
    return covariance


@dataclass(frozen=True)
class Site:
    """A latent: its own dimensions, the map of earlier latents that is its mean, and its covariance given them."""

    name: str
    scalar: bool
    mean: Map
    covariance: Array
    seed: int

    def sample(self, z: dict[str, Tensor]) -> Tensor:
        """As a vector (..., d)."""
        random = np.random.default_rng(self.seed)
        centre = self.mean.code(z)
        if self.scalar:
            scale = float(np.sqrt(self.covariance[0, 0]))
            drawn: Tensor = pyro.sample(self.name, dist.Normal(centre[..., 0], scale))
            return drawn.unsqueeze(-1)
        vector: Tensor = pyro.sample(self.name, normal_distribution(centre, self.covariance, random))
        return vector


def random_sites(random: Random) -> tuple[list[Site], list[Map], Array, Array]:
    """Latents, some given earlier ones; each as a map of all; and the mean and covariance of all of them."""
    widths = [int(random.integers(1, 4)) for _ in range(int(random.integers(1, 4)))]
    latent_dim = sum(widths)
    starts = np.cumsum([0, *widths])
    mean, root = np.zeros(latent_dim), np.zeros((latent_dim, latent_dim))  # z = mean + root eps
    sites: list[Site] = []
    maps: list[Map] = []
    for i, width in enumerate(widths):
        own = slice(int(starts[i]), int(starts[i + 1]))
        if maps and random.random() < 0.4:
            centre = random_map(maps, width, random)
        else:
            c = random.normal(size=width)
            centre = Map(lambda _, c=c: tensor(c), np.zeros((width, latent_dim)), c)  # type: ignore[misc]
        scalar = width == 1 and random.random() < 0.6
        site = Site(f"z{i}", scalar, centre, random_covariance(width, random), int(random.integers(1 << 30)))
        mean[own] = centre.matrix @ mean + centre.offset
        root[own] = centre.matrix @ root
        root[own, own] += np.linalg.cholesky(site.covariance)
        select = np.zeros((width, latent_dim))
        select[:, own] = np.eye(width)
        maps.append(Map(lambda z, name=site.name: z[name], select, np.zeros(width)))  # type: ignore[misc]
        sites.append(site)
    return sites, maps, mean, root @ root.T


# ---- observed sites ----------------------------------------------------------------------------------------------


def observe(name: str, mean: Tensor, noise: Array, data: MultimodalData, spelling: str, random: Random) -> None:
    """One modality with noise variances (D_m,) or a noise covariance (D_m, D_m)."""
    values, present = data.filled(name), data.observed(name)
    if noise.ndim == 2:
        features = dist.MultivariateNormal(mean, covariance_matrix=tensor(noise))
    elif spelling == "below":
        below = dist.Normal(mean, tensor(np.sqrt(noise))).mask(present[:, None].expand(values.shape))
        pyro.sample(name, below.to_event(1), obs=values)
        return
    else:
        features = normal_distribution(mean, np.diag(noise), random)
    if spelling == "keyword" and not isinstance(features, dist.TransformedDistribution):
        pyro.sample(name, features, obs=values, obs_mask=present)
    elif spelling == "context":
        with poutine.mask(mask=present):
            pyro.sample(name, features, obs=values)
    else:
        pyro.sample(name, features.mask(present), obs=values)


SPELLINGS = ("above", "below", "keyword", "context", "plate")


def random_program(seed: int, bend: Callable[[Tensor], Tensor] | None = None) -> tuple[Conjugate, str]:
    """A program, and the name of the modality that is bent: whose location goes through ``bend``, if one is given."""
    random = np.random.default_rng(seed)
    sites, maps, mean, covariance = random_sites(random)
    dims = {f"m{i}": int(random.integers(1, 6)) for i in range(int(random.integers(1, 5)))}
    data = make_data(int(random.integers(6, 20)), dims, seed)
    bent = str(random.choice(list(dims)))
    locations = {name: random_map(maps, width, random) for name, width in dims.items()}
    shifts = {name: random.normal(size=width) * (random.random() < 0.15) for name, width in dims.items()}
    noise: dict[str, Array] = {
        name: random_covariance(width, random) if random.random() < 0.1 else 0.2 + random.gamma(2.0, 0.5, size=width)
        for name, width in dims.items()
    }
    spellings = {name: str(random.choice(SPELLINGS)) for name in dims}
    wide = "plate" in spellings.values()  # instances at -2, features at -1

    def model(data: MultimodalData) -> None:
        age = torch.as_tensor(data.covariates["age"])[:, None]
        instances = pyro.plate("instances", len(data), dim=-2 if wide else -1)
        z: dict[str, Tensor] = {}
        for site in sites:
            with instances:
                z[site.name] = site.sample(z)
        for name in data.names:
            again = np.random.default_rng(seed)
            location = locations[name].code(z)
            location = location if bend is None or name != bent else bend(location)
            if wide:
                location = location.squeeze(-2)
            location = location + age * tensor(shifts[name])
            if not wide:
                with instances:
                    observe(name, location, noise[name], data, spellings[name], again)
                continue
            variance = np.diag(noise[name]) if noise[name].ndim == 2 else noise[name]
            features = dist.Normal(location, tensor(np.sqrt(variance))).mask(data.observed(name)[:, None])
            with instances, pyro.plate(f"features of {name}", len(variance), dim=-1):
                pyro.sample(name, features, obs=data.filled(name))

    used = {name: np.diag(v) if wide and v.ndim == 2 else v for name, v in noise.items()}
    loadings = {name: location.matrix for name, location in locations.items()}

    def truth(row: int) -> Mixture:
        age = data.covariates["age"][row]
        intercepts = {name: location.offset + age * shifts[name] for name, location in locations.items()}
        return [(1.0, Normal(loadings, intercepts, used, mean, covariance))]

    varying = any(shift.any() for shift in shifts.values())
    correlated = any(v.ndim == 2 for v in used.values())
    form = "by instance" if varying else "correlated noise" if correlated else "one"
    return Conjugate(model, data, truth(0)[0][1] if form != "by instance" else truth, form), bent
