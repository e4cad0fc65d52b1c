"""Small models and data of retrieval, and its scores and ranks from dense normals, pair by pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import multivariate_normal

from calmrl_prob.data import MultimodalData
from calmrl_prob.evaluation.retrieval.retrieval import retrieve
from calmrl_prob.linear_gaussian import LinearGaussian

WIDTHS = {"image": 4, "text": 3, "audio": 5}


def with_correlated_noise(lg: LinearGaussian, seed: int) -> LinearGaussian:
    """The same with noise that is correlated within modalities: of one factor in the first, any in the others."""
    rng = np.random.default_rng(seed)
    ranks = {name: 1 if m == 0 else width for m, (name, width) in enumerate(lg.dims.items())}
    factors = {name: torch.tensor(rng.normal(size=(width, ranks[name]))) for name, width in lg.dims.items()}
    variance = {name: lg.noise_variance[name] + factor.square().sum(1) for name, factor in factors.items()}
    return replace(lg, noise_variance=variance, noise_factor=factors)


def noise_covariance(lg: LinearGaussian, names: list[str]) -> np.ndarray:
    """Of measurements of these modalities, one after the other; dense."""
    found = [(name, lg.correlated_noise(name)) for name in names]
    parts = [torch.diag(lg.noise_variance[name]) if own is None else own.covariance() for name, own in found]
    return torch.block_diag(*parts).numpy()


def make_model(seed: int, latent_dim: int = 2, widths: dict[str, int] | None = None) -> LinearGaussian:
    """A random model: diagonal noise, a prior that is neither centred nor spherical."""
    rng = np.random.default_rng(seed)
    widths = WIDTHS if widths is None else widths
    root = rng.normal(size=(latent_dim, latent_dim))
    return LinearGaussian(
        {name: torch.tensor(rng.normal(size=(width, latent_dim))) for name, width in widths.items()},
        {name: torch.tensor(rng.normal(size=width)) for name, width in widths.items()},
        {name: torch.tensor(rng.uniform(0.2, 1.5, size=width)) for name, width in widths.items()},
        torch.tensor(rng.normal(size=latent_dim)),
        torch.tensor(root @ root.T + 0.3 * np.eye(latent_dim)),
    )


def make_data(lg: LinearGaussian, num_instances: int, seed: int, share_missing: float = 0.4) -> MultimodalData:
    """Instances of the model that lack modalities at random; each keeps at least one."""
    generator = torch.Generator().manual_seed(seed)
    arrays = lg.sample(num_instances, generator).features
    rng = np.random.default_rng(seed)
    observed = rng.random((num_instances, len(arrays))) >= share_missing
    observed[np.arange(num_instances), rng.integers(len(arrays), size=num_instances)] = True
    observed[: len(arrays)] |= np.eye(len(arrays), dtype=bool)
    return MultimodalData(arrays, observed_mask=observed)


def all_scores(lg: LinearGaussian, queries: MultimodalData, candidates: MultimodalData, score: str) -> np.ndarray:
    """The table (N_q, N_c), read off a retrieval that lists every candidate."""
    found = retrieve(lg, queries, candidates, score, top_k=len(candidates))
    table = np.full((len(queries), len(candidates)), np.nan)
    np.put_along_axis(table, found.top_indices, found.top_scores, axis=1)
    return table


def observed_parts(data: MultimodalData, row: int) -> Iterator[tuple[str, np.ndarray]]:
    for m, name in enumerate(data.names):
        if data.observed_mask[row, m]:
            yield name, data[name][row].numpy()


def dense_log_density(lg: LinearGaussian, parts: list[tuple[str, np.ndarray]]) -> float:
    """log p of stacked measurements with z integrated out; a modality may stand twice, as two measurements."""
    loadings = np.concatenate([lg.loadings[name].numpy() for name, _ in parts])
    noise = noise_covariance(lg, [name for name, _ in parts])
    mean = np.concatenate([lg.intercepts[name].numpy() for name, _ in parts]) + loadings @ lg.prior_mean.numpy()
    covariance = loadings @ lg.prior_covariance.numpy() @ loadings.T + noise
    return float(multivariate_normal.logpdf(np.concatenate([x for _, x in parts]), mean, covariance))


def dense_latent_mean(lg: LinearGaussian, parts: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """E[z | x] by dense conditioning of the joint normal of z and x."""
    loadings = np.concatenate([lg.loadings[name].numpy() for name, _ in parts])
    noise = noise_covariance(lg, [name for name, _ in parts])
    x = np.concatenate([x for _, x in parts]) - np.concatenate([lg.intercepts[name].numpy() for name, _ in parts])
    m0, S0 = lg.prior_mean.numpy(), lg.prior_covariance.numpy()
    gain = S0 @ loadings.T @ np.linalg.inv(loadings @ S0 @ loadings.T + noise)
    return m0 + gain @ (x - loadings @ m0)


def naive_score(lg: LinearGaussian, query: list, candidate: list, score: str) -> float:
    if score == "likelihood_ratio":
        joint = dense_log_density(lg, query + candidate)
        return joint - dense_log_density(lg, query) - dense_log_density(lg, candidate)
    m0 = lg.prior_mean.numpy()
    z = dense_latent_mean(lg, query) - m0
    if score == "cosine_latent":
        other = dense_latent_mean(lg, candidate) - m0
    else:
        shown = np.concatenate(
            [x - lg.intercepts[name].numpy() - lg.loadings[name].numpy() @ m0 for name, x in candidate]
        )
        z, other = np.concatenate([lg.loadings[name].numpy() @ z for name, _ in candidate]), shown
    return float(z @ other / np.linalg.norm(z) / np.linalg.norm(other))


def naive_ranks(table: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1 + the number of other candidates that score at least as high, one pair at a time."""
    ranks = []
    for row, target in zip(table, targets, strict=True):
        others = [j for j in range(len(row)) if j != target]
        ranks.append(1 + sum(bool(row[j] >= row[target] - 1e-9) for j in others))
    return np.array(ranks)
