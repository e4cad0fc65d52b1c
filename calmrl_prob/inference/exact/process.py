"""The Gaussian-process route: the joint posterior of the latents of all instances, and prediction where there are none.

    z_n = f(t_n) + e_n,  f_k ~ GP(0, C_k),  e_n ~ N(0, E)          the prior, over the covariate t of the instances
    x_n^m | z_n ~ N(W^m z_n + mu^m, Psi^m)                         for each modality m that n has

Everything is Gaussian, so everything is in closed form: e and the features of each instance are integrated out apart
for each missing pattern (``linear_gaussian/latent_likelihood.py``), and what is left is a regression of K processes on
N points (``linear_gaussian/process.py``), exact at the numerical rank of the kernels.

Source: Rasmussen & Williams, Gaussian Processes for Machine Learning (2006); Yu et al., Gaussian-process factor
analysis (2009); Titsias, Variational learning of inducing variables in sparse Gaussian processes (2009).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import described, real_number, whole_number
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError
from calmrl_prob.inference.exact.discovered import on_device
from calmrl_prob.inference.exact.process_places import new_places, places_of
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.process.latent_likelihood import Conditional, LatentLikelihood
from calmrl_prob.linear_gaussian.process.posterior import (
    JOINT_LIMIT,
    JointPosterior,
    LowRankProcess,
    ProcessPosterior,
    process_posterior,
)
from calmrl_prob.linear_gaussian.products import row_chunks
from calmrl_prob.posteriors.posterior import Draw, PosteriorResult
from calmrl_prob.posteriors.predictive import NormalPredictive, Predictive
from calmrl_prob.priors.gaussian_process import GaussianProcessPrior, InducingPoints

#: Inducing points of each latent, unless the user says otherwise.
MAX_RANK = 1000
#: Numbers in the latents of draws that are made together.
_DRAWN_AT_ONCE = 2**21
#: Variance left over at which draws count as joint, as a share of the prior's.
_JOINT = 1e-9


class GaussianProcessPosterior(PosteriorResult):
    """The joint posterior of the latents of N instances under a Gaussian-process prior.

    ``mean`` and ``covariance`` are the marginals of each instance; ``sample`` and ``draws`` are joint over instances.
    Since instances depend on each other, log p(x) is not a sum over them: ``evidence`` is the whole, ``log_marginal``
    has log p(x_n) of each instance by itself, and ``leave_one_out`` has log p(x_n | all others).

    Made by :func:`gaussian_process_posterior`.

    Attributes:
        linear_gaussian: loadings, intercepts and noise.
        prior: the processes.
        diagnostics: "num_weights", R, of all processes; "joint", whether covariances know of the dependence between
            latents in full, or only as far as an instance's own data go; "exact", whether there is no error but
            rounding; "slack", nats, what the evidence lacks because the weights do not exhaust the processes (0 if they
            do); "evidence_gap", nats, how far the evidence can be above the bound that stands for it, None where that
            is not known.
    """

    def __init__(
        self,
        linear_gaussian: LinearGaussian,
        prior: GaussianProcessPrior,
        inducing: InducingPoints,
        weights: ProcessPosterior,
        rows: ProcessRows,
        diagnostics: Mapping[str, Any],
        before: Callable[[], ProcessPosterior] | None = None,
    ) -> None:
        self.route = "gaussian process"
        self.dims = linear_gaussian.dims
        self.linear_gaussian, self.prior = linear_gaussian, prior
        self.diagnostics = FrozenMapping(dict(diagnostics))
        self.how = "exact" if diagnostics.get("exact") else None
        self._inducing, self._weights, self._rows, self._make_before = inducing, weights, rows, before

    def __getstate__(self) -> dict[str, Any]:
        # a closure makes what came before; what it made can travel
        return {**vars(self), "_before": self._before, "_make_before": None}

    @cached_property
    def _before(self) -> ProcessPosterior | None:
        """The posterior given the further instances alone, if there are any."""
        with torch.no_grad():
            return None if self._make_before is None else self._make_before()

    @cached_property
    def _process_moments(self) -> tuple[Tensor, Tensor]:
        rows = self._rows
        with torch.no_grad():
            if not rows.among_data:
                return self._weights.moments(rows.process)
            mean, covariance = self._weights.marginals()
        return mean[-len(rows.process) :], covariance[-len(rows.process) :]

    @cached_property
    def evidence(self) -> float:
        """log p(x) of all that the instances have, jointly, nats: exact, or a lower bound; see ``diagnostics``.

        Where the posterior was conditioned on further instances, log p(x | those), the difference of two such values.
        Of instances that have nothing, 0.
        """
        if not self._rows.among_data:
            return 0.0
        before = self._before
        return float(self._weights.lower_bound) - (0.0 if before is None else float(before.lower_bound))

    @cached_property
    def mean(self) -> Tensor:
        """E[z_n | all that is observed], shape (N, K), in units of the prior."""
        conditional = self._rows.conditional
        outer, _ = self._process_moments
        return conditional.offset + conditional.likelihood.apply(conditional.slope, outer)

    @cached_property
    def covariance(self) -> Tensor:
        """Cov[z_n | all that is observed], the marginal of each instance, shape (N, K, K)."""
        conditional, (_, covariance) = self._rows.conditional, self._process_moments
        index = conditional.likelihood.pattern_index
        out = torch.empty_like(covariance)
        for chunk in row_chunks(len(out), out.shape[1] ** 2):
            slope = conditional.slope[index[chunk]]
            out[chunk] = conditional.covariance[index[chunk]] + slope @ covariance[chunk] @ slope.mT
        return out

    @cached_property
    def log_marginal(self) -> Tensor:
        """log p(x_n) of what each instance has, by itself, shape (N,), nats; it does not sum to ``evidence``.

        Where the posterior was conditioned on further instances, log p(x_n | those).
        """
        rows, latents = self._rows, range(self.prior.latent_dim)
        with torch.no_grad():
            if self._before is None or not rows.among_data:
                variance = torch.stack([self.prior.variance(k, rows.places) for k in latents], dim=1)
                return rows.conditional.likelihood.log_average(torch.zeros_like(variance), torch.diag_embed(variance))
            return rows.conditional.likelihood.log_average(*self._before.moments(rows.process))

    @cached_property
    def leave_one_out(self) -> Tensor:
        """log p(x_n | all other instances), shape (N,), nats: leave-one-out cross-validation at given parameters.

        From the posterior of each instance its own factor is divided out again:
        S (I - P S)^-1 and (I - S P)^-1 (mean - S h), with S the covariance of the processes there.
        """
        likelihood, residual = self._rows.conditional.likelihood, self._rows.process.residual
        mean, covariance = self._process_moments
        carried = covariance - torch.diag_embed(residual)
        precision = likelihood.row_precision
        identity = torch.eye(likelihood.latent_dim, dtype=mean.dtype, device=mean.device)
        shrunk = identity - carried @ precision
        force = mean - (carried @ likelihood.natural_mean[:, :, None]).squeeze(2)
        cavity_mean = torch.linalg.solve(shrunk, force[:, :, None]).squeeze(2)
        cavity = torch.linalg.solve(shrunk, carried)
        cavity = 0.5 * (cavity + cavity.mT) + torch.diag_embed(residual)
        return likelihood.log_average(cavity_mean, cavity)

    def predict(self, covariates: object) -> GaussianProcessPosterior:
        """The posterior of instances of which nothing is observed but the covariate.

        Args:
            covariates: (n,) or (n, d) numbers, as the covariate of the data; or a mapping that has them by its name.

        Returns:
            The same kind of result, for n instances: ``predictive`` gives the modalities that they would have.

        Raises:
            ArgumentTypeError: they are not numbers.
            ArgumentError: they are not finite, or have another width than those of the data.
        """
        width = self._rows.places.shape[1]
        places = new_places(covariates, self.prior.covariate, width).to(self._rows.places)
        nothing = LatentLikelihood.nothing(len(places), self.mean)
        with torch.no_grad():
            conditional = nothing.marginalize(self.prior.nugget)
            rows = ProcessRows(places, conditional, self.prior.at(places, self._inducing), among_data=False)
        return GaussianProcessPosterior(
            self.linear_gaussian, self.prior, self._inducing, self._weights, rows, self.diagnostics
        )

    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """N(W E[z_n] + mu, W Cov[z_n] W^T + Psi) of one modality, feature by feature."""
        loadings, intercept = self.linear_gaussian.loadings[name], self.linear_gaussian.intercepts[name]
        dtype = loadings.dtype if dtype is None else dtype
        mean, variance = (loadings.new_empty(len(self.mean), len(loadings), dtype=dtype) for _ in range(2))
        for chunk in row_chunks(len(mean), loadings.numel()):
            mean[chunk] = torch.addmm(intercept, self.mean[chunk], loadings.mT).to(dtype)
            variance[chunk] = ((self.covariance[chunk] @ loadings.mT) * loadings.mT).sum(1).to(dtype)
        return NormalPredictive(mean, variance, self.linear_gaussian.noise_variance[name].to(dtype))

    @torch.no_grad()
    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Draws that are joint over instances: each is K whole processes, and the data that they would make.

        Where the processes were cut to fewer weights than their numerical rank, what is left over is drawn for each
        instance apart.
        """
        lg, rows = self.linear_gaussian, self._rows
        conditional, process, more = rows.conditional, rows.process, self._further
        noise = {name: lg.noise_variance[name] for name in names}

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)

        batch = max(1, min(num_draws, _DRAWN_AT_ONCE // max(1, self.mean.numel())))
        for first in range(0, num_draws, batch):
            count = min(batch, num_draws - first)
            outer = process.evaluate(self._weights.sample_weights(count, generator))
            outer = outer + more.evaluate(normal(count, sum(more.ranks))) + more.residual.sqrt() * normal(*outer.shape)
            own = normal(*outer.shape)
            drawn = conditional.offset + conditional.likelihood.apply(conditional.slope, outer)
            for latents in drawn + conditional.likelihood.apply(conditional.root, own):
                yield Draw(
                    latents, {n: torch.addmm(lg.intercepts[n], latents, lg.loadings[n].mT) for n in names}, noise
                )

    @cached_property
    def _further(self) -> LowRankProcess:
        """Part of the processes at these instances that the data's weights do not determine."""
        process = self._rows.process
        scale = float(process.residual.max()) if len(process) else 0.0
        if scale <= _JOINT:
            empty = [factor[:, :0] for factor in process.factors]
            return LowRankProcess(empty, process.residual)
        tolerance = _JOINT * len(process)
        return self.prior.extend(self._rows.places, process, tolerance=tolerance, max_rank=MAX_RANK)


class ProcessRows:
    """The instances that a posterior is of.

    Attributes:
        places: their covariates, (N, d).
        conditional: what they have, as factors of the processes, and the way back to the latents.
        process: the processes there.
        among_data: whether they are the last ones of those that the posterior rests on, or others of which nothing is
            observed.
    """

    def __init__(self, places: Tensor, conditional: Conditional, process: LowRankProcess, *, among_data: bool) -> None:
        self.places, self.conditional, self.process, self.among_data = places, conditional, process, among_data


@torch.no_grad()
def gaussian_process_posterior(
    linear_gaussian: LinearGaussian,
    prior: GaussianProcessPrior,
    data: MultimodalData,
    *,
    given: MultimodalData | None = None,
    tolerance: float = 1e-6,
    max_rank: int = MAX_RANK,
    joint_limit: int = JOINT_LIMIT,
) -> GaussianProcessPosterior:
    """The joint posterior of the latents of all instances, given what each of them has.

    Args:
        linear_gaussian: loadings, intercepts and noise, float64; its own prior plays no part.
        prior: the processes.
        data: N instances, with the prior's covariate. Modalities of the model that they do not have count as missing.
        given: further instances to condition on, such as those that the model was fitted to; the result is of ``data``.
        tolerance: exact means that the evidence is off by less than about this, nats.
        max_rank: the most weights for each process, r. If the numerical rank of its kernel is higher, as many inducing
            points stand for it, and ``evidence`` is a lower bound.
        joint_limit: the most weights of all processes together, R, for which they are factorised together, for
            N R^2 + R^3 operations. Beyond that latents are taken apart, for K (N r^2 + r^3): mean and draws are the
            same, covariances very nearly.

    Raises:
        DataError: the data lack the covariate, or it is not finite.
        SchemaError: a modality that the model does not know, or one of another width.
        ArgumentTypeError: an argument is of another type.
        ArgumentError: one is out of range, or data and model are on different devices.
        NumericalError: a precision is not positive definite.

    Example:
        >>> import torch
        >>> lg = LinearGaussian({"x": torch.ones(1, 1).double()}, {"x": torch.zeros(1).double()},
        ...                     {"x": torch.tensor(0.1).double()})
        >>> time = [0.0, 1.0, 2.0, 3.0]
        >>> x = torch.tensor([[0.0], [0.8], [1.6], [2.1]]).double()
        >>> data = MultimodalData({"x": x}, covariates={"time": time})
        >>> result = gaussian_process_posterior(lg, GaussianProcessPrior(1, covariate="time", nugget=0), data)
        >>> result
        PosteriorResult(4 instances, 1 latents, route='gaussian process', exact)
        >>> ahead = result.predict([1.5, 30.0]).predictive("x")
        >>> ahead.mean.flatten().tolist(), ahead.latent_variance.flatten().tolist()
        ([1.096, 0.000], [0.309, 1.000])
    """
    if not isinstance(prior, GaussianProcessPrior):
        raise ArgumentTypeError(f"prior: expected a GaussianProcessPrior, got {described(prior)}.")
    tolerance, max_rank = real_number("tolerance", tolerance, 1e-6), whole_number("max_rank", max_rank, least=1)
    joint_limit = whole_number("joint_limit", joint_limit)
    if prior.latent_dim != linear_gaussian.latent_dim:
        raise ArgumentError(
            f"prior: it has {prior.latent_dim} latents, the model {linear_gaussian.latent_dim}; use the same number."
        )
    lg = linear_gaussian.detach().to(prior.dtype)
    parts = [on_device(lg, data)] if given is None else [on_device(lg, given), on_device(lg, data)]
    places = torch.cat([_same_width(places_of(part, prior), parts, prior) for part in parts])
    factors = [LatentLikelihood.of(lg, part.blocks).marginalize(prior.nugget) for part in parts]
    likelihood = factors[0].likelihood
    if given is not None:
        likelihood = likelihood.followed_by(factors[1].likelihood)
    weight = likelihood.precision_diagonal
    inducing, process = prior.factorize(places, weight, tolerance=tolerance, max_rank=max_rank)
    weights = process_posterior(likelihood, process, joint_limit)
    rounding = 16 * torch.finfo(weight.dtype).eps * float(weight.sum())
    exhausted = float(weights.slack) <= max(tolerance, rounding)
    joint = isinstance(weights, JointPosterior)
    gap = None
    if isinstance(weights, JointPosterior):
        gap = 0.0 if exhausted else float(weights.upper_bound - weights.lower_bound)
    diagnostics = {
        "num_weights": len(weights.mean),
        "joint": joint,
        "exact": joint and exhausted,
        "slack": 0.0 if exhausted else 0.5 * float(weights.slack),
        "evidence_gap": gap,
    }
    rows = ProcessRows(places[-len(data) :], factors[-1], process[-len(data) :], among_data=True)

    def before() -> ProcessPosterior:
        return process_posterior(factors[0].likelihood, process[: -len(data)], joint_limit)

    conditioned = None if given is None else before
    return GaussianProcessPosterior(lg, prior, inducing, weights, rows, diagnostics, conditioned)


def _same_width(places: Tensor, parts: Sequence[MultimodalData], prior: GaussianProcessPrior) -> Tensor:
    shapes = {np.shape(part.covariates[prior.covariate])[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(f"given: its covariate {prior.covariate!r} is of another shape than in data: {shapes}.")
    return places
