"""The log evidence of data under a mixture prior as a function of the parameters, to be called again and again.

    log p(x | W, mu, psi, pi, m, S) = sum_n log sum_c pi_c p(x_n | c)

The gradient comes in closed form with the value, by Fisher's identity, from the moments of one E-step: with n_c, s_c
and Q_c the sums over instances of r_nc, r_nc E[z | c] and r_nc E[zz^T | c],

    d / d log pi_c = n_c                            (pi not normalised)
    d / d m_c      = S_c^-1 (s_c - n_c m_c)
    d / d S_c      = 1/2 S_c^-1 (R_c - n_c S_c) S_c^-1,      R_c = Q_c - m_c s_c^T - s_c m_c^T + n_c m_c m_c^T

and for loadings, intercepts and noise as with a single Gaussian (``curvature/evidence.py``). Autograd through the
posterior of every instance finds the same at several times the cost.

Source: Louis, Finding the observed information matrix when using the EM algorithm (1982), for the identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.forms import ROW_FORMS, prepare
from calmrl_prob.linear_gaussian.em.maximization import likelihood_gradient
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.mixture.expectation import LatentComponents, MixtureStep
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture
from calmrl_prob.linear_gaussian.mixture.posterior import mixture_posterior
from calmrl_prob.linear_gaussian.structure import LinearGaussian


class MixtureEvidence:
    """The log evidence of fixed data under mixtures, prepared once for many parameters.

    Args:
        blocks: N instances, modalities as in the mixtures.
        latent_dim: K.
        evaluations: how many calls to expect, which weighs the forms of the E-step.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian
        >>> blocks = ObservedBlocks.from_arrays({"x": torch.ones(5, 2).double()}, torch.ones(5, 1, dtype=torch.bool))
        >>> lg = LinearGaussian({"x": torch.ones(2, 1).double()}, {"x": torch.zeros(2).double()},
        ...                     {"x": torch.ones(2).double()})
        >>> means = torch.tensor([[-2.0], [2.0]], dtype=torch.float64, requires_grad=True)
        >>> two = LinearGaussianMixture.from_prior(lg, torch.zeros(2).double(), means, torch.ones(2, 1, 1).double())
        >>> value = MixtureEvidence(blocks, latent_dim=1)(two)
        >>> torch.allclose(value, mixture_posterior(two, blocks).log_marginal.sum())
        True
        >>> value.backward()
        >>> [round(float(part), 2) for part in means.grad]  # drawn to where the data are
        [0.65, -3.12]
    """

    def __init__(self, blocks: ObservedBlocks | FeatureBlocks, latent_dim: int, evaluations: int = 200) -> None:
        self._blocks = blocks
        self._prepared = prepare(blocks, latent_dim, iterations=evaluations, forms=ROW_FORMS)

    def __call__(self, mixture: LinearGaussianMixture) -> Tensor:
        """log p(x), nats, () float64; gradients flow to all parameters, and second ones by autograd.

        Raises:
            NumericalError: a covariance or precision is not positive definite.
        """
        if not mixture.shares_likelihood:  # the moments of the E-step are of one likelihood
            return mixture_posterior(mixture, self._blocks).log_marginal.sum()
        first = mixture.components[0]
        parts = (first.loadings, first.intercepts, first.noise_variance)
        stacked = [torch.cat(list(part.values())).double() for part in parts]
        prior = (mixture.log_weights, mixture.means, mixture.covariances)
        value: Tensor = _LogEvidence.apply(self, *stacked, *(part.double() for part in prior))  # type: ignore[no-untyped-call]
        return value

    def moments(self, inputs: tuple[Tensor, ...]) -> tuple[float, tuple[Tensor, ...]]:
        """The evidence, and its gradient by each of the inputs, from one E-step."""
        loadings, intercepts, noise, *prior = inputs
        parameters = Parameters(loadings, intercepts - self._prepared.shift, noise)
        components, rowwise = LatentComponents(*prior), self._prepared.rows()
        step = MixtureStep.of_mixture(rowwise, len(components.log_weights), self._blocks.num_patterns)
        found = step(parameters, components)
        gradient = likelihood_gradient(rowwise, parameters, found.likelihood)
        return found.likelihood.log_likelihood, (*gradient, *_gradient_of_prior(components, found.components))

    def differentiable(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The same value by differentiable operations alone."""
        widths = self._prepared.step.shape.dims
        loadings, intercepts, noise = (
            dict(zip(widths, part.split(list(widths.values())), strict=True)) for part in inputs[:3]
        )
        mixture = LinearGaussianMixture.from_prior(LinearGaussian(loadings, intercepts, noise), *inputs[3:])
        # weights are normalised on the way: give back what that takes, which is 0 but not its derivative
        total = self._blocks.num_instances * inputs[3].logsumexp(0)
        return mixture_posterior(mixture, self._blocks).log_marginal.sum() + total


class _LogEvidence(torch.autograd.Function):
    """The evidence, with its gradient from the same moments."""

    @staticmethod
    def forward(ctx: Any, evidence: MixtureEvidence, *inputs: Tensor) -> Tensor:  # noqa: ANN401 - torch has no type for it
        value, gradient = evidence.moments(inputs)
        if any(ctx.needs_input_grad):
            ctx.evidence = evidence
            ctx.save_for_backward(*inputs, *gradient)
        return inputs[0].new_tensor(value)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        half = len(ctx.saved_tensors) // 2
        inputs, gradient = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated: let autograd find it
            wanted = [part for part in inputs if part.requires_grad]
            found = iter(torch.autograd.grad(ctx.evidence.differentiable(inputs), wanted, create_graph=True))
            gradient = [next(found) if part.requires_grad else torch.zeros_like(part) for part in inputs]
        return None, *(grad_output * part for part in gradient)


def _gradient_of_prior(components: LatentComponents, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By log pi (C,), m (C, K) and S (C, K, K), from the moments (C, K + 1, K + 1) of each component."""
    count, first, second = moments[:, -1, -1], moments[:, :-1, -1], moments[:, :-1, :-1]
    means, precision = components.means, components.precision
    away = first - count[:, None] * means
    outer = means[:, :, None] * first[:, None, :]
    about = second - outer - outer.mT + count[:, None, None] * means[:, :, None] * means[:, None, :]
    by_covariance = 0.5 * precision @ (about - count[:, None, None] * components.covariances) @ precision
    return count, (precision @ away[:, :, None]).squeeze(2), by_covariance
