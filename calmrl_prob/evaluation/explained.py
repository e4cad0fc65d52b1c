"""Variance that each latent explains of each modality under a fitted model, and what it does to each feature."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from calmrl_prob._support.arguments import real_number, require_kind
from calmrl_prob._support.warnings import warn_unreliable
from calmrl_prob.batch_effects import BatchEffects
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.features import names_of
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError
from calmrl_prob.evaluation.latent_spread import with_spread_of
from calmrl_prob.inference.feature_names import aligned, named_dims
from calmrl_prob.inference.parameters.parameter_draws import ParameterDraws
from calmrl_prob.inference.posterior import as_linear_gaussian
from calmrl_prob.inference.protocols import Model
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import LinearGaussian, solve_noise


@torch.no_grad()
def variance_explained(
    model: Model | FitResult, *, data: MultimodalData | None = None, rotate: bool = True
) -> pd.DataFrame:
    """Share of each modality's variance that each latent explains, under the model.

        R2_mk = sum_d B_dk^2 / sum_d (W S0 W^T + Psi)_dd,   B = W^m L R,   L L^T = S0

    With z = m0 + L R e the latents e are independent and of variance 1, so that shares of a modality add up to what all
    latents explain of it, whatever the rotation R. A normal prior leaves R open, and with it what any one latent
    explains. Here R diagonalises sum_m B^mT Psi^m^-1 B^m, so that latents stay independent given all modalities, and
    latents are numbered by what they explain in all. Where a prior of the loadings fixes the axes (ARD, group, sparse),
    keep them with ``rotate=False``; :func:`factor_weights` is to be given the same, else its latents are others.

    A prior of the loadings (``loadings_prior``) also shrinks them, and the latents spread more widely than S0 says, so
    that shares come out too low. With ``data`` S0 is the spread that makes these likeliest, given loadings and noise;
    of plain fits that is S0 itself.

    These are shares under the fitted parameters, of features in their own units, so that features of large variance
    count most. Source: Argelaguet et al., Multi-Omics Factor Analysis (2018), where R2 is that of reconstructions.

    Args:
        model: whatever states one linear-Gaussian form: a SharedLatentModel, a LinearGaussian, a FitResult.
        data: what it was fitted to; give it where the loadings have a prior.
        rotate: turn the latents as above; otherwise show the model's own.

    Returns:
        One row for each modality, one column for each latent, numbered from 1; shares in [0, 1].

    Raises:
        ArgumentTypeError: the model has no such form, or ``data`` is of another type.
        ArgumentError: ``rotate=False``, and latents are correlated under the prior: shares would not add up; or
            ``data`` has fewer than two rows.
        SchemaError: ``data`` is of other modalities.
        DataError: of a model with batches, the column is not in ``data``, or a batch of it was not in the fit.

    Warns:
        ReliabilityWarning: a prior shrank the loadings of a fit, and there are no ``data``.
        ConvergenceWarning: the spread of the latents in ``data`` was not found exactly.

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
    lg = _form(model, data, rotate=rotate)
    loadings = {name: weights @ _axes(lg, rotate=rotate) for name, weights in lg.loadings.items()}
    shares = _shares(lg, loadings)
    if rotate:
        shares = shares[:, shares.sum(0).argsort(descending=True)]
    columns = pd.RangeIndex(1, lg.latent_dim + 1, name="latent")
    return pd.DataFrame(shares.cpu().numpy(), index=pd.Index(list(loadings), name="modality"), columns=columns)


@torch.no_grad()
def factor_weights(
    model: Model | FitResult,
    draws: ParameterDraws | None = None,
    *,
    data: MultimodalData | None = None,
    level: float = 0.9,
    rotate: bool = True,
) -> pd.DataFrame:
    """Weights of each latent on each feature, in the axes of :func:`variance_explained`: a long table.

        weight = B_dk / sqrt((W S0 W^T + Psi)_dd)

    which is the correlation of feature and latent under the model, in [-1, 1]: features of any unit can be ranked, and
    tables of gene sets take it as it is. A latent's sign is that of its largest weights.

    Args:
        model: whatever states one linear-Gaussian form, as :func:`variance_explained` takes it.
        draws: of its parameters, by ``calmrl_prob.parameter_draws``: for intervals.
        level: that central intervals over the draws hold, in (0, 1).
        data: as in :func:`variance_explained`; with ``draws`` too, all of which are then of the one spread.
        rotate: as in :func:`variance_explained`; the same as there, for latents of the same numbers to be the same.

    Returns:
        One row for each modality, latent (numbered from 1 as there) and feature: modality, latent, feature, weight,
        rank (1 for the largest of its modality and latent, whatever the sign) and, with draws, lower and upper.

    Raises:
        ArgumentTypeError: the model has no such form, or ``draws`` are of another type.
        ArgumentError: as :func:`variance_explained`; or ``level`` is out of range.

    Example:
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> lg = LinearGaussian(
        ...     {"rna": torch.tensor([[3.0], [-4.0]])}, {"rna": torch.zeros(2)}, {"rna": torch.tensor([7.0, 9.0])}
        ... )
        >>> factor_weights(lg)[["feature", "weight", "rank"]].round(2).values.tolist()
        [[0.0, -0.75, 2.0], [1.0, 0.8, 1.0]]
    """
    if draws is not None:
        require_kind("draws", draws, ParameterDraws, "what parameter_draws(fit, data) gives (rows go to data=)")
    if not 0 < real_number("level", level, 0.9) < 1:
        raise ArgumentError(f"level: expected a number between 0 and 1, both excluded, got {level!r}.")
    lg = _form(model, data, rotate=rotate)
    axes = _axes(lg, rotate=rotate)
    if rotate:
        shares = _shares(lg, {name: weights @ axes for name, weights in lg.loadings.items()})
        axes = axes[:, shares.sum(0).argsort(descending=True)]
    weights = {name: _standard(own, axes, lg.noise_variance[name]) for name, own in lg.loadings.items()}
    cubes = torch.stack([own.pow(3).sum(0) for own in weights.values()]).sum(0)
    axes, sign = axes * cubes.sign(), cubes.sign()
    known, parts = names_of(named_dims(model)), []
    for name, values in weights.items():
        own = values * sign
        labels = known.get(name) or range(len(own))
        columns = {"feature": list(labels)}
        ends = None
        if draws is not None:
            loadings, noise = draws.values[f"loadings_{name}"], draws.values[f"noise_variance_{name}"]
            drawn = torch.stack([_standard(w.double(), axes, v.double()) for w, v in zip(loadings, noise, strict=True)])
            ends = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=0)
        for k in range(own.shape[1]):
            order = own[:, k].abs().argsort(descending=True).argsort() + 1
            found = {"modality": name, "latent": k + 1, **columns, "weight": own[:, k], "rank": order}
            if ends is not None:
                found |= {"lower": ends[0, :, k], "upper": ends[1, :, k]}
            parts.append(
                pd.DataFrame({key: v.numpy(force=True) if torch.is_tensor(v) else v for key, v in found.items()})
            )
    return pd.concat(parts, ignore_index=True)


def _form(model: Model | FitResult, data: MultimodalData | None, *, rotate: bool) -> LinearGaussian:
    """The form of the model, of the data's own spread of latents if there are any."""
    lg = model.linear_gaussian().detach() if isinstance(model, FitResult) else as_linear_gaussian(model)
    lg = lg.to(torch.float64)
    if data is None:
        shrunk = model.options.get("loadings_prior") if isinstance(model, FitResult) else None
        if shrunk is not None:
            told = f"data: loadings_prior={shrunk!r} shrank the loadings, and shares come out too low; "
            warn_unreliable([f"{told}pass the rows that were fitted to"])
        return lg
    if not rotate:
        _require_independent(lg)
    require_data(data)
    fitted = model.model if isinstance(model, FitResult) else model
    data = aligned(fitted, data)
    if isinstance(batch := getattr(fitted, "batch", None), BatchEffects) and batch.names:
        data = batch.require_adjusted(data)  # shifts of batches are no spread of the latents
    return with_spread_of(lg, data.to(torch.float64), independent=not rotate)


def _require_independent(lg: LinearGaussian) -> None:
    if bool((lg.prior_covariance - lg.prior_covariance.diagonal().diag()).abs().max() > 0):
        raise ArgumentError("rotate: latents are correlated under the prior, so shares do not add up; use True.")


def _axes(lg: LinearGaussian, *, rotate: bool) -> Tensor:
    """L R, (K, K), as :func:`variance_explained` says."""
    scale = torch.linalg.cholesky(lg.prior_covariance)
    if not rotate:
        _require_independent(lg)
        return lg.prior_covariance.diagonal().sqrt().diag()
    loadings = {name: weights @ scale for name, weights in lg.loadings.items()}
    known = torch.stack([b.mT @ solve_noise(lg, name, b) for name, b in loadings.items()]).sum(0)
    found: Tensor = scale @ torch.linalg.eigh(known).eigenvectors
    return found


def _shares(lg: LinearGaussian, loadings: Mapping[str, Tensor]) -> Tensor:
    """Of each modality's variance the share that each latent explains, (M, K)."""
    explained = torch.stack([b.square().sum(0) for b in loadings.values()])
    noise = torch.stack([lg.noise_variance[name].sum() for name in loadings])
    return explained / (explained.sum(1) + noise)[:, None]


def _standard(loadings: Tensor, axes: Tensor, noise: Tensor) -> Tensor:
    """Correlations of features and latents, (D, K)."""
    turned = loadings @ axes
    return turned / (turned.square().sum(1) + noise).sqrt()[:, None]
