"""What a case of the zoo says, the data that the models see, and dense conditioning in numpy, the oracle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from calmrl_prob.data import MultimodalData

Array = NDArray[np.float64]
Model = Callable[..., object]

DIMS = {"image": 4, "text": 3, "audio": 2}


def numbers(seed: int) -> Callable[..., Array]:
    """A source of standard normal arrays."""
    generator = np.random.default_rng(seed)
    return lambda *shape: generator.normal(size=shape)


def tensor(array: Array) -> torch.Tensor:
    """The same numbers, for torch."""
    return torch.from_numpy(np.array(array))


def make_data(
    num_instances: int = 14, dims: Mapping[str, int] = DIMS, seed: int = 0, missing: str = "modalities"
) -> MultimodalData:
    """Random features, a third of the modalities missing (the first of the first row, for one), and covariates.

    "age" is continuous, "site" one of 0, 1, 2, "hospital" a name; row 5 alone is "rare".
    """
    generator = np.random.default_rng(seed)
    observed = generator.random((num_instances, len(dims))) > 0.35
    observed[np.arange(num_instances), np.arange(num_instances) % len(dims)] = True
    if len(dims) > 1:
        observed[0] = [False] + [True] * (len(dims) - 1)
        observed[1] = True
    arrays = {name: generator.normal(size=(num_instances, width)) for name, width in dims.items()}
    if missing == "features":
        for rows in arrays.values():
            rows[generator.random(rows.shape) < 0.2] = np.nan
            rows[np.isnan(rows).all(axis=1), 0] = 0.3
    site = np.arange(num_instances) % 3
    return MultimodalData(
        arrays,
        observed_mask=observed,
        labels=np.where(site == 1, "cat", "dog"),
        covariates={
            "age": generator.normal(size=num_instances),
            "site": site,
            "hospital": np.array(["north", "south", "west"])[generator.integers(0, 3, num_instances)],
            "rare": np.arange(num_instances) == 5,
        },
        missing=missing,
    )


@dataclass(frozen=True)
class Normal:
    """What one instance follows: z ~ N(mean, covariance), x^m ~ N(loadings^m z + intercepts^m, noise^m).

    Noise is a scalar, (D_m,) variances, or a full (D_m, D_m) covariance.
    """

    loadings: Mapping[str, Array]
    intercepts: Mapping[str, Array]
    noise: Mapping[str, Array | float]
    mean: Array
    covariance: Array

    def noise_covariance(self, name: str) -> Array:
        """As a matrix, (D_m, D_m)."""
        noise, width = np.asarray(self.noise[name], dtype=np.float64), len(self.loadings[name])
        return noise if noise.ndim == 2 else np.diag(np.broadcast_to(noise, (width,)))

    def condition(self, row: Mapping[str, Array]) -> tuple[Array, Array, float]:
        """Posterior mean (K,), posterior covariance (K, K) and log density of what a row has (NaN: lacks)."""
        if not row:
            return self.mean, self.covariance, 0.0
        loadings = np.concatenate([self.loadings[name] for name in row])
        centre = loadings @ self.mean + np.concatenate([self.intercepts[name] for name in row])
        covariance = loadings @ self.covariance @ loadings.T
        start = 0
        for name in row:
            stop = start + len(row[name])
            covariance[start:stop, start:stop] += self.noise_covariance(name)
            start = stop
        values = np.concatenate(list(row.values()))
        seen = ~np.isnan(values)
        covariance, cross = covariance[np.ix_(seen, seen)], (loadings @ self.covariance)[seen]
        gain = np.linalg.solve(covariance, cross).T
        return (
            self.mean + gain @ (values - centre)[seen],
            self.covariance - gain @ cross,
            float(multivariate_normal(centre[seen], covariance).logpdf(values[seen])),
        )


Mixture = list[tuple[float, Normal]]


@dataclass(frozen=True)
class Conjugate:
    """A model with an exact posterior.

    Attributes:
        truth: what every instance follows; or a function of the row number, where rows or components differ: the
            weights and normals of a mixture, of one component where there is no choice.
        form: "one" where a single LinearGaussian says it all; "by instance" where something varies by row; "mixture";
            "discrete" for a mixture by a discrete site in the plate; "correlated noise".
        tolerance: relative, of the comparison (float32 models need more).
    """

    model: Model
    data: MultimodalData
    truth: Normal | Callable[[int], Mixture]
    form: str = "one"
    tolerance: float = 1e-6

    @property
    def rows(self) -> Array:
        """The rows to check: all of them if they are few, else some, and the oldest."""
        if len(self.data) <= 100:
            return np.arange(len(self.data))
        oldest = np.argsort(self.data.covariates["age"])[-20:]
        return np.unique(np.append(np.arange(0, len(self.data), 100), oldest))

    def mixture(self, row: int) -> Mixture:
        """What one instance follows."""
        return [(1.0, self.truth)] if isinstance(self.truth, Normal) else self.truth(row)

    def components(self, row: int) -> tuple[Array, list[Array], list[Array], float]:
        """Posterior weights (C,), means and covariances of the components, and the log density of one instance."""
        has = {
            name: np.asarray(self.data[name][row], dtype=np.float64)
            for name in self.data.names
            if bool(self.data.observed(name)[row])
        }
        parts = [(weight, normal.condition(has)) for weight, normal in self.mixture(row)]
        joint = np.array([np.log(weight) + evidence for weight, (_, _, evidence) in parts])
        total = float(logsumexp(joint))
        return np.exp(joint - total), [mean for _, (mean, _, _) in parts], [cov for _, (_, cov, _) in parts], total

    def posterior(self, row: int) -> tuple[Array, Array, float]:
        """Posterior mean (K,), covariance (K, K) and log density of one instance, components averaged out."""
        weights, means, covariances, evidence = self.components(row)
        mean = np.average(means, axis=0, weights=weights)
        spread = [cov + np.outer(m - mean, m - mean) for m, cov in zip(means, covariances, strict=True)]
        return mean, np.average(spread, axis=0, weights=weights), evidence


@dataclass(frozen=True)
class NotConjugate:
    """A model without an exact posterior of the latents, the site that breaks it and the condition that it breaks.

    ``condition`` is None where a refusal is due and its name is a matter of taste.
    """

    model: Model
    data: MultimodalData
    site: str
    condition: str | None


@dataclass(frozen=True)
class Broken:
    """A model that should be refused: the words that the message has to hold, any of several in a tuple."""

    model: Model
    data: MultimodalData
    words: tuple[str | tuple[str, ...], ...]


Case = TypeVar("Case")


def entered(build: Callable[[], Case], zoo: dict[str, Callable[[], Case]]) -> Callable[[], Case]:
    """Enter a builder into a part of the zoo; what it draws (layers, say) leaves the global generator as it was."""

    @functools.wraps(build)
    def forked() -> Case:
        with torch.random.fork_rng():
            return build()

    zoo[build.__name__] = forked
    return forked


CONJUGATE: dict[str, Callable[[], Conjugate]] = {}
NOT_CONJUGATE: dict[str, Callable[[], NotConjugate]] = {}
BROKEN: dict[str, Callable[[], Broken]] = {}


def conjugate(build: Callable[[], Conjugate]) -> Callable[[], Conjugate]:
    """Enter a builder into the zoo."""
    return entered(build, CONJUGATE)


def not_conjugate(build: Callable[[], NotConjugate]) -> Callable[[], NotConjugate]:
    """Enter a builder into the zoo."""
    return entered(build, NOT_CONJUGATE)


def broken(build: Callable[[], Broken]) -> Callable[[], Broken]:
    """Enter a builder into the zoo."""
    return entered(build, BROKEN)
