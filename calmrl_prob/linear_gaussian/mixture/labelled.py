"""Gaussians of the latent for classes that some instances are known to be of: exact likelihood ratios, and their EM.

The likelihood is that of a fitted model with latents z ~ N(0, I), and stays as it is. Of class c, R directions U of z
have a Gaussian of their own, and the rest goes on as it was:

    u = U^T z,    u | c ~ N(m_c, S_c)
    p(x_n | c) / p(x_n) = E[ N(u; m_c, S_c) / N(u; 0, I) | x_n ]

With u | x_n ~ N(T_n eta_n, T_n) under the fitted model, and T_n^-1 = I + L_n, which depend on the missing pattern,

    log ratio = 1/2 ( h^T P^-1 h - logdet P - m_c^T S_c^-1 m_c - logdet S_c ) - 1/2 ( eta^T T eta + logdet T )
    P = S_c^-1 + L_n,   h = S_c^-1 m_c + eta_n

so that all is R-dimensional, however wide the data and the latent are. EM with labels: an instance with a known class
counts in it, others by p(c | x_n). The M-step has kappa pseudo-instances of each class at the mean of all, 0, and nu
that draw its covariance to what all classes have in common (``maximization.py``); together they raise

    log p(x, known classes) - kappa/2 sum_c m_c^T S_c^-1 m_c + log prior of weights and covariances

Sources: McLachlan & Peel, Finite Mixture Models (2000), section 2.19, for partially classified data; Hastie &
Tibshirani, Discriminant analysis by Gaussian mixtures (1996), for a subspace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents
from calmrl_prob.linear_gaussian.mixture.maximization import ComponentModel
from calmrl_prob.linear_gaussian.posterior import Posterior, factorize
from calmrl_prob.linear_gaussian.structure import LinearGaussian

#: Numbers that the (rows, R, R) and (C, rows, R) arrays of a chunk of rows may hold.
_BUDGET = 2**22
#: The smallest variance that a direction of z given all of an instance counts as having: beyond it rounding speaks.
_LEAST_VARIANCE = 1e-9


def standardized(linear_gaussian: LinearGaussian) -> LinearGaussian:
    """The same density of the data in float64, with all correlation as latents of their own, of prior N(0, I)."""
    wide = linear_gaussian.to(torch.float64).expanded()
    factor, names = factorize(wide.prior_covariance), wide.names
    loadings = {name: wide.loadings[name] @ factor for name in names}
    intercepts = {name: wide.intercepts[name] + wide.loadings[name] @ wide.prior_mean for name in names}
    return LinearGaussian(loadings, intercepts, wide.noise_variance, feature_names=wide.feature_names)


def class_directions(given: Posterior, labels: Tensor, num_classes: int, count: int, pseudo_count: float) -> Tensor:
    """Directions of the latent along which classes differ most.

    With z_n | c ~ N(m_c, I) and m_c ~ N(0, I / a), the class means given the labelled instances are

        m_c = (a I + sum_n (I - V_n))^-1 sum_n E[z_n | x_n]

    an instance that lacks modalities counting only where it tells something. The directions are the leading left
    singular vectors of the means about their own mean, weighted by the square roots of the numbers of instances.

    Args:
        given: the posterior under a model with prior N(0, I).
        labels: (N,) int64, from 0 to C - 1; -1 where it is not known.
        num_classes: C.
        count: R, at most C - 1 or K.
        pseudo_count: a, positive.

    Returns:
        U, (K, R), orthonormal.
    """
    mean, patterns = given.mean, len(given.patterns)
    known = (labels >= 0).nonzero().squeeze(1)
    classes, index = labels[known], given.pattern_index[known]
    sums = mean.new_zeros(num_classes, mean.shape[1]).index_add_(0, classes, mean[known])
    cells = torch.bincount(classes * patterns + index, minlength=num_classes * patterns)
    counts = cells.view(num_classes, patterns).to(mean.dtype)
    identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    covariance = given.pattern_covariance.flatten(1)
    means = torch.empty_like(sums)
    for c, row in enumerate(counts):
        precision = (pseudo_count + row.sum()) * identity - (row @ covariance).view_as(identity)
        means[c] = torch.cholesky_solve(sums[c, :, None], factorize(precision)).squeeze(1)
    size = counts.sum(1)
    centred = (means - size @ means / size.sum()) * size.sqrt()[:, None]
    right: Tensor = torch.linalg.svd(centred, full_matrices=False).Vh
    return right[:count].mT


def direction_covariance(covariance: Tensor, directions: Tensor) -> Tensor:
    """Cov[u], (..., R, R), of Cov[z], (..., K, K), and U, (K, R)."""
    identity = torch.eye(directions.shape[1], dtype=directions.dtype, device=directions.device)
    return directions.mT @ covariance @ directions + _LEAST_VARIANCE * identity


@dataclass(frozen=True)
class DirectionEvidence:
    """Evidence of instances about the directions u of their latents, under the fitted model.

    Attributes:
        natural: eta_n, (N, R).
        precision: L_p = T_p^-1 - I of each missing pattern, (P, R, R).
        constant: -1/2 (eta^T T eta + logdet T) of each instance, (N,), nats.
        pattern_index: (N,) int64.
    """

    natural: Tensor
    precision: Tensor
    constant: Tensor
    pattern_index: Tensor

    @classmethod
    def of(cls, given: Posterior, directions: Tensor) -> DirectionEvidence:
        """Of a posterior under a model with prior N(0, I), along U (K, R)."""
        covariance = direction_covariance(given.pattern_covariance, directions)
        return cls.at(given.mean @ directions, covariance, given.pattern_index)

    @classmethod
    def at(cls, mean: Tensor, covariance: Tensor, pattern_index: Tensor) -> DirectionEvidence:
        """Of E[u | x_n], (N, R), and Cov[u | x_n] of each missing pattern, (P, R, R), under the fitted model."""
        factor = factorize(covariance)
        total = torch.cholesky_inverse(factor)
        natural = (total[pattern_index] @ mean[:, :, None]).squeeze(2)
        half_logdet = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = -0.5 * (natural * mean).sum(1) - half_logdet[pattern_index]
        identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        return cls(natural, total - identity, constant, pattern_index)

    def subset(self, rows: Tensor) -> DirectionEvidence:
        """Some of the instances."""
        return DirectionEvidence(self.natural[rows], self.precision, self.constant[rows], self.pattern_index[rows])

    def by_pattern(self, numbers: int) -> Iterator[tuple[int, Tensor]]:
        """Patterns with their instances, in chunks of so many numbers an instance."""
        for pattern in range(len(self.precision)):
            rows = (self.pattern_index == pattern).nonzero().squeeze(1)
            for chunk in rows.split(max(1, _BUDGET // max(1, numbers))):
                if len(chunk):
                    yield pattern, chunk

    def log_ratios(self, classes: LatentComponents) -> Tensor:
        """log p(x_n | c) - log p(x_n), (N, C), nats; the weights of the classes are left out."""
        out = self.natural.new_empty(len(self.natural), len(classes.means))
        for pattern, rows in self.by_pattern(classes.means.numel()):
            factor = factorize(classes.precision + self.precision[pattern])
            natural = self.natural[rows] + classes.natural[:, None]  # (C, n, R)
            half = torch.linalg.solve_triangular(factor, natural.mT, upper=False)
            scale = classes.constant - classes.log_weights - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            out[rows] = (scale[:, None] + 0.5 * half.square().sum(1)).mT + self.constant[rows, None]
        return out


@dataclass(frozen=True)
class LabelledMoments:
    """Moments that the M-step needs.

    Attributes:
        moments: (C, R + 1, R + 1), sum of r_nc E[u u^T | c] for u augmented by a 1.
        evidence: log p(x, known classes) less the fitted model's log p(x), nats.
    """

    moments: Tensor
    evidence: float


@dataclass(frozen=True)
class LabelledEM:
    """EM of class Gaussians.

    Attributes:
        evidence: what the instances tell.
        labels: (N,) int64; -1 where the class is not known.
        model: of weights and covariances.
        mean_pseudo_count: kappa.
    """

    evidence: DirectionEvidence
    labels: Tensor
    model: ComponentModel
    mean_pseudo_count: float

    def start(self, num_classes: int) -> LatentComponents:
        """Every class as the fitted model has the latent; the first M-step looks at known classes alone."""
        width = self.evidence.natural.shape[1]
        means = self.evidence.natural.new_zeros(num_classes, width)
        weights = means.new_full((num_classes,), 1 / num_classes).log()
        first = LatentComponents(
            weights, means, torch.eye(width, dtype=means.dtype).to(means).repeat(num_classes, 1, 1)
        )
        known = (self.labels >= 0).nonzero().squeeze(1)
        if not len(known):
            return first
        part = LabelledEM(self.evidence.subset(known), self.labels[known], self.model, self.mean_pseudo_count)
        return part.maximize(part.expect(first), first)

    def expect(self, classes: LatentComponents) -> LabelledMoments:
        """The E-step: exact moments of u, the class known or not."""
        known, evidence = self.labels >= 0, self.evidence
        count, width = classes.means.shape
        first, second = torch.zeros_like(classes.means), torch.zeros_like(classes.covariances)
        total, terms = first.new_zeros(count), torch.empty_like(evidence.constant)
        for pattern, rows in evidence.by_pattern(width**2 + count * width):
            factor = factorize(classes.precision + evidence.precision[pattern])
            covariance = torch.cholesky_inverse(factor)
            scale = classes.constant - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            own = rows[known[rows]]
            for c in self.labels[own].unique().tolist():  # a known class needs no look at the others
                some = own[self.labels[own] == c]
                natural = evidence.natural[some] + classes.natural[c]
                mean = natural @ covariance[c]
                terms[some] = scale[c] + 0.5 * (natural * mean).sum(1)
                first[c] += mean.sum(0)
                second[c] += mean.mT @ mean + len(some) * covariance[c]
                total[c] += len(some)
            rest = rows[~known[rows]]
            if len(rest):
                natural = evidence.natural[rest] + classes.natural[:, None]  # (C, n, R)
                mean = natural @ covariance
                score = scale[:, None] + 0.5 * (natural * mean).sum(2)
                terms[rest], share = score.logsumexp(0), score.softmax(0)
                weighted = mean * share[:, :, None]
                first += weighted.sum(1)
                second += weighted.mT @ mean + share.sum(1)[:, None, None] * covariance
                total += share.sum(1)
        last = torch.cat([first, total[:, None]], dim=1)
        moments = torch.cat([torch.cat([second, first[:, :, None]], dim=2), last[:, None]], dim=1)
        return LabelledMoments(moments, float((terms + evidence.constant).sum()))

    def maximize(self, found: LabelledMoments, current: LatentComponents) -> LatentComponents:
        """The M-step."""
        kappa, moments = self.mean_pseudo_count, found.moments.clone()
        count, first = moments[:, -1, -1], moments[:, :-1, -1]
        means = first / (count + kappa).clamp(min=torch.finfo(count.dtype).tiny)[:, None]
        outer = means[:, :, None] * first[:, None, :]
        spread = (2 * count + kappa)[:, None, None] * means[:, :, None] * means[:, None, :]
        moments[:, :-1, :-1] += spread - outer - outer.mT  # about the shrunk means, with what shrinking them costs
        moments[:, :-1, -1] = count[:, None] * means
        return self.model.maximize(moments, current)

    def objective(self, found: LabelledMoments, classes: LatentComponents) -> float:
        """The value that no step lowers, nats."""
        penalty = 0.5 * self.mean_pseudo_count * float((classes.natural * classes.means).sum())
        return found.evidence + self.model.log_prior(classes) - penalty

    def fit(self, num_classes: int, max_iterations: int = 100, tolerance: float = 1e-4) -> LatentComponents:
        """Steps until one gains less than ``tolerance`` nats an instance."""
        classes = self.start(num_classes)
        found = self.expect(classes)
        reached = self.objective(found, classes)
        for _ in range(max_iterations):
            classes = self.maximize(found, classes)
            found = self.expect(classes)
            before, reached = reached, self.objective(found, classes)
            if reached - before < tolerance * len(self.labels):
                break
        return classes


def predictive_classes(classes: LatentComponents, counts: Tensor, mean_pseudo_count: float) -> LatentComponents:
    """The classes as new instances have them: covariances wider by what the means' own uncertainty, S_c / n_c, adds."""
    wider = 1 + 1 / (counts + mean_pseudo_count).clamp(min=1.0)
    return LatentComponents(classes.log_weights, classes.means, classes.covariances * wider[:, None, None])
