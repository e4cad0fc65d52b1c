"""The total log evidence of data as a function of the parameters, to be called again and again with its gradient.

    log p(x | W, mu, psi, m0, S0) = sum_n log p(x_n)

For a pattern with stacked features x, the evidence of all its rows depends on their augmented scatter T_p alone: from
``SufficientStatistics`` a call costs one K x K factorisation and one D_p x D_p x K product for each pattern, however
many rows there were. The gradient comes in closed form with the value, by Fisher's identity: it is the expectation of
the complete-data gradient, in which the E-step's moments are all there is,

    d / d [W, mu]^m = Psi^m^-1 (sum x E[z~]^T - [W, mu]^m sum E[z~ z~^T])            z~ = [z; 1], rows that have m
    d / d psi_d     = (sum E[(x_d - w~_d^T z~)^2] / psi_d - n_d) / (2 psi_d)

taken at the parameters for a standard normal prior, W L and mu + W m0 with S0 = L L^T; autograd does the rest of the
chain. Source: Louis, Finding the observed information matrix when using the EM algorithm (1982), for the identity.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from calmrl_prob.errors import ArgumentError, SchemaError
from calmrl_prob.linear_gaussian.blocks import FeatureBlocks, ObservedBlocks
from calmrl_prob.linear_gaussian.em.forms import Prepared, prepare
from calmrl_prob.linear_gaussian.em.maximization import likelihood_gradient
from calmrl_prob.linear_gaussian.em.parameters import Parameters
from calmrl_prob.linear_gaussian.em.statistics import SufficientStatistics, pattern_features
from calmrl_prob.linear_gaussian.posterior import assemble_precision, factorize, log_marginal
from calmrl_prob.linear_gaussian.structure import LinearGaussian


class Evidence:
    """The log evidence of fixed data, prepared once for many parameters.

    Args:
        data: the observed rows, or their sufficient statistics.
        latent_dim: K.
        form: how a call works: "statistics" at a cost that does not grow with N, "modality" or "pattern" over the rows,
            or "auto" to choose by cost. All give the same numbers.
        evaluations: how many calls to expect; weighs the one pass that statistics take when the form is chosen.

    Attributes:
        form: the form that is used.
        num_values: how many numbers are observed.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks, log_marginal
        >>> blocks = ObservedBlocks.from_arrays({"x": torch.ones(5, 2).double()}, torch.ones(5, 1, dtype=torch.bool))
        >>> loadings = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
        >>> lg = LinearGaussian({"x": loadings}, {"x": torch.zeros(2).double()}, {"x": torch.ones(2).double()})
        >>> value = Evidence(blocks, latent_dim=1)(lg)
        >>> torch.allclose(value, log_marginal(lg, blocks).sum())
        True
        >>> value.backward()
        >>> loadings.grad.squeeze(1).tolist()
        [-0.556, -0.556]
    """

    def __init__(
        self,
        data: ObservedBlocks | FeatureBlocks | SufficientStatistics,
        latent_dim: int,
        *,
        form: str = "auto",
        evaluations: int = 1000,
    ) -> None:
        self._prepared = prepare(data, latent_dim, form, evaluations)
        self.latent_dim = latent_dim
        self.form = self._prepared.form
        self.num_values = int(self._prepared.step.feature_count.sum())

    def __call__(self, linear_gaussian: LinearGaussian) -> Tensor:
        """log p(x), in nats: a float64 scalar through which gradients flow to all parameters.

        Second derivatives flow too, by autograd, at several times the cost.

        Raises:
            SchemaError: other modalities, widths or order of modalities than the data have.
            ArgumentError: another K.
            NumericalError: a precision is not positive definite.
        """
        dims = self._prepared.step.shape.dims
        if list(linear_gaussian.dims.items()) != list(dims.items()):
            raise SchemaError(
                f"linear_gaussian: expected the data's modalities {dict(dims)} in this order, got "
                f"{linear_gaussian.dims}; linear_gaussian.select puts them in order."
            )
        if linear_gaussian.latent_dim != self.latent_dim:
            raise ArgumentError(
                f"linear_gaussian: expected {self.latent_dim} latents, got {linear_gaussian.latent_dim}; make another "
                "Evidence for it."
            )
        if linear_gaussian.dtype != torch.float64:
            linear_gaussian = linear_gaussian.to(torch.float64)
        parameters = Parameters.from_linear_gaussian(linear_gaussian, self._prepared.shift)
        if parameters.noise_factor is not None:
            return _by_autograd(self._prepared, parameters)
        stacked = (parameters.loadings, parameters.intercepts, parameters.noise_variance)
        value: Tensor = _LogEvidence.apply(self._prepared, *stacked)  # type: ignore[no-untyped-call]
        return value

    def __repr__(self) -> str:
        """One line."""
        return f"Evidence({self.num_values} values; latent_dim={self.latent_dim}, form={self.form!r})"


def log_evidence(
    linear_gaussian: LinearGaussian, data: ObservedBlocks | FeatureBlocks | SufficientStatistics
) -> Tensor:
    """The total log evidence of data, in nats, once; for many parameters keep an :class:`Evidence`.

    Example:
        >>> import torch
        >>> from calmrl_prob.linear_gaussian import LinearGaussian, ObservedBlocks
        >>> lg = LinearGaussian({"x": torch.zeros(2, 1)}, {"x": torch.zeros(2)}, {"x": torch.ones(2)})
        >>> blocks = ObservedBlocks.from_arrays({"x": torch.zeros(3, 2)}, torch.ones(3, 1, dtype=torch.bool))
        >>> round(float(log_evidence(lg, blocks)), 4)  # 6 standard normal values of 0
        -5.5136
    """
    return Evidence(data, linear_gaussian.latent_dim, evaluations=1)(linear_gaussian)


class _LogEvidence(torch.autograd.Function):
    """The evidence, with its gradient from the same moments."""

    @staticmethod
    def forward(ctx: Any, prepared: Prepared, *stacked: Tensor) -> Tensor:  # noqa: ANN401 - torch has no type for it
        parameters = Parameters(stacked[0], stacked[1], stacked[2])
        moments = prepared.step(parameters)
        if any(ctx.needs_input_grad):
            ctx.prepared = prepared
            ctx.save_for_backward(*stacked, *likelihood_gradient(prepared.step, parameters, moments))
        return stacked[0].new_tensor(moments.log_likelihood)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        stacked, gradient = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated: let autograd find it
            value = _by_autograd(ctx.prepared, Parameters(*stacked))
            wanted = [part for part in stacked if part.requires_grad]
            found = iter(torch.autograd.grad(value, wanted, create_graph=True))
            gradient = [next(found) if part.requires_grad else torch.zeros_like(part) for part in stacked]
        return None, *(grad_output * part for part in gradient)


def _by_autograd(prepared: Prepared, parameters: Parameters) -> Tensor:
    """The same value by differentiable operations alone."""
    step, statistics = prepared.step, prepared.data
    if not isinstance(statistics, SufficientStatistics):
        about_shift = parameters.to_linear_gaussian(step.shape, torch.zeros_like(parameters.intercepts))
        if isinstance(statistics, FeatureBlocks):
            about_shift = about_shift.expanded()
        return log_marginal(about_shift, statistics).sum()
    if parameters.noise_factor is not None and step.totals.scatters is None:
        step.totals = replace(step.totals, scatters=prepared.scatters(dense=False))
    latent_dim = parameters.loadings.shape[1]
    weights = parameters.weights
    precision, offset = step.group_precisions(weights, parameters)
    members = weights.new_tensor(list(statistics.scatters))
    identity = torch.eye(latent_dim, dtype=weights.dtype, device=weights.device)
    factor = factorize(assemble_precision(members, torch.cat([precision, identity[None]])))
    value = step.feature_log_density(parameters)
    for p, (present, scatter) in enumerate(statistics.scatters.items()):
        augmented = torch.cat([weights[pattern_features(step.shape, present)], -(members[p] @ offset)[None]])
        natural = augmented.mT @ scatter @ augmented
        quadratic = torch.cholesky_solve(natural, factor[p]).diagonal().sum()
        value = value + 0.5 * quadratic - scatter[-1, -1] * factor[p].diagonal().log().sum()
    return value
