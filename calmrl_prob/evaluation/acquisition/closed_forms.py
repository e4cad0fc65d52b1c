"""Expected gains in closed form: of Gaussian posteriors, and of multivariate t ones with one scale for all.

With P_Omega the posterior precision of a missing pattern, A_m what modality m adds to it, and t a target:

    I(z; x^m | x_Omega)   = 1/2 (logdet(P_Omega + A_m) - logdet P_Omega)
    I(x^t; x^m | x_Omega) = I(z; x^m | x_Omega) + I(z; x^t | x_Omega) - I(z; x^m, x^t | x_Omega)
    trace drop            = tr W_t (P_Omega^-1 - (P_Omega + A_m)^-1) W_t^T

all K-dimensional, once for each pattern. If all of an instance is multivariate t with nu degrees of freedom, a and b
numbers of dimensions, then with H(p) = nu/2-terms of the entropy of p dimensions,

    I_t(a; b) = I_Gauss(a; b) + H(a) + H(b) - H(a + b)
    H(p) = lgamma(nu/2) - lgamma((nu + p)/2) + (nu + p)/2 (digamma((nu + p)/2) - digamma(nu/2))

Sources: Cover & Thomas, Elements of Information Theory (2006); Kotz & Nadarajah, Multivariate t Distributions and Their
Applications (2004), section 1.11, for the entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.evaluation.acquisition.question import Gains, Question
from calmrl_prob.inference.exact.process import GaussianProcessPosterior
from calmrl_prob.linear_gaussian import LinearGaussian, Posterior
from calmrl_prob.linear_gaussian.posterior import assemble_precision, factorize, modality_precisions
from calmrl_prob.linear_gaussian.structure import solve_noise
from calmrl_prob.linear_gaussian.unseen import information_gain, unseen_features, unseen_products
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.student_t import StudentTResult

#: Numbers that the (p, K, K) arrays of a chunk of patterns may hold.
_CHUNK_BUDGET = 2**22


def gaussian_gains(given: GaussianPosterior, question: Question) -> Gains:
    """Gains under a Gaussian posterior: closed form, one set of K x K products for each missing pattern."""
    return _by_pattern(given.exact, question, latent_dim=given.latent_dim)


def student_t_gains(given: StudentTResult, question: Question) -> Gains:
    """Gains under the Student-t model with one scale for all of an instance: closed form.

    The expected drop of the trace is that of the Gaussian model times E[1 / u_n | x_n], by the law of total variance.
    """
    exact = given.exact
    gains = _by_pattern(exact.gaussian, question, latent_dim=exact.gaussian.linear_gaussian.latent_dim)
    lg, patterns, index = exact.gaussian.linear_gaussian, exact.gaussian.patterns, exact.gaussian.pattern_index
    missing = {name: unseen_features(lg, patterns, name).sum(1)[index].double() for name in question.names}
    freedom, inflation = exact.degrees_of_freedom.double(), exact.inflation.double()
    for column, name in enumerate(question.names):
        rows = question.rows(name)
        here = torch.full_like(missing[name], lg.latent_dim) if question.target is None else missing[question.target]
        gains.information[rows, column] += _beyond_gaussian(freedom[rows], missing[name][rows], here[rows])
    gains.trace_drop.mul_(inflation[:, None])
    return gains


def process_gains(given: GaussianProcessPosterior, question: Question) -> Gains:
    """Gains under a Gaussian-process prior, about the instance's own latents: Gaussian, with a covariance by row."""
    gains = Gains.empty(question, "exact")
    lg = given.linear_gaussian.detach().to(torch.float64)
    covariance = given.covariance.double()
    for rows in torch.arange(len(covariance), device=covariance.device).split(
        max(1, _CHUNK_BUDGET // lg.latent_dim**2)
    ):
        precision = torch.cholesky_inverse(factorize(covariance[rows]))
        part = question.of(rows)
        for column, name in enumerate(question.names):
            asked = part.rows(name)
            if len(asked):
                found = _of_patterns(lg, part.present[asked], precision[asked], name, question.target, lg.latent_dim)
                gains.put(rows[asked], column, *found)
    return gains


def _beyond_gaussian(freedom: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """H(a) + H(b) - H(a + b), (n,): what the shared scale makes two parts of a multivariate t tell of each other."""

    def entropy(dims: Tensor) -> Tensor:
        half, more = freedom / 2, (freedom + dims) / 2
        found: Tensor = torch.lgamma(half) - torch.lgamma(more) + more * (torch.digamma(more) - torch.digamma(half))
        return found

    return (entropy(one) + entropy(other) - entropy(one + other)).clamp(min=0)


def _by_pattern(exact: Posterior, question: Question, latent_dim: int) -> Gains:
    gains = Gains.empty(question, "exact")
    lg = exact.linear_gaussian.detach().to(torch.float64)
    step = max(1, _CHUNK_BUDGET // lg.latent_dim**2)
    for start in range(0, len(exact.patterns), step):
        chosen = slice(start, start + step)
        precision = pattern_precisions(exact, lg, chosen)
        inside = (exact.pattern_index >= start) & (exact.pattern_index < start + step)
        for column, name in enumerate(question.names):
            rows = question.rows(name)
            rows = rows[inside[rows]]
            if not len(rows):
                continue
            information, drop = _of_patterns(lg, exact.patterns[chosen], precision, name, question.target, latent_dim)
            index = exact.pattern_index[rows] - start
            gains.put(rows, column, information[index], None if drop is None else drop[index])
    return gains


def pattern_precisions(exact: Posterior, lg: LinearGaussian, chosen: slice) -> Tensor:
    """P of some patterns, (p, K, K) float64; as exact as that, whatever type the model came in, for whole modalities.

    Args:
        exact: the posterior.
        lg: its model in float64.
        chosen: patterns.
    """
    if exact.patterns.shape[1] == len(lg.names):
        return assemble_precision(exact.patterns[chosen], modality_precisions(lg))
    return exact.precision_of(chosen).double()


def added_precision(lg: LinearGaussian, patterns: Tensor, name: str) -> Tensor:
    """A_R of the features R of a modality that each pattern lacks, (P, K, K)."""
    unseen = unseen_features(lg, patterns, name)
    found = unseen_products(lg.loadings[name], 1 / lg.noise_variance[name], unseen)
    if lg.correlated_noise(name) is not None:  # single features missing have such noise as latents of its own
        found[unseen.all(1)] = lg.loadings[name].mT @ solve_noise(lg, name, lg.loadings[name])
    return found


def _of_patterns(
    lg: LinearGaussian, patterns: Tensor, precision: Tensor, name: str, target: str | None, latent_dim: int
) -> tuple[Tensor, Tensor | None]:
    """Information (p,) and drop of the trace (p,)."""
    added = added_precision(lg, patterns, name)
    if target is None:
        return information_gain(precision, added, latent_dim), None
    wanted = added_precision(lg, patterns, target)
    information = information_gain(precision, added) + information_gain(precision, wanted)
    information = information - information_gain(precision, added + wanted)
    loadings = lg.loadings[target]
    squares = unseen_products(loadings, torch.ones_like(loadings[:, 0]), unseen_features(lg, patterns, target))
    return information, trace_after(precision, squares) - trace_after(precision + added, squares)


def trace_after(precision: Tensor, squares: Tensor) -> Tensor:
    """tr(W P^-1 W^T) from W^T W, (p,)."""
    solved = torch.cholesky_solve(squares, factorize(precision))
    return solved.diagonal(dim1=-2, dim2=-1).sum(-1)
