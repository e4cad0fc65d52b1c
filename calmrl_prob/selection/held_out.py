"""Squared errors of held-out imputations of whole modalities, from the statistics of rows; of rows, ``hidden.py``.

For a modality m of the rows that have it and other modalities r, the imputation from the others is linear in x_r,

    x^m - mu^m = W^m V_r h_r + error,    V_r = (S0^-1 + sum_{o in r} A^o)^-1,
    h_r = sum_{o in r} W^oT Psi^o^-1 (x^o - mu^o)

so the sums of squared errors are quadratic forms in the scatter of the rows: with H~ [x_r; 1] = h_r and T the augmented
scatter, sum e e^T needs H~ T_rm and H~ T_rr H~^T alone. From statistics, scoring costs the same however many rows there
were; from rows, one posterior for each modality. Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import LinearGaussian, SufficientStatistics
from calmrl_prob.linear_gaussian.posterior import factorize
from calmrl_prob.linear_gaussian.structure import solve_noise

#: What single features are imputed from: whatever the instance has, of their own modality too.
OWN_PART = "rest of its own"


@dataclass(frozen=True, eq=False)
class HeldOutSums:
    """Sums over the held-out instances of one pattern, one modality being hidden and imputed from the others.

    Attributes:
        modality: what was hidden.
        seen: the modalities that it was imputed from.
        count: (D_m,) how many instances have each feature.
        square_error: (D_m,) sum of (x - imputed)^2, data units squared.
        square: (D_m,) sum of (x - centre)^2, with the centre the mean of training rows.
        product: (D_m,) sum of (x - centre) (imputed - centre).
        variance: (D_m,) that the model states.
        log_density: (D_m,) sum of log p(x) under predictives of the right variance, nats; None for normal ones of equal
            variance, of which squared errors tell it.
    """

    modality: str
    seen: tuple[str, ...]
    count: Tensor
    square_error: Tensor
    square: Tensor
    product: Tensor
    variance: Tensor
    log_density: Tensor | None = None

    @property
    def imputed_square(self) -> Tensor:
        """(D_m,) sum of (imputed - centre)^2."""
        return self.square_error - self.square + 2 * self.product


def sums_of_statistics(
    lg: LinearGaussian, statistics: SufficientStatistics, centre: dict[str, Tensor]
) -> Iterator[HeldOutSums]:
    """Sums from the sufficient statistics of held-out rows, for each pattern and each modality of it.

    Args:
        lg: the model, with a standard normal prior of the latents.
        statistics: of the held-out rows, modalities as in the model.
        centre: for each modality the mean of the training rows (D_m,).
    """
    shift = dict(zip(statistics.dims, statistics.shift.split(list(statistics.dims.values())), strict=True))
    weights = {name: solve_noise(lg, name, lg.loadings[name]) for name in lg.names}
    precision = {name: weights[name].mT @ lg.loadings[name] for name in lg.names}
    offset = {name: weights[name].mT @ (lg.intercepts[name] - shift[name]) for name in lg.names}
    identity = torch.eye(lg.latent_dim, dtype=lg.dtype, device=lg.device)
    for present, scatter in statistics.scatters.items():
        names = [name for name, here in zip(statistics.dims, present, strict=True) if here]
        if len(names) < 2:
            continue
        stops = torch.tensor([statistics.dims[name] for name in names]).cumsum(0).tolist()
        parts = {n: slice(stop - statistics.dims[n], stop) for n, stop in zip(names, stops, strict=True)}
        every = torch.cat([*(weights[n] for n in names), -sum(offset[n] for n in names)[None]])  # (D_p + 1, K)
        products = scatter @ every  # once for all that are hidden: of each, its own part is taken off again
        for name in names:
            seen, part = [other for other in names if other != name], parts[name]
            natural = every.clone()
            natural[part] = 0
            natural[-1] += offset[name]
            scattered = products - scatter[:, part] @ weights[name] + torch.outer(scatter[:, -1], offset[name])
            own = scatter[:, part] - torch.outer(scatter[:, -1], lg.intercepts[name] - shift[name])
            covariance = torch.cholesky_inverse(factorize(identity + sum(precision[o] for o in seen)))
            gain = natural @ covariance  # z = gain^T [x_r; 1], of zeros where x is hidden
            latent_own = gain.mT @ own  # sum z (x - mu)^T
            latent_square = covariance @ (natural.mT @ scattered) @ covariance
            latent_sum = scatter[-1] @ gain
            count = scatter[-1, -1]
            total = scatter[-1, part]
            loadings, mean = lg.loadings[name], lg.intercepts[name] - shift[name]
            about_mean = scatter.diagonal()[part] - 2 * mean * total + count * mean.square()
            imputed = ((loadings @ latent_square) * loadings).sum(1)
            cross = (loadings * latent_own.mT).sum(1)
            away = lg.intercepts[name] - centre[name]  # from the centre to the model's own intercept
            about_centre = about_mean + 2 * away * (total - count * mean) + count * away.square()
            product = cross + away * (loadings @ latent_sum) + away * (total - count * mean) + count * away.square()
            yield HeldOutSums(
                name,
                tuple(seen),
                count.expand(len(mean)),
                about_mean - 2 * cross + imputed,
                about_centre,
                product,
                ((loadings @ covariance) * loadings).sum(1) + lg.noise_variance[name],
            )


def added(parts: Iterable[HeldOutSums]) -> dict[tuple[str, tuple[str, ...]], HeldOutSums]:
    """Sums of several folds together, by modality and modalities seen; variances averaged over the instances."""
    found: dict[tuple[str, tuple[str, ...]], HeldOutSums] = {}
    for part in parts:
        key = (part.modality, part.seen)
        known = found.get(key)
        if known is None:
            found[key] = part
            continue
        count = known.count + part.count
        weighted = known.variance * known.count + part.variance * part.count
        found[key] = HeldOutSums(
            *key,
            count,
            known.square_error + part.square_error,
            known.square + part.square,
            known.product + part.product,
            torch.where(count > 0, weighted / count.clamp(min=1), part.variance),
        )
    return found
