"""Classes by regression on the latent: where latents outnumber the rows, class means along all of them are too rough.

Coefficients of labels on posterior means, p(c | z) = softmax(b_c^T z + a_c), with the prior

    b_c ~ N(0, v D),    D = sum_m W^mT W^m / s_m,    of mean diagonal 1,    s_m = tr Cov[x^m] / D_m

(of two classes that of b_2 - b_1), so that a latent counts as much as the data that it explains, in units in which
features of all modalities have variance 1 on average: that is ridge regression on the features, in the latent. Class
Gaussians with the same log odds in z, and the mean 0 and covariance I that the fitted model gives z over all classes,
are those of

    m_c = S b_c,    S = I - sum_c pi_c m_c m_c^T,    sum_c pi_c m_c = 0

With sqrt(pi_c) b_c = sum_i u_ci b_i v_i^T (singular values b_i), m_c has s_i = (sqrt(1 + 4 b_i^2) - 1) / (2 b_i) in
place of b_i and S has 1 - s_i^2 along v_i, 1 elsewhere. So it is still a mixture with one Gaussian of the latent per
class, exact for whatever an instance has.

Sources: Hastie, Tibshirani & Friedman, The elements of statistical learning (2009), sections 4.3 and 4.4; Efron, The
efficiency of logistic regression compared to normal discriminant analysis (1975), for the two ways to the same odds.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian import LinearGaussian, Posterior
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents
from calmrl_prob.linear_gaussian.posterior import factorize

#: Steps of the regression, and the size of a gradient that ends them.
_STEPS, _TOLERANCE = 300, 1e-3
#: What D has at least along every direction.
_LEAST_SHARE = 1e-6


def explained(lg: LinearGaussian) -> Tensor:
    """D, (K, K): shares of the variance of the data that latents explain, of mean diagonal 1.

    Args:
        lg: a model with prior N(0, I) and diagonal noise.
    """
    identity = torch.eye(lg.latent_dim, dtype=lg.dtype, device=lg.device)
    shares = torch.zeros_like(identity)
    for name, loadings in lg.loadings.items():
        variance = (loadings.square().sum(1) + lg.noise_variance[name]).mean()
        shares += loadings.mT @ loadings / variance
    return shares / shares.diagonal().mean().clamp(min=torch.finfo(lg.dtype).tiny) + _LEAST_SHARE * identity


def class_coefficients(given: Posterior, labels: Tensor, num_classes: int, variance: float) -> Tensor:
    """b_c, (C, K), of multinomial logistic regression on posterior means; 0 of classes that no instance is of.

    Args:
        given: the posterior under a model with prior N(0, I).
        labels: (N,) int64, from 0 to C - 1; -1 where it is not known.
        num_classes: C.
        variance: v, positive.
    """
    from sklearn.exceptions import ConvergenceWarning  # sklearn takes longer to load than most fits to rows in memory
    from sklearn.linear_model import LogisticRegression

    known = (labels >= 0).nonzero().squeeze(1)
    out = given.mean.new_zeros(num_classes, given.mean.shape[1])
    kinds = labels[known].unique()
    if len(kinds) < 2:
        return out
    factor = factorize(explained(given.linear_gaussian))
    seen = (given.mean[known] @ factor).cpu().numpy()
    model = LogisticRegression(C=variance, max_iter=_STEPS, tol=_TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # held-out labels judge it as it is
        found = torch.as_tensor(model.fit(seen, labels[known].cpu().numpy()).coef_).to(out)
    if len(kinds) == 2:  # of the second class against the first
        found = torch.cat([-found, found]) / 2
    out[kinds] = found @ factor.mT
    return out


def consistent_classes(coefficients: Tensor, counts: Tensor, most: int) -> tuple[Tensor, LatentComponents]:
    """Directions and class Gaussians with such log odds, whose mixture has mean 0 and covariance I.

    Args:
        coefficients: b_c, (C, K).
        counts: labelled instances of each class, (C,); weights have one pseudo-instance more in each.
        most: R at most, the leading directions.

    Returns:
        U, (K, R), and the classes along it.
    """
    weights = (counts + 1) / (counts + 1).sum()
    root = weights.sqrt()[:, None]
    left, size, right = torch.linalg.svd((coefficients - weights @ coefficients) * root, full_matrices=False)
    left, size, right = left[:, :most], size[:most], right[:most]
    shrunk = 2 * size / (1 + (1 + 4 * size.square()).sqrt())
    covariance = torch.diag(shrunk / size.clamp(min=torch.finfo(size.dtype).tiny))  # 1 - s^2 = s / b
    covariance[shrunk == 0] = torch.eye(len(size), dtype=size.dtype, device=size.device)[shrunk == 0]
    means = left * shrunk / root
    return right.mT, LatentComponents(weights.log(), means, covariance.expand(len(means), -1, -1).contiguous())
