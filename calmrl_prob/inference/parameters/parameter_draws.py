"""Draws of global latents, and the posterior of the latents of instances over them: exact given each draw.

    p(z_n | x) ~ 1/S sum_s p(z_n | x_n, theta_s),     p(x_n^m | x) ~ 1/S sum_s p(x_n^m | x_n, theta_s)

The variance of a prediction has three parts: the latent and noise parts averaged over draws, and, between draws, the
variance of the mean, which is what not knowing the parameters adds.

Predictions mean the same in every draw. Latents do not: a rotation of z that loadings undo changes no density, and
chains wander along it. So before z is averaged each draw is turned to where its loadings are nearest to those of the
reference draw (orthogonal Procrustes, in coordinates in which the prior of z is standard normal); without that the
average would shrink to the prior mean.

Source: Schonemann, A generalized solution of the orthogonal Procrustes problem (1966); for factor models: Assmann,
Boysen-Hogrefe & Pape, Bayesian analysis of static and dynamic factor models: an ex-post approach towards the rotation
problem (2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from calmrl_prob._support.arguments import whole_number
from calmrl_prob._support.arrays import own_array
from calmrl_prob._support.frozen import FrozenMapping
from calmrl_prob.arviz.adapter import Group, Variable
from calmrl_prob.conjugacy import ConjugateForm, discover
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.features import NamedDims
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.inference.exact.discovered import Form, OneStructure, form_posterior
from calmrl_prob.inference.feature_names import aligned, named
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.draws_predictive import DrawsPredictive
from calmrl_prob.posteriors.posterior import Draw, PosteriorResult
from calmrl_prob.posteriors.predictive import Predictive
from calmrl_prob.programs.bound import BoundModel

#: Numbers that posteriors given each draw may take up together, to be kept from one use to the next.
_KEEP_BUDGET = 2**24
#: What a linear-Gaussian form has for each modality.
_PARAMETERS = ("loadings", "intercepts", "noise_variance")


@dataclass(frozen=True, eq=False, repr=False)
class ParameterDraws:
    """S draws of the global latents of a model, of equal weight.

    Attributes:
        bound: the model; or, of draws about a fit (:func:`calmrl_prob.parameter_draws`), the fitted form itself, in
            whose axes latents are reported.
        values: for each global latent its draws, (S, ...); about a fit, ``loadings_<name>``, ``intercepts_<name>`` and
            ``noise_variance_<name>``.
        route: how they were found, such as "collapsed nuts".
        reference: the draw whose axes latents are reported in.
        diagnostics: what the route has to report.
        num_chains: C of the sampler, whose draws stand one chain after another; None where draws are independent.
        quantities: functions of the draws that no rotation of the latent changes, (S, ...).
        statistics: what the sampler has to say of each draw, (S,), under ArviZ's names.
        dims: of draws about a fit, the widths of the modalities and the names of their features, where these are known.
        rows_of_fit: what the rows that they were drawn given are known by, a ``SeenRows``; None if unknown.
    """

    bound: BoundModel | LinearGaussian
    values: Mapping[str, Tensor]
    route: str
    reference: int = -1
    diagnostics: Mapping[str, Any] = field(default_factory=FrozenMapping)
    num_chains: int | None = None
    quantities: Mapping[str, Tensor] = field(default_factory=FrozenMapping)
    statistics: Mapping[str, Tensor] = field(default_factory=FrozenMapping)
    dims: NamedDims | None = None
    rows_of_fit: Any = None

    def __len__(self) -> int:
        """S."""
        return len(next(iter(self.values.values())))

    def at(self, number: int) -> dict[str, Tensor]:
        """The values of one draw."""
        return {name: draws[number] for name, draws in self.values.items()}

    def variables(self, numbers: Tensor | None = None, num_chains: int | None = None) -> tuple[Group, Group]:
        """For ArviZ: global latents by site, with what no rotation changes; and the sampler's statistics.

        Args:
            numbers: which draws, in which order; all by default.
            num_chains: to deal them to; the sampler's by default, or one.
        """
        chains = num_chains or self.num_chains or 1

        def variable(name: str, values: Tensor) -> Variable:
            chosen = values if numbers is None else values[numbers.to(values.device)]
            shaped = chosen.reshape(chains, -1, *values.shape[1:])
            dims = ("chain", "draw", *(f"{name}_{i}" for i in range(values.ndim - 1)))
            return dims, own_array(shaped)

        # about a fit, what is wanted by feature is read off the forms, turned
        everything = {**({} if isinstance(self.bound, LinearGaussian) else self.values), **self.quantities}
        return (
            Group({name: variable(name, values) for name, values in everything.items()}),
            Group({name: variable(name, values) for name, values in self.statistics.items()}),
        )

    def thinned(self, num_draws: int) -> ParameterDraws:
        """At most so many of the draws, evenly spaced, of each chain as many; the reference, if lost, is the last."""
        chains = self.num_chains or 1
        length = len(self) // chains
        few = min(length, max(1, num_draws // chains))
        if few == length:
            return self
        places = torch.linspace(0, length - 1, few, dtype=torch.float64).round().long()
        return self._chosen((torch.arange(chains)[:, None] * length + places).flatten())

    def chain(self, number: int) -> ParameterDraws:
        """The draws of one chain of the sampler, counted from 0; the reference is the last.

        Raises:
            ArgumentError: there is no such chain.
        """
        chains = self.num_chains or 1
        if not 0 <= number < chains:
            raise ArgumentError(f"number: expected a chain from 0 to {chains - 1}, got {number}.")
        length = len(self) // chains
        one = self._chosen(torch.arange(number * length, (number + 1) * length))
        return replace(one, num_chains=None if self.num_chains is None else 1)

    def _chosen(self, numbers: Tensor) -> ParameterDraws:
        def some(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: values[numbers.to(values.device)] for name, values in group.items()}

        return replace(
            self,
            values=some(self.values),
            quantities=some(self.quantities),
            statistics=some(self.statistics),
            reference=-1,
        )

    @torch.no_grad()
    def posterior(self, data: MultimodalData, *, num_draws: int = 200, seed: int = 0, **options: Any) -> DrawsPosterior:
        """Recover the latents: the posterior of z over the draws of the parameters.

        Args:
            data: N instances, those fitted to or others. The draws have equal weights: what new instances say about
                the parameters is left out, as in every prediction from a fitted model.
            num_draws: draws of the parameters to use at most, evenly spaced among those of each chain.
            seed: not used; all of it is deterministic.
            **options: none.

        Raises:
            ArgumentError: options, or ``num_draws`` below 1.
        """
        del seed
        if options:
            raise ArgumentError(
                f"options: the posterior over parameter draws has num_draws alone, got {list(options)}."
            )
        kept = self.thinned(whole_number("num_draws", num_draws, least=1))
        data = aligned(self, data)
        if isinstance(self.bound, LinearGaussian):
            data = data.conform(self.bound.dims)
            return named(DrawsPosterior(kept.structures(), data, kept, OneStructure(self.bound)), self, data)
        reference = self.at(self.reference)
        form = discover(self.bound, data, reference)
        forms = [_form_at(form, kept.at(s)) for s in range(len(kept))]
        return named(DrawsPosterior(forms, data, kept, _form_at(form, reference)), self, data)

    def structures(self) -> list[OneStructure]:
        """The form under each draw, of draws about a fit.

        Raises:
            ArgumentTypeError: the draws are of the global latents of a Pyro model, whose form depends on the data.
        """
        if not isinstance(self.bound, LinearGaussian):
            raise ArgumentTypeError(
                "draws: those of a Pyro model's global latents have no form without data; take .posterior(data)."
            )
        fitted, found = self.bound, []
        for at in (self.at(s) for s in range(len(self))):
            parts: dict[str, Any] = {k: {n: at[f"{k}_{n}"] for n in fitted.names} for k in _parameters(fitted)}
            found.append(replace(fitted, **parts))
        return [OneStructure(structure) for structure in found]

    @classmethod
    def about(
        cls,
        fitted: LinearGaussian,
        draws: Sequence[LinearGaussian],
        route: str,
        quantities: Mapping[str, Tensor] = FrozenMapping(),
        diagnostics: Mapping[str, Any] = FrozenMapping(),
        statistics: Mapping[str, Tensor] = FrozenMapping(),
    ) -> ParameterDraws:
        """Draws of models about a fitted one, each turned to where its loadings are nearest to the fitted one's.

        Args:
            fitted: the form whose axes and prior are kept.
            draws: S models with the same prior.
            route: how they were found.
            quantities: functions of the draws, (S, ...).
            diagnostics: what the route has to report.
            statistics: what it has to say of each draw, (S,), under ArviZ's names.

        Raises:
            ArgumentError: a draw is of another model: other modalities, widths or K.
        """
        for number, draw in enumerate(draws):
            if draw.dims != fitted.dims or draw.latent_dim != fitted.latent_dim:
                raise ArgumentError(
                    f"draws[{number}]: it is of another model, {draw}, than {fitted}; keep draws of different models "
                    "apart, and compare them with arviz.compare."
                )
        turned = [procrustes(draw, fitted, fitted.latent_dim).structure(draw) for draw in draws]
        values = {
            f"{kind}_{name}": torch.stack([getattr(draw, kind)[name] for draw in turned])
            for kind in _parameters(fitted)
            for name in fitted.names
        }
        return cls(fitted, values, route, diagnostics=diagnostics, quantities=quantities, statistics=statistics)

    def __repr__(self) -> str:
        sites = ", ".join(f"{name}: {tuple(draws.shape[1:])}" for name, draws in self.values.items())
        return f"ParameterDraws({len(self)} draws by {self.route}; {sites})"


class DrawsPosterior(PosteriorResult):
    """The posterior of the latents of N instances over draws of the parameters.

    Args:
        forms: of the model on the data, under each draw.
        data: N instances.
        parameters: the draws.
        reference: the form in whose axes latents are reported.
    """

    def __init__(
        self, forms: Sequence[Form], data: MultimodalData, parameters: ParameterDraws, reference: Form
    ) -> None:
        self.parameters, self.route, self.diagnostics = parameters, parameters.route, parameters.diagnostics
        self.dims = reference.structures[0].dims
        self._data, self._forms = data, forms
        self._alignments = _alignments(forms, reference)
        self._kept: dict[int, PosteriorResult] = {}
        self._keeps = len(parameters) * len(data) * reference.latent_dim * 2 <= _KEEP_BUDGET

    @property
    def num_draws(self) -> int:
        """S, of the parameters."""
        return len(self._forms)

    def given(self, number: int) -> PosteriorResult:
        """The exact posterior given one draw of the parameters, in that draw's own axes."""
        if number in self._kept:
            return self._kept[number]
        found = form_posterior(self._forms[number], self._data)
        if self._keeps:
            self._kept[number] = found
        return found

    @cached_property
    def _first_moments(self) -> tuple[Tensor, Tensor]:
        """Mean (N, K) and log marginal (N,), in one pass over the draws."""
        total, evidence = None, None
        for s, align in enumerate(self._alignments):
            part = self.given(s)
            mean, density = align.latents(part.mean), part.log_marginal
            total = mean if total is None else total + mean
            evidence = density if evidence is None else torch.logaddexp(evidence, density)
        assert total is not None
        assert evidence is not None
        return total / self.num_draws, evidence - math.log(self.num_draws)

    @property
    def mean(self) -> Tensor:
        """E[z_n | x], shape (N, K), in the axes of the reference draw."""
        return self._first_moments[0]

    @cached_property
    def covariance(self) -> Tensor:
        """Cov[z_n | x], within draws and between them, shape (N, K, K): N K^2 numbers."""
        mean, total = self.mean, None
        for s, align in enumerate(self._alignments):
            part = self.given(s)
            apart = align.latents(part.mean) - mean
            here = align.covariances(part.covariance) + apart[:, :, None] * apart[:, None, :]
            total = here if total is None else total.add_(here)
        assert total is not None
        return total / self.num_draws

    @property
    def log_marginal(self) -> Tensor:
        """log 1/S sum_s p(x_n | theta_s), shape (N,), nats: of each instance on its own, given what was learned."""
        return self._first_moments[1]

    def predictive(self, name: str, dtype: torch.dtype | None = None) -> Predictive:
        """The mixture of the predictives given each draw."""
        return DrawsPredictive(self.num_draws, self._predictives, name, dtype or self._data.dtype, len(self._data))

    def _predictives(self, name: str, dtype: torch.dtype, rows: slice | None) -> Iterator[Predictive]:
        """The predictive given each draw, of all instances or of some rows."""
        if rows is None:
            yield from (self.given(s).predictive(name, dtype) for s in range(self.num_draws))
            return
        data = self._data.subset(rows)
        for form in self._forms:
            yield form_posterior(_rows_of(form, rows), data).predictive(name, dtype)

    def draws(self, num_draws: int, generator: torch.Generator, names: Sequence[str] = ()) -> Iterator[Draw]:
        """Joint draws: parameters first, then latents given them.

        The parameter draws are gone through in a new random order each time round, so that any stretch of draws is
        spread over them as evenly as can be.
        """
        for place in range(num_draws):
            if place % self.num_draws == 0:
                order = torch.randperm(self.num_draws, generator=generator, device=generator.device).tolist()
            yield from self.draws_under([order[place % self.num_draws]], generator, names)

    def draws_under(
        self, numbers: Iterable[int], generator: torch.Generator, names: Sequence[str] = ()
    ) -> Iterator[Draw]:
        """A joint draw under each of the draws of the parameters that are named, in their order."""
        for s in numbers:
            for draw in self.given(s).draws(1, generator, names):
                yield replace(draw, latents=self._alignments[s].latents(draw.latents), number=s, likelihood=None)

    def structure(self, number: int) -> LinearGaussian | None:
        """The linear-Gaussian form under one draw of the parameters, if all instances have the same."""
        structures = self._forms[number].structures
        return structures[0] if len(structures) == 1 and isinstance(structures[0], LinearGaussian) else None

    def aligned(self, number: int) -> LinearGaussian | None:
        """The same in the axes of the reference, up to correlated noise; densities of the data are unchanged."""
        structure = self.structure(number)
        return None if structure is None else self._alignments[number].structure(structure)

    def log_density(self, latents: Tensor) -> Tensor:
        """log 1/S sum_s p(z_n | x_n, theta_s) in the axes of the reference draw, nats, shape (N,)."""
        terms = []
        for s, align in enumerate(self._alignments):
            own = torch.linalg.solve(align.matrix, (latents.double() - align.offset).mT).mT.to(latents.dtype)
            terms.append(self.given(s).log_density(own) - torch.linalg.slogdet(align.matrix).logabsdet)
        return torch.stack(terms).logsumexp(0) - math.log(self.num_draws)


@dataclass(frozen=True)
class LatentMap:
    """The affine map of latents z -> offset + z matrix^T, from the axes of one draw to those of the reference.

    Attributes:
        matrix: (K, K).
        offset: (K,).
    """

    matrix: Tensor
    offset: Tensor

    def latents(self, z: Tensor) -> Tensor:
        """Latents (..., K)."""
        moved: Tensor = self.offset.to(z.dtype) + z @ self.matrix.mT.to(z.dtype)
        return moved

    def covariances(self, covariance: Tensor) -> Tensor:
        """Covariances (..., K, K)."""
        matrix = self.matrix.to(covariance.dtype)
        moved: Tensor = matrix @ covariance @ matrix.mT
        return moved

    def structure(self, start: LinearGaussian) -> LinearGaussian:
        """The model of the moved latents: W A^-1, mu - W A^-1 a, and the prior moved; further latents left out."""
        latent_dim = len(self.matrix)
        loadings = {
            name: torch.linalg.solve(self.matrix.to(part.dtype), part[:, :latent_dim], left=False)
            for name, part in start.loadings.items()
        }
        offset = self.offset.to(start.dtype)
        return replace(
            start,
            loadings=loadings,
            intercepts={name: intercept - loadings[name] @ offset for name, intercept in start.intercepts.items()},
            prior_mean=self.latents(start.prior_mean[:latent_dim]),
            prior_covariance=self.covariances(start.prior_covariance[:latent_dim, :latent_dim]),
        )


def _parameters(fitted: LinearGaussian) -> tuple[str, ...]:
    """The parts of a model that draws about it differ in."""
    return _PARAMETERS if fitted.noise_factor is None else (*_PARAMETERS, "noise_factor")


def _alignments(forms: Sequence[Form], reference: Form) -> list[LatentMap]:
    """For each draw the map to the reference's axes; the identity for mixtures, which have axes of their own."""
    goal = reference.structures[0]
    latent_dim = reference.latent_dim
    found = []
    for form in forms:
        start = form.structures[0]
        if isinstance(start, LinearGaussian) and isinstance(goal, LinearGaussian):
            found.append(procrustes(start, goal, latent_dim))
        else:
            identity = torch.eye(latent_dim, dtype=torch.float64)
            found.append(LatentMap(identity, identity.new_zeros(latent_dim)))
    return found


def procrustes(start: LinearGaussian, goal: LinearGaussian, latent_dim: int) -> LatentMap:
    """The map of latents that turns one model's loadings as near as can be to another's, its densities unchanged.

    In coordinates u = L^-1 (z - m) with the prior N(m, L L^T) loadings are W L; R = U V^T from the singular value
    decomposition of (W L)^T (W_0 L_0) minimises |W L R - W_0 L_0|, and u R are the latents that go with W L R.

    Args:
        start: the model to turn.
        goal: the model to turn it to.
        latent_dim: K; further latents, which carry correlated noise, stay as they are.

    Example:
        >>> loadings, rest = torch.tensor([[1.0, 0.5], [0.0, 2.0]]), ({"x": torch.zeros(2)}, {"x": torch.ones(2)})
        >>> goal = LinearGaussian({"x": loadings}, *rest)
        >>> turned = LinearGaussian({"x": loadings @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])}, *rest)
        >>> procrustes(turned, goal, 2).latents(torch.tensor([[1.0, 0.0]])).round().tolist()
        [[0.0, -1.0]]
    """

    def whiten(lg: LinearGaussian) -> tuple[Tensor, Tensor]:
        lower = torch.linalg.cholesky(lg.prior_covariance.double())[:latent_dim, :latent_dim]
        stacked = torch.cat(
            [part.double() / lg.noise_variance[n].double().sqrt()[:, None] for n, part in lg.loadings.items()]
        )
        return lower, stacked[:, :latent_dim] @ lower

    lower, loadings = whiten(start)
    goal_lower, goal_loadings = whiten(goal)
    left, _, right = torch.linalg.svd(loadings.mT @ goal_loadings)
    rotation = left @ right
    # z' = m0 + L0 R^T L^-1 (z - m)
    matrix = torch.linalg.solve_triangular(lower.mT, rotation @ goal_lower.mT, upper=True).mT
    offset = goal.prior_mean[:latent_dim].double() - matrix @ start.prior_mean[:latent_dim].double()
    return LatentMap(matrix, offset)


def _form_at(form: ConjugateForm, values: Mapping[str, Tensor]) -> ConjugateForm:
    offsets, latent_offset = form.read_offsets(values)
    structures = tuple(structure.detach() for structure in form.read(values))
    return replace(form, structures=structures, offsets=offsets, latent_offset=latent_offset)


def _rows_of(form: Form, rows: slice) -> Form:
    """The form of some of the instances that it was found on."""
    if isinstance(form, OneStructure):
        return form
    structures, index = form.structures, None
    if form.structure_index is not None:
        present, index = torch.unique(form.structure_index[rows], return_inverse=True)
        structures = tuple(structures[g] for g in present.tolist())
    offsets = None if form.offsets is None else {name: offset[rows] for name, offset in form.offsets.items()}
    latent = None if form.latent_offset is None else form.latent_offset[rows]
    return replace(form, structures=structures, structure_index=index, offsets=offsets, latent_offset=latent)
