"""The start of EM where noise is correlated within a modality: what modalities share, then what is left of each.

With T^m the covariance of modality m, and C that of all features over the rows that have both, the leading U, Lambda of

    C U = T U Lambda,   U^T T U = I,   T = diag(T^1, .., T^M)

are canonical directions of several sets (Kettenring, Canonical analysis of several sets of variables, 1971), and

    W^m = T^m U^m (M / (M - 1) (Lambda - 1))^1/2,   Psi^m = T^m - W^m W^mT

for two modalities the maximum-likelihood solution on complete data (Bach & Jordan, 2005), within the form of the noise.
Found by subspace iteration, in products with C and T^-1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.em.correlated import CorrelatedNoiseModel, full_noise
from calmrl_prob.linear_gaussian.em.noise_model import NoiseModel
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.scatter import Scatter
from calmrl_prob.linear_gaussian.em.spectral import PairwiseCovariance, spectral_start
from calmrl_prob.linear_gaussian.noise import CorrelatedNoise
from calmrl_prob.linear_gaussian.posterior import factorize

#: Applications of T^-1 C.
_PRODUCTS = 12
#: Largest share of the variance of a canonical direction that the start gives to the latents.
_MOST_SHARED = 0.9
#: Steps of factor analysis that low-rank noise starts with.
_STEPS = 5


def with_noises(parameters: Parameters, noises: tuple[CorrelatedNoise, ...]) -> Parameters:
    """The same loadings and intercepts with the noise of each modality."""
    specific, factors = torch.cat([noise.specific for noise in noises]), tuple(noise.factor for noise in noises)
    return replace(parameters, noise_variance=specific, noise_factor=factors)


class CorrelatedStart:
    """Starts for one data set.

    Args:
        covariance: C, about the shift.
        scatters: second moments of each modality about the shift, prior rows counted in.
        count: (M,) rows of each, prior rows counted in.
        total: (D,) sum of x over them.
        shape: the stacked layout.
        model: of the noise.
        generator: for the random blocks of the subspace iterations.
    """

    def __init__(
        self,
        covariance: PairwiseCovariance,
        scatters: tuple[Scatter, ...],
        count: Tensor,
        total: Tensor,
        shape: Shape,
        model: CorrelatedNoiseModel,
        generator: torch.Generator,
    ) -> None:
        self._covariance, self._shape, self._model, self._generator = covariance, shape, model, generator
        self._within = []
        for part, scatter, rows in zip(shape.slices, scatters, count, strict=True):
            mean = total[part, None] / rows
            self._within.append(scatter.over(rows).plus(-mean, mean))

    def noise_beside(self, loadings: Tensor) -> tuple[CorrelatedNoise, ...]:
        """Psi^m for loadings (D, K): the residual covariance T^m - W^m W^mT, within the form of the noise."""
        found = []
        for m, (part, within) in enumerate(zip(self._shape.slices, self._within, strict=True)):
            found.append(self._noise(within.plus(-loadings[part], loadings[part]), m, part))
        return tuple(found)

    def _noise(self, residual: Scatter, m: int, part: slice) -> CorrelatedNoise:
        floor = self._model.floor[part]
        if self._model.ranks is None:
            return full_noise(residual.dense(), floor)
        rank, width = self._model.ranks[m], part.stop - part.start
        if rank == 0:
            return CorrelatedNoise(torch.maximum(residual.diagonal, floor), floor.new_zeros(width, 0))
        variance = torch.maximum(residual.diagonal, floor)
        one = PairwiseCovariance(torch.zeros_like(floor), variance, residual.times)
        shape = Shape.of({"": width}, floor.device)
        form = NoiseModel(isotropic=False, floor=floor, pseudo_count=0.0, pseudo_variance=floor)
        start = spectral_start(one, shape, rank, form, self._generator)
        found = CorrelatedNoise(torch.maximum(start.noise_variance, floor), start.loadings)
        for _ in range(_STEPS):
            found = self._model.fitted(residual, part, found)
        return found

    def __call__(self, latent_dim: int) -> Parameters:
        """Loadings, intercepts and noise to start EM from."""
        total = self._shape.total
        loadings = self._model.floor.new_zeros(total, latent_dim)
        noises = self.noise_beside(loadings[:, :0])
        found = with_noises(Parameters(loadings, self._covariance.mean.clone(), self._model.floor), noises)
        oversampled = min(latent_dim + max(4, latent_dim // 4), total)
        block = torch.randn(total, oversampled, generator=self._generator, dtype=torch.float64).to(loadings.device)
        block = block / torch.cat([noise.variance for noise in noises]).sqrt()[:, None]
        for _ in range(_PRODUCTS):
            block = found.solve(self._covariance.times(self._orthonormal(noises, block)))
        basis = self._orthonormal(noises, block)
        small = basis.mT @ self._covariance.times(basis)
        eigenvalues, vectors = torch.linalg.eigh((small + small.mT) / 2)
        leading = (basis @ vectors.flip(1)[:, :latent_dim]).split([len(noise.specific) for noise in noises])
        sets = len(noises)
        gain = (eigenvalues.flip(0)[:latent_dim] - 1).clamp(min=0.05) * (sets / max(sets - 1, 1))
        parts = []
        for noise, directions in zip(noises, leading, strict=True):
            scaled = directions * gain.sqrt()
            image = noise.times(scaled)
            share = torch.linalg.eigvalsh(scaled.mT @ image)[-1]  # of the variance of any direction: W^T T^-1 W
            parts.append(image * (_MOST_SHARED / share.clamp(min=_MOST_SHARED)).sqrt())
        loadings = torch.cat(parts)
        return with_noises(replace(found, loadings=loadings), self.noise_beside(loadings))

    @staticmethod
    def _orthonormal(noises: tuple[CorrelatedNoise, ...], block: Tensor) -> Tensor:
        """A basis Q of the span of ``block`` with Q^T T Q = I."""
        unit = torch.cat([noise.variance for noise in noises]).sqrt()[:, None]
        basis = torch.linalg.qr(block * unit).Q / unit  # whatever the units of the features
        parts = basis.split([len(noise.specific) for noise in noises])
        image = torch.cat([noise.times(part) for noise, part in zip(noises, parts, strict=True)])
        found: Tensor = torch.linalg.solve_triangular(factorize(basis.mT @ image), basis.mT, upper=False).mT
        return found
