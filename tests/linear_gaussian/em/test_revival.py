"""Fits near full rank reach the closed form of probabilistic PCA, which shares no code with EM."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_digits

import calmrl_prob as cal
from calmrl_prob.linear_gaussian import EMOptions
from calmrl_prob.linear_gaussian.em import em as em_module


def steep(seed: int, width: int = 24, decay: float = 0.6, num_rows: int = 500, constant: int = 0) -> np.ndarray:
    """Rows whose directions vary by factors of ``decay``, the last columns constant."""
    g = np.random.default_rng(seed)
    turned = np.linalg.qr(g.normal(size=(width, width)))[0]
    x = g.normal(size=(num_rows, width)) * decay ** np.arange(width) @ turned
    return np.concatenate([x, np.ones((num_rows, constant))], axis=1)


def closed_form(x: np.ndarray, latent_dim: int) -> float:
    """Largest log likelihood of probabilistic PCA: Tipping & Bishop (1999), eq. 8 and 9."""
    n, width = x.shape
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = eigenvalues[latent_dim:].clip(0).mean()
    log_determinant = np.log(eigenvalues[:latent_dim]).sum() + (width - latent_dim) * math.log(noise)
    return -0.5 * n * (width * math.log(2 * math.pi) + log_determinant + width)


@pytest.mark.parametrize(("seed", "latent_dim", "constant"), [(0, 20, 0), (1, 22, 0), (2, 12, 0), (3, 22, 3)])
def test_near_full_rank_the_closed_form_is_reached(seed: int, latent_dim: int, constant: int) -> None:
    x = steep(seed, constant=constant)
    model = cal.SharedLatentModel({"x": x.shape[1]}, latent_dim, "isotropic")
    result = cal.fit(model, cal.MultimodalData({"x": x}), noise_floor=1e-12)
    short = closed_form(x, latent_dim) - float(result.objective[-1])
    # tolerance 1e-6 nats a value, of 12,000 values; three times that
    assert result.converged
    assert short < 0.04 * 3, f"{short:.2f} nats short"
    assert (np.diff(result.objective) >= 0).all()


def test_the_case_is_one_where_latents_die(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(em_module, "_REVIVALS", 0)
    x = steep(3, constant=3)
    model = cal.SharedLatentModel({"x": x.shape[1]}, 22, "isotropic")
    result = cal.fit(model, cal.MultimodalData({"x": x}), noise_floor=1e-12)
    assert closed_form(x, 22) - float(result.objective[-1]) > 10


def profile(x: np.ndarray, block: np.ndarray, latent_dim: int, floor: float) -> float:
    """Largest log likelihood with one noise variance a block: over these variances, the loadings by Joreskog (1967)."""
    n, width = x.shape
    covariance = np.cov(x.T, bias=True)
    least = floor * np.array([covariance.diagonal()[block == b].mean() for b in range(block.max() + 1)])

    def negative(log_noise: np.ndarray) -> float:
        noise = np.maximum(np.exp(log_noise), least)[block]
        eigenvalues = np.linalg.eigvalsh(covariance / np.sqrt(np.outer(noise, noise)))[::-1]
        signal = np.maximum(eigenvalues[:latent_dim], 1)
        spare = eigenvalues.sum() - signal.sum() + latent_dim
        return n / 2 * (width * math.log(2 * math.pi) + np.log(noise).sum() + np.log(signal).sum() + spare)

    options = {"xatol": 1e-8, "fatol": 1e-8, "maxiter": 4000}
    found = [minimize(negative, np.log(least) + up, method="Nelder-Mead", options=options).fun for up in (0.1, 5)]
    return -float(min(found))


@pytest.mark.parametrize("blocks", [2, 3])
def test_digits_in_blocks_with_nearly_all_directions_reach_their_maximum(blocks: int) -> None:
    x = load_digits().data
    x = x[:, x.std(0) > 0]
    parts = np.array_split(np.arange(x.shape[1]), blocks)
    data = cal.MultimodalData({f"block{b}": x[:, columns] for b, columns in enumerate(parts)})
    result = cal.fit(cal.SharedLatentModel(data.dims, 60, "isotropic"), data)
    block = np.repeat(np.arange(blocks), [len(columns) for columns in parts])
    short = profile(x, block, 60, EMOptions().noise_floor) - float(result.objective[-1])
    assert result.converged
    # tolerance 1e-6 nats a value, of 110,000 values; three times that, where it had stopped 6,000 nats short
    assert abs(short) < 0.33, f"{short:.2f} nats short"
