"""An oracle of latents that are coupled between instances: dense conditioning of the joint normal."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks


def dense(lg: LinearGaussian, blocks: ObservedBlocks, cov: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean (N, K) and covariance (N K, N K) of all latents given all that is observed, and the evidence.

    ``cov`` (K, N, N) is of the latents z; the joint normal of everything that is observed is built entry by entry.
    """
    num_latents, n, _ = cov.shape
    prior = torch.zeros(n, num_latents, n, num_latents, dtype=torch.float64)
    for k in range(num_latents):
        prior[:, k, :, k] = cov[k]
    prior = prior.view(n * num_latents, -1)
    maps, centred, noise = [], [], []
    for name, rows in blocks.rows.items():
        for place, row in enumerate(rows.tolist()):
            block = torch.zeros(lg.dims[name], n, num_latents, dtype=torch.float64)
            block[:, row] = lg.loadings[name]
            maps.append(block.flatten(1))
            centred.append(blocks.values[name][place] - lg.intercepts[name])
            noise.append(lg.noise_variance[name])
    joint_map, x = torch.cat(maps), torch.cat(centred)
    marginal = joint_map @ prior @ joint_map.mT + torch.diag(torch.cat(noise))
    gain = torch.linalg.solve(marginal, joint_map @ prior).mT
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(x), marginal).log_prob(x)
    return (gain @ x).view(n, num_latents), prior - gain @ joint_map @ prior, float(evidence)
