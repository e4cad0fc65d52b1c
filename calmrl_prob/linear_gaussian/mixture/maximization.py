"""The M-step of the components of the latent's prior, and the coordinates that the latent is reported in.

With N_c = sum_n r_nc, m_c and C_c the weighted mean and covariance of the latents of component c:

    pi_c = (N_c + a) / (N + C a)
    S_c  = (N_c C_c + nu B) / (N_c + nu),      B = (mean_c S_c^-1)^-1

a pseudo-instances in each component make a Dirichlet prior of the weights. nu pseudo-instances whose covariance is B,
which all components have in common, keep a component with few instances from collapsing: together the two updates raise

    log prior = a sum_c log pi_c - nu sum_c KL(N(0, B) || N(0, S_c))

which, unlike a Wishart prior with a fixed scale, depends on no choice of coordinates of z. With ``tied`` all components
have one covariance: the limit of nu to infinity.

An affine map of z can be taken up by loadings and intercepts, so means and covariances are settled only up to one. They
are reported such that the prior as a whole has mean 0 and covariance I.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents
from calmrl_prob.linear_gaussian.posterior import Posterior, factorize

#: Turns between the covariances and what they have in common in one M-step; they cost K x K algebra alone.
_TURNS = 5


@dataclass(frozen=True)
class ComponentModel:
    """Model of the components: known or learned, and their prior.

    Attributes:
        weight_pseudo_count: a.
        covariance_pseudo_count: nu.
        tied: one covariance for all.
        known: the components are known groups of instances, so that there are no weights to learn.
    """

    weight_pseudo_count: float = 0.0
    covariance_pseudo_count: float = 0.0
    tied: bool = False
    known: bool = False

    def maximize(self, moments: Tensor, current: LatentComponents) -> LatentComponents:
        """The components that moments (C, K + 1, K + 1) ask for; ``current`` stays where nothing asks."""
        count = moments[:, -1, -1]
        some = count.clamp(min=torch.finfo(count.dtype).tiny)
        occupied = (count > 1e-10)[:, None]
        means = torch.where(occupied, moments[:, :-1, -1] / some[:, None], current.means)
        scatter = moments[:, :-1, :-1] - count[:, None, None] * means[:, :, None] * means[:, None, :]
        if self.tied:
            covariances = (scatter.sum(0) / count.sum()).expand_as(scatter)
        elif self.covariance_pseudo_count:
            covariances = self._shrunk(scatter, some, current)
        else:
            covariances = torch.where(occupied[:, :, None], scatter / some[:, None, None], current.covariances)
        weights = count + self.weight_pseudo_count
        log_weights = torch.zeros_like(weights) if self.known else (weights / weights.sum()).log()
        return LatentComponents(log_weights, means, (covariances + covariances.mT) / 2)

    def _shrunk(self, scatter: Tensor, count: Tensor, current: LatentComponents) -> Tensor:
        """S_c, by turns with B: each turn raises the objective, and what is left to gain shrinks by nu / (N_c + nu)."""
        nu, precision = self.covariance_pseudo_count, current.precision
        for _ in range(_TURNS):
            common = torch.cholesky_inverse(factorize(precision.mean(0)))
            covariances = (scatter + nu * common) / (count + nu)[:, None, None]
            precision = torch.cholesky_inverse(factorize(covariances))
        return covariances

    def admit(self, components: LatentComponents) -> LatentComponents:
        """The nearest components of the form asked for, as a start."""
        if not self.tied:
            return components
        pooled = torch.einsum("c,ckl->kl", components.log_weights.softmax(0), components.covariances)
        return LatentComponents(components.log_weights, components.means, pooled.expand_as(components.covariances))

    def log_prior(self, components: LatentComponents) -> float:
        """Log density of the components under the prior, up to a constant; nats."""
        value = 0.0
        if self.weight_pseudo_count and not self.known:
            value += self.weight_pseudo_count * float(components.log_weights.sum())
        if self.covariance_pseudo_count and not self.tied:
            half_logdets = components.factor.diagonal(dim1=-2, dim2=-1).log().sum()
            half_common = factorize(components.precision.mean(0)).diagonal().log().sum()
            value -= self.covariance_pseudo_count * float(half_logdets + len(components.means) * half_common)
        return value


def standardize(
    parameters: Parameters, components: LatentComponents, shares: Tensor
) -> tuple[Parameters, LatentComponents]:
    """Move the latent so that the prior as a whole has mean 0 and covariance I; no density of the data changes.

    Args:
        parameters: loadings and intercepts take up the move.
        components: the prior.
        shares: (C,) the weight of each component, summing to 1.
    """
    mean = shares @ components.means
    spread = components.means - mean
    covariance = torch.einsum("c,ckl->kl", shares, components.covariances) + spread.mT @ (spread * shares[:, None])
    factor = factorize(covariance)
    moved = Parameters(
        parameters.loadings @ factor, parameters.intercepts + parameters.loadings @ mean, parameters.noise_variance
    )
    return moved, components.moved(mean, factor)


def components_of_labels(
    given: Posterior, labels: Tensor, num_components: int, model: ComponentModel
) -> LatentComponents:
    """Components from labels of the instances, as a start: one M-step on the posterior under a single Gaussian.

    Args:
        given: the posterior of the latents.
        labels: (N,) int64, from 0 to C - 1.
        num_components: C.
        model: what is asked of the components.
    """
    latent_dim, patterns = given.mean.shape[1], len(given.patterns)
    mean = given.mean.double()
    first = mean.new_zeros(num_components, latent_dim).index_add_(0, labels, mean)
    cells = torch.bincount(labels * patterns + given.pattern_index, minlength=num_components * patterns)
    counts = cells.view(num_components, patterns).double()
    second = (counts @ given.pattern_covariance.double().flatten(1)).view(num_components, latent_dim, latent_dim)
    for c in range(num_components):
        rows = mean[labels == c]
        second[c] += rows.mT @ rows
    moments = torch.cat([second, first[:, :, None]], dim=2)
    last = torch.cat([first, counts.sum(1, keepdim=True)], dim=1)
    moments = torch.cat([moments, last[:, None]], dim=1)
    prior = given.linear_gaussian
    repeated = prior.prior_covariance.double().expand(num_components, -1, -1)
    current = LatentComponents(
        first.new_zeros(num_components), prior.prior_mean.double().expand(num_components, -1), repeated
    )
    return model.maximize(moments, current)
