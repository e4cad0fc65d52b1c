"""Models made to be misread: what a probe of a few rows, at one scale, of one wrapper, does not show."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from calmrl_prob.data import MultimodalData
from tests.cases.pyro_zoo.cases import (
    DIMS,
    Array,
    Conjugate,
    Mixture,
    Normal,
    NotConjugate,
    conjugate,
    make_data,
    not_conjugate,
    numbers,
    tensor,
)
from tests.cases.pyro_zoo.conjugate import observe, random_parts, standard
from tests.cases.pyro_zoo.nonconjugate import with_location, with_prior
from tests.cases.pyro_zoo.observation import latent
from tests.cases.pyro_zoo.varying import covariate, three_clusters

W, B, S = random_parts(171, 2)


def affine(z: Tensor, name: str) -> Tensor:
    """The plain location."""
    return z @ tensor(W[name]).T + tensor(B[name])


def plain(data: MultimodalData, z: Tensor, names: tuple[str, ...] = tuple(DIMS)) -> None:
    """The plain likelihoods."""
    for name in names:
        observe(name, affine(z, name), tensor(S[name]), data)


def plain_truth() -> Normal:
    """Of the plain likelihoods under a standard normal prior."""
    return standard(W, B, S)


# ---- conjugate ---------------------------------------------------------------------------------------------------


@conjugate
def nan_masked() -> Conjugate:
    """Pyro's own normal for values that are NaN where absent."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                features = dist.NanMaskedNormal(affine(z, name), tensor(S[name])).to_event(1)
                pyro.sample(name, features, obs=data[name])

    return Conjugate(model, make_data(missing="features"), plain_truth())


@conjugate
def nan_masked_matrix() -> Conjugate:
    """The same for correlated noise: of a partly present row the absent features are integrated out."""
    roots = {name: numbers(1710)(width, width) for name, width in DIMS.items()}
    noise = {name: root @ root.T + np.eye(len(root)) for name, root in roots.items()}

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                covariance = tensor(noise[name])
                features = dist.NanMaskedMultivariateNormal(affine(z, name), covariance_matrix=covariance)
                pyro.sample(name, features, obs=data[name])

    truth = Normal(W, B, noise, np.zeros(2), np.eye(2))
    return Conjugate(model, make_data(missing="features"), truth, form="correlated noise")


@conjugate
def absent_left_as_nan() -> Conjugate:
    """data[name] itself under the mask: Pyro's validation would stop it, its density is right."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                features = dist.Normal(affine(z, name), tensor(S[name]), validate_args=False).to_event(1)
                pyro.sample(name, features.mask(data.observed(name)), obs=data[name])

    return Conjugate(model, make_data(), plain_truth())


@conjugate
def data_in_single_precision() -> Conjugate:
    """float32 data under a float64 model."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            plain(data, latent(2))

    return Conjugate(model, make_data().to(torch.float32), plain_truth(), tolerance=1e-5)


@conjugate
def many_latents() -> Conjugate:
    """More latents than features, and far from zero: intercepts of a million."""
    w, _, s = random_parts(172, 30)
    b = {name: np.full(width, 1e6) for name, width in DIMS.items()}

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(30)
            for name in data.names:
                observe(name, z @ tensor(w[name]).T + tensor(b[name]), tensor(s[name]), data)

    return Conjugate(model, make_data(), standard(w, b, s))


@conjugate
def orthogonal_cancellation() -> Conjugate:
    """Loadings that come out as zeros up to rounding, beside large ones."""
    w = {name: numbers(173 + i)(width, 2) for i, (name, width) in enumerate(DIMS.items())}
    q = np.linalg.qr(numbers(1730)(2, 2)).Q

    def model(data: MultimodalData) -> None:
        turn = tensor(q)
        with pyro.plate("instances", len(data)):
            z = latent(2)
            same = (z @ turn) @ turn.T  # z again, up to rounding
            for name in data.names:
                mean = 1e3 * (same - z) @ tensor(w[name]).T if name == "audio" else same @ tensor(w[name]).T
                observe(name, mean, tensor(S[name]), data)

    zero = {name: np.zeros(width) for name, width in DIMS.items()}
    return Conjugate(model, make_data(), standard({**w, "audio": np.zeros((2, 2))}, zero, S))


@conjugate
def decentred_by_a_handler() -> Conjugate:
    """poutine.reparam: the latent site is another than the one that was written."""
    scale = np.array([2.0, 0.5])

    def written(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            prior = dist.Normal(torch.ones(2).double(), tensor(scale)).to_event(1)
            plain(data, pyro.sample("z", prior))

    model = poutine.reparam(written, config={"z": LocScaleReparam(0.0)})
    return Conjugate(
        model,
        make_data(),
        standard({n: w * scale for n, w in W.items()}, {n: B[n] + W[n] @ np.ones(2) for n in W}, S),
    )


@conjugate
def weight_penalty() -> Conjugate:
    """A factor outside the plate that no latent moves: a prior of the parameters, nothing to z."""

    def model(data: MultimodalData) -> None:
        pyro.factor("penalty", -tensor(W["image"]).square().sum())
        with pyro.plate("instances", len(data)):
            plain(data, latent(2))

    return Conjugate(model, make_data(), plain_truth())


@conjugate
def indices_of_the_plate() -> Conjugate:
    """The plate hands out row numbers, and the model looks its covariates up by them."""
    data = make_data()

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)) as rows:
            z = latent(2)
            dose = covariate(data, "age")[rows][:, None]
            for name in data.names:
                observe(name, affine(z, name) + dose, tensor(S[name]), data)

    def truth(row: int) -> Mixture:
        dose = data.covariates["age"][row]
        return [(1.0, standard(W, {name: b + dose for name, b in B.items()}, S))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def few_slopes_among_many() -> Conjugate:
    """Random slopes for the oldest few of 1,100 rows, whose ages all differ."""
    data = make_data(1100)

    def model(data: MultimodalData) -> None:
        old = torch.relu(covariate(data, "age") - 2.2)[:, None]
        with pyro.plate("instances", len(data)):
            z = latent(2)
            for name in data.names:
                observe(name, affine(z * (1 + 5 * old), name), tensor(S[name]), data)

    def truth(row: int) -> Mixture:
        stretch = 1 + 5 * max(data.covariates["age"][row] - 2.2, 0)
        return [(1.0, standard({name: w * stretch for name, w in W.items()}, B, S))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def diagonal_in_one_group_only() -> Conjugate:
    """Prior covariances by group, of which one is diagonal: its factor reads as another form."""
    covariances = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.9], [0.9, 1.0]], [[1.0, -0.9], [-0.9, 1.0]]])
    data = make_data()

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            own = tensor(covariances)[covariate(data, "site")]
            plain(data, pyro.sample("z", dist.MultivariateNormal(torch.zeros(2).double(), own)))

    def truth(row: int) -> Mixture:
        covariance = covariances[data.covariates["site"][row]]
        return [(1.0, Normal(W, B, plain_truth().noise, np.zeros(2), covariance))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def correlated_in_one_group_only() -> Conjugate:
    """Low-rank noise whose factor is zero in all groups but one; the diagonal is the same in all."""
    data = make_data()
    factor = numbers(174)(4, 1)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            plain(data, z, ("text", "audio"))
            west = (covariate(data, "site") == 2).double()[:, None, None]
            noisy = dist.LowRankMultivariateNormal(affine(z, "image"), west * tensor(factor), tensor(S["image"] ** 2))
            pyro.sample("image", noisy.mask(data.observed("image")), obs=data.filled("image"))

    def truth(row: int) -> Mixture:
        noise: dict[str, Array | float] = dict(plain_truth().noise)
        if data.covariates["site"][row] == 2:
            noise["image"] = factor @ factor.T + np.diag(S["image"] ** 2)
        return [(1.0, Normal(W, B, noise, np.zeros(2), np.eye(2)))]

    return Conjugate(model, data, truth, form="by instance")


@conjugate
def one_hot_component() -> Conjugate:
    """A one-hot site chooses the mean; the model is set up for enumeration, as Pyro's tutorials have it."""
    weights, means, scales = three_clusters(175)

    @config_enumerate
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            c = pyro.sample("c", dist.OneHotCategorical(tensor(weights)))
            plain(data, pyro.sample("z", dist.Normal(c @ tensor(means), c @ tensor(scales)).to_event(1)))

    noise = plain_truth().noise
    parts = [(float(p), Normal(W, B, noise, m, np.diag(v**2))) for p, m, v in zip(weights, means, scales, strict=True)]
    return Conjugate(model, make_data(), lambda _: parts, form="discrete")


@conjugate
def two_discrete_sites() -> Conjugate:
    """Six components, of two discrete sites of which the second depends on the first."""
    first, second = np.array([0.7, 0.3]), np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    means = 2 * numbers(176)(2, 3, 2)

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            a = pyro.sample("a", dist.Categorical(tensor(first)))
            c = pyro.sample("c", dist.Categorical(tensor(second)[a]))
            plain(data, pyro.sample("z", dist.Normal(tensor(means)[a, c], 0.5).to_event(1)))

    noise = plain_truth().noise
    parts = [
        (float(first[a] * second[a, c]), Normal(W, B, noise, means[a, c], 0.25 * np.eye(2)))
        for a in range(2)
        for c in range(3)
    ]
    return Conjugate(model, make_data(), lambda _: parts, form="discrete")


@conjugate
def weights_by_group() -> Conjugate:
    """A mixture whose weights depend on a covariate."""
    _, means, scales = three_clusters(177)
    weights = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    data = make_data()

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            c = pyro.sample("c", dist.Categorical(tensor(weights)[covariate(data, "site")]))
            plain(data, pyro.sample("z", dist.Normal(tensor(means)[c], tensor(scales)[c]).to_event(1)))

    def truth(row: int) -> Mixture:
        own = weights[data.covariates["site"][row]]
        noise = plain_truth().noise
        return [(float(p), Normal(W, B, noise, m, np.diag(v**2))) for p, m, v in zip(own, means, scales, strict=True)]

    return Conjugate(model, data, truth, form="discrete")


@conjugate
def mixture_of_diagonal_normals() -> Conjugate:
    """Pyro's own class for it."""
    weights, means, scales = three_clusters(178)

    def model(data: MultimodalData) -> None:
        prior = dist.MixtureOfDiagNormals(tensor(means), tensor(scales), tensor(weights).log())
        with pyro.plate("instances", len(data)):
            plain(data, pyro.sample("z", prior))

    noise = plain_truth().noise
    parts = [(float(p), Normal(W, B, noise, m, np.diag(v**2))) for p, m, v in zip(weights, means, scales, strict=True)]
    return Conjugate(model, make_data(), lambda _: parts, form="mixture")


# ---- not conjugate -----------------------------------------------------------------------------------------------


@not_conjugate
def nonlinear_in_small_units() -> NotConjugate:
    """A feature counted in thousandths bends, beside one counted in thousands of millions."""
    units = torch.tensor([1e9, 1e-3, 1.0]).double()

    def location(z: Tensor, name: str) -> Tensor:
        return affine(z, name) if name != "text" else units * (z[..., :1] + 0.1 * z[..., :1].tanh() * (units < 1))

    model = with_location(location)
    return NotConjugate(model, make_data(), "text", "location not affine")


@not_conjugate
def scale_in_small_units() -> NotConjugate:
    """The same of a scale."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            plain(data, z, ("image", "audio"))
            scale = torch.cat([torch.full_like(z[:, :1], 1e9), 1e-3 * z[:, :1].exp(), torch.ones_like(z[:, :1])], 1)
            observe("text", affine(z, "text"), scale, data)

    return NotConjugate(model, make_data(), "text", "scale depends on the latent")


@not_conjugate
def nonlinear_for_the_oldest() -> NotConjugate:
    """The oldest few of 1,100 rows, whose ages all differ."""

    def model(data: MultimodalData) -> None:
        old = torch.relu(covariate(data, "age") - 2.2)[:, None]
        with pyro.plate("instances", len(data)):
            plain(data, (lambda z: z + old * z**2)(latent(2)))

    return NotConjugate(model, make_data(1100), "image", "location not affine")


@not_conjugate
def score_of_everyone() -> NotConjugate:
    """A number observed outside the plate that depends on all latents together."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            plain(data, z)
        pyro.sample("score", dist.Normal(z.sum(), 1.0), obs=torch.tensor(3.0).double())

    return NotConjugate(model, make_data(), "score", None)


@not_conjugate
def prior_masked_where_missing() -> NotConjugate:
    """A private latent under the mask of its modality: where it is masked, it has no prior, not a standard normal."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            plain(data, z, ("image", "text"))
            own = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1).mask(data.observed("audio"))
            observe("audio", affine(z, "audio") + pyro.sample("own", own), tensor(S["audio"]), data)

    return NotConjugate(model, make_data(), "own", None)


@not_conjugate
def annealed_prior() -> NotConjugate:
    """poutine.scale on the prior, as for a beta-VAE."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            with poutine.scale(scale=0.5):
                z = latent(2)
            plain(data, z)

    return NotConjugate(model, make_data(), "z", None)


@not_conjugate
def weighted_instances() -> NotConjugate:
    """A weight for each row."""

    def model(data: MultimodalData) -> None:
        weights = covariate(data, "age").exp()
        with pyro.plate("instances", len(data)), poutine.scale(scale=weights):
            plain(data, latent(2))

    return NotConjugate(model, make_data(), "z", None)


@not_conjugate
def present_row_masked_out() -> NotConjugate:
    """One row of sixty is left out by a mask of the model's own although its modality is there."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            plain(data, z, ("image", "audio"))
            kept = data.observed("text") & ~covariate(data, "rare")
            features = dist.Normal(affine(z, "text"), tensor(S["text"])).to_event(1)
            pyro.sample("text", features.mask(kept), obs=data.filled("text"))

    data = make_data(60)
    data.observed_mask[5] = True
    return NotConjugate(model, data, "text", None)


class Truncated(dist.Normal):
    """A normal cut off below zero, by a subclass that changes the density alone."""

    def log_prob(self, value: Tensor) -> Tensor:
        below = super().cdf(torch.zeros(()).double())
        return super().log_prob(value) - torch.log1p(-below) - 1e6 * (value < 0)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Truncated:
        return Truncated(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


@not_conjugate
def subclass_as_prior() -> NotConjugate:
    model = with_prior(lambda: Truncated(torch.ones(2).double(), torch.ones(2).double()).to_event(1))
    return NotConjugate(model, make_data(), "z", None)


@not_conjugate
def subclass_as_likelihood() -> NotConjugate:
    def model(data: MultimodalData) -> None:
        with pyro.plate("instances", len(data)):
            z = latent(2)
            plain(data, z, ("image", "audio"))
            features = Truncated(affine(z, "text"), tensor(S["text"]).expand(len(data), 3)).to_event(1)
            pyro.sample("text", features.mask(data.observed("text")), obs=data.filled("text"))

    return NotConjugate(model, make_data(), "text", None)


@not_conjugate
def folded_prior() -> NotConjugate:
    model = with_prior(lambda: dist.FoldedDistribution(dist.Normal(torch.zeros(2).double(), 1.0)).to_event(1))
    return NotConjugate(model, make_data(), "z", "non-gaussian prior")


@not_conjugate
def group_effects() -> NotConjugate:
    """Random effects of groups: latents that several instances share."""

    def model(data: MultimodalData) -> None:
        with pyro.plate("groups", 3):
            effect = pyro.sample("effect", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        with pyro.plate("instances", len(data)):
            plain(data, effect[covariate(data, "site")] + latent(2))

    return NotConjugate(model, make_data(), "effect", None)


@not_conjugate
def regime_of_everyone() -> NotConjugate:
    """A discrete site outside the plate, which all instances share."""

    def model(data: MultimodalData) -> None:
        regime = pyro.sample("regime", dist.Bernoulli(torch.tensor(0.5).double()))
        with pyro.plate("instances", len(data)):
            plain(data, latent(2) + regime)

    return NotConjugate(model, make_data(), "regime", None)


@not_conjugate
def point_mass() -> NotConjugate:
    """A latent that is a parameter."""
    model = with_prior(lambda: dist.Delta(torch.ones(2).double(), event_dim=1))
    return NotConjugate(model, make_data(), "z", "non-gaussian prior")
