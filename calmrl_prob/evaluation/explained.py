"""Variance explained: the share of each modality's variance that each latent explains, under a fitted model."""

from __future__ import annotations

import pandas as pd
import torch

from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.posterior import as_linear_gaussian
from calmrl_prob.inference.protocols import Model
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import solve_noise


@torch.no_grad()
def variance_explained(model: Model | FitResult, *, rotate: bool = True) -> pd.DataFrame:
    """Share of each modality's variance that each latent explains, under the model.

        R2_mk = sum_d B_dk^2 / sum_d (W S0 W^T + Psi)_dd,   B = W^m L R,   L L^T = S0

    With z = m0 + L R e the latents e are independent and of variance 1, so that shares of a modality add up to what all
    latents explain of it, whatever the rotation R. A normal prior leaves R open, and with it what any one latent
    explains. Here R diagonalises sum_m B^mT Psi^m^-1 B^m, so that latents stay independent given all modalities, and
    latents are numbered by what they explain in all. Where a prior of the loadings fixes the axes (ARD, group, sparse),
    keep them with ``rotate=False``.

    These are shares under the fitted parameters, of features in their own units, so that features of large variance
    count most. Source: Argelaguet et al., Multi-Omics Factor Analysis (2018), where R2 is that of reconstructions.

    Args:
        model: whatever states one linear-Gaussian form: a SharedLatentModel, a LinearGaussian, a FitResult.
        rotate: turn the latents as above; otherwise show the model's own.

    Returns:
        One row for each modality, one column for each latent, numbered from 1; shares in [0, 1].

    Raises:
        ArgumentTypeError: the model has no such form.
        ArgumentError: ``rotate=False``, and latents are correlated under the prior: shares would not add up.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> lg = LinearGaussian(
        ...     {"image": torch.tensor([[1.0, 1.0]]), "text": torch.tensor([[0.0, 3.0]])},
        ...     {"image": zero, "text": zero}, {"image": one, "text": one},
        ... )
        >>> variance_explained(lg, rotate=False).round(2).values.tolist()
        [[0.33, 0.33], [0.0, 0.9]]
        >>> variance_explained(lg).sum(axis=1).round(2).tolist()
        [0.67, 0.9]
    """
    lg = model.linear_gaussian().detach() if isinstance(model, FitResult) else as_linear_gaussian(model)
    lg = lg.to(torch.float64)
    scale = torch.linalg.cholesky(lg.prior_covariance)
    if not rotate:
        if bool((lg.prior_covariance - lg.prior_covariance.diagonal().diag()).abs().max() > 0):
            raise ArgumentError("rotate: latents are correlated under the prior, so shares do not add up; use True.")
        scale = lg.prior_covariance.diagonal().sqrt().diag()
    loadings = {name: weights @ scale for name, weights in lg.loadings.items()}
    if rotate:
        known = torch.stack([b.mT @ solve_noise(lg, name, b) for name, b in loadings.items()]).sum(0)
        turn = torch.linalg.eigh(known).eigenvectors
        loadings = {name: b @ turn for name, b in loadings.items()}
    explained = torch.stack([b.square().sum(0) for b in loadings.values()])
    noise = torch.stack([lg.noise_variance[name].sum() for name in loadings])
    shares = explained / (explained.sum(1) + noise)[:, None]
    if rotate:
        shares = shares[:, shares.sum(0).argsort(descending=True)]
    columns = pd.RangeIndex(1, lg.latent_dim + 1, name="latent")
    return pd.DataFrame(shares.cpu().numpy(), index=pd.Index(list(loadings), name="modality"), columns=columns)
