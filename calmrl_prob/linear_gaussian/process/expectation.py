"""The E-step where latents are Gaussian processes: the same moments, from the joint posterior of all instances.

The M-step (``maximization.py``) sees sums over instances alone, so it does not care that they are coupled: loadings,
intercepts and noise variances have the closed forms that they have for independent instances.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.expectation import ExpectationStep, Moments, Totals, augment
from calmrl_prob.linear_gaussian.em.parameters import Parameters, Shape
from calmrl_prob.linear_gaussian.em.rowwise import block_totals
from calmrl_prob.linear_gaussian.process.latent_likelihood import LatentLikelihood
from calmrl_prob.linear_gaussian.process.posterior import LowRankProcess, process_posterior
from calmrl_prob.linear_gaussian.products import cross_product, row_chunks

#: How closely means are solved for while fitting: the evidence is off by the square of this.
SOLVED = 1e-6


class ProcessStep(ExpectationStep):
    """The E-step for latents z_n = f_n + e_n, with f the processes and e_n ~ N(0, E) of each instance alone.

    Args:
        blocks: the data.

    Attributes:
        process: the prior of f; to be set before a call, and whenever kernels change.
        nugget: diag(E), (K,).
    """

    process: LowRankProcess
    nugget: Tensor

    def __init__(self, blocks: ObservedBlocks | FeatureBlocks) -> None:
        self.blocks = blocks
        self.shape, self.grouping = Shape.of(blocks.dims, blocks.device), blocks.grouping
        if isinstance(blocks, FeatureBlocks):
            self._members = blocks.feature_mask[:, self.grouping.first]
            values = blocks.values.double()
            self.totals = Totals(self._members.sum(0).double(), values.sum(0), values.square().sum(0))
        else:
            self._members = blocks.observed_mask
            self.totals = block_totals(blocks)

    def likelihood(self, parameters: Parameters) -> LatentLikelihood:
        """Likelihood of z at some parameters."""
        origin = torch.zeros_like(parameters.intercepts)
        return LatentLikelihood.of(parameters.to_linear_gaussian(self.shape, origin), self.blocks)

    def __call__(self, parameters: Parameters) -> Moments:
        """Expected moments and evidence (its lower bound, where inducing points stand for more) at ``parameters``."""
        conditional = self.likelihood(parameters).marginalize(self.nugget)
        given = process_posterior(conditional.likelihood, self.process, solved=SOLVED)
        index = conditional.likelihood.pattern_index
        latents = torch.empty_like(conditional.offset)
        groups, latent_dim = self._members.shape[1] + 1, latents.shape[1]
        second = latents.new_zeros(groups, latent_dim**2)
        for chunk in row_chunks(len(latents), 4 * latent_dim**2):
            outer, covariance = given.moments(self.process[chunk])
            slope = conditional.slope[index[chunk]]
            latents[chunk] = conditional.offset[chunk] + (slope @ outer[:, :, None]).squeeze(2)
            covariance = conditional.covariance[index[chunk]] + slope @ covariance @ slope.mT
            z = latents[chunk]
            second += self._weights(chunk).mT @ (covariance + z[:, :, None] * z[:, None, :]).flatten(1)
        everyone = self._weights(slice(None))
        first = everyone.mT @ latents
        return Moments(float(given.lower_bound), self._cross(latents), augment(first, second, everyone.sum(0)))

    def _weights(self, rows: slice) -> Tensor:
        """Weights of the instances: which have each group and, last, that all count, (n, G + 1)."""
        members = self._members[rows].double()
        return torch.cat([members, members.new_ones(len(members), 1)], dim=1)

    def _cross(self, latents: Tensor) -> Tensor:
        if isinstance(self.blocks, FeatureBlocks):
            return cross_product(self.blocks.values, latents)
        rows = self.blocks.rows
        return torch.cat([cross_product(values, latents[rows[n]]) for n, values in self.blocks.values.items()])
