"""The groups of an ArviZ container: draws, their densities, the data, and what is constant, as named arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.arrays import own_array
from calmrl_prob.arviz.adapter import Group, Variable, as_texts
from calmrl_prob.arviz.draws import Drawn, Plan
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.entries import entries
from calmrl_prob.inference.parameters.parameter_draws import DrawsPosterior
from calmrl_prob.inference.parameters.prior_draws import PriorDraws, draw_prior
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.posteriors.gaussian import GaussianPosterior
from calmrl_prob.posteriors.posterior import PosteriorResult
from calmrl_prob.programs.bound import BoundModel

_DRAWS = ("chain", "draw")
#: The name in ``log_likelihood`` of log p(x_n | theta), of all that an instance has.
_EVIDENCE = "log_evidence"


@dataclass(frozen=True)
class PosteriorGroups:
    """The groups of a posterior of N instances.

    Attributes:
        result: the posterior.
        data: the instances, with all its modalities.
        drawn: S draws of it.
        plan: how these are dealt to chains, and which of them wide arrays are made of.
        names: modalities whose signals and predictions are wanted.
    """

    result: PosteriorResult
    data: MultimodalData
    drawn: Drawn
    plan: Plan
    names: Sequence[str]

    def groups(self, fitted: Mapping[str, Tensor]) -> dict[str, Group]:
        """All of them but the prior's; ``fitted`` are values of global latents, for ``constant_data``."""
        coords = coordinates(self.data)
        predicted, predicted_coords = self._predicted()
        quantities, statistics = self._quantities()
        known = self.result.dims
        observed = {name: ((("instance", f"feature_{name}")), own_array(self.data[name])) for name in known}
        return {
            "posterior": Group(quantities, coords),
            "sample_stats": Group(statistics, coords),
            "posterior_predictive": Group(predicted, {**coords, **predicted_coords}),
            "log_likelihood": Group(self._log_likelihood(), coords, self._lacking()),
            "observed_data": Group(observed, coords),
            "constant_data": Group(self._constants(fitted), coords),
        }

    def _lacking(self) -> dict[str, str]:
        """Note of how many instances lack a modality, for who would take ``arviz.loo`` over NaN."""
        have = {name: int(self.data.observed(name).sum()) for name in self.result.dims}
        counts = ", ".join(f"{name}: {count} of {len(self.data)}" for name, count in have.items())
        if min(have.values()) == len(self.data):
            return {}
        return {
            "note": f"NaN where an instance lacks the modality (instances that have it: {counts}); drop these before "
            "arviz.loo, which is NaN with them and means little of a few"
        }

    def _variable(self, values: Tensor, *dims: str) -> Variable:
        """An array over draws, (S, ...), dealt to the chains."""
        chains = self.plan.num_chains
        return (*_DRAWS, *dims), _numpy(values.view(chains, len(values) // chains, *values.shape[1:]))

    def _quantities(self) -> tuple[dict[str, Variable], Mapping[str, Variable]]:
        """The variables of ``posterior`` and of ``sample_stats``."""
        drawn, result = self.drawn, self.result
        quantities = {"z": self._variable(drawn.latents, "instance", "latent")}
        for name, signal in drawn.signals.items():
            quantities[f"signal_{name}"] = self._variable(signal, "instance", f"feature_{name}")
        if isinstance(result, GaussianPosterior):
            quantities["z_distance"] = self._variable(_distance(result, drawn.latents), "instance")
        if not isinstance(result, DrawsPosterior):
            return quantities, {}
        parameters, sampler = result.parameters.variables(torch.tensor(drawn.under), self.plan.num_chains)
        by_feature = _by_feature(result, drawn.under, tuple(result.dims), self.names)
        own = {name: self._variable(values, *dims) for name, (dims, values) in by_feature.items()}
        return {**parameters.variables, **quantities, **own}, sampler.variables

    def _log_likelihood(self) -> dict[str, Variable]:
        result, under = self.result, self.drawn.under
        found = {name: self._variable(value, "instance") for name, value in self.drawn.densities.items()}
        if isinstance(result, DrawsPosterior) and _EVIDENCE not in result.dims:
            evidence = {number: result.given(number).log_marginal for number in dict.fromkeys(under)}
            found[_EVIDENCE] = self._variable(torch.stack([evidence[s] for s in under]), "instance")
        return found

    def _constants(self, fitted: Mapping[str, Tensor]) -> dict[str, Variable]:
        result, data = self.result, self.data
        constant: dict[str, Variable] = {
            "observed_mask": (("instance", "modality"), own_array(data.observed_mask)),
            "log_marginal": (("instance",), own_array(result.log_marginal)),
        }
        if isinstance(result, GaussianPosterior):
            for name, share in _communalities(result.linear_gaussian, tuple(result.dims)).items():
                constant[f"communality_{name}"] = ((f"feature_{name}",), _numpy(share))
        for site, value in fitted.items():
            constant[site] = (tuple(f"{site}_{i}" for i in range(value.ndim)), own_array(value))
        if data.labels is not None:
            constant["labels"] = (("instance",), data.labels)
        return constant

    def _predicted(self) -> tuple[dict[str, Variable], dict[str, Any]]:
        """The variables of ``posterior_predictive``, and their coordinates."""
        drawn, plan = self.drawn, self.plan
        coords: dict[str, Any] = {"draw": plan.places} if plan.thinned else {}
        if plan.cells is None:
            predictions = drawn.predictions.items()
            return {n: self._variable(value, "instance", f"feature_{n}") for n, value in predictions}, coords
        if drawn.imputed is None or not drawn.imputed.shape[1]:
            return {}, coords
        places = {name: _numpy(mask.nonzero()) for name, mask in plan.cells.items()}
        names = np.concatenate([np.full(len(place), name) for name, place in places.items()])
        rows, features = np.concatenate(list(places.values())).T
        known = coordinates(self.data)
        labels = [known.get(f"feature_{name}") for name in places]
        if any(found is not None for found in labels):
            numbers = [place[:, 1] for place in places.values()]
            parts = [n if found is None else found[n] for n, found in zip(numbers, labels, strict=True)]
            features = np.concatenate([as_texts(part) for part in parts])
        ids = known["instance"]
        coords |= {"instance": ("cell", ids[rows]), "modality": ("cell", names), "feature": ("cell", features)}
        return {"imputed": self._variable(drawn.imputed, "cell")}, coords


def coordinates(data: MultimodalData) -> dict[str, NDArray[Any]]:
    """Labels of modalities, instances and features, the latter two numbered where nothing names them."""
    names = {name: found for name, found in data.feature_names.items() if found is not None}
    return {
        "modality": np.array(data.names),
        "instance": np.arange(len(data)) if data.ids is None else data.ids,
        **{f"feature_{name}": entries(list(found)) for name, found in names.items()},
    }


def fitted_values(model: object) -> Mapping[str, Tensor]:
    """Global latents that were fitted as one value, by site; none of other models."""
    bound = model.model if isinstance(model, FitResult) else model
    return bound.values if isinstance(bound, BoundModel) else {}


def draw_prior_within(
    budget: int, model: object, data: MultimodalData, num_draws: int, seed: int, latent_dim: int
) -> PriorDraws | None:
    """Draws of the prior, fewer where ``budget`` bytes ask for it; None for none, or where there is no prior."""
    size = len(data) * sum(data.dims.values()) * data.dtype.itemsize
    few = min(num_draws, max(1, budget // size))
    return draw_prior(model, data, few, seed, latent_dim) if few else None


def prior_groups(prior: PriorDraws, coords: Mapping[str, Any]) -> dict[str, Group]:
    """The groups prior and prior_predictive, in one chain."""

    def variable(values: Tensor, *dims: str) -> Variable:
        return (*_DRAWS, *dims), _numpy(values[None])

    variables = {"z": variable(prior.latents, "instance", "latent")}
    for name, values in prior.globals.items():
        variables[name] = variable(values, *(f"{name}_{i}" for i in range(values.ndim - 1)))
    predicted = {name: variable(values, "instance", f"feature_{name}") for name, values in prior.values.items()}
    return {"prior": Group(variables, coords), "prior_predictive": Group(predicted, coords)}


def _by_feature(
    result: DrawsPosterior, under: Sequence[int], known: Sequence[str], wanted: Sequence[str]
) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Variance parts of each feature under each draw, dimensions and (S, D_m, ...); empty without one form."""
    aligned = {number: result.aligned(number) for number in dict.fromkeys(under)}
    forms = {number: form for number, form in aligned.items() if form is not None}
    if len(forms) < len(aligned):
        return {}
    found: dict[str, tuple[tuple[str, ...], Tensor]] = {}
    explained = {number: _explained(form, known) for number, form in forms.items()}
    about_a_fit = isinstance(result.parameters.bound, LinearGaussian)
    for name in known:
        feature = (f"feature_{name}",)
        signal = torch.stack([explained[s][name] for s in under])
        noise = torch.stack([forms[s].noise_variance[name] for s in under])
        found[f"communality_{name}"] = (feature, signal / (signal + noise))
        found[f"signal_variance_{name}"] = (feature, signal)
        if name in wanted:
            loadings = torch.stack([forms[s].loadings[name] for s in under])
            found[f"aligned_loadings_{name}"] = ((*feature, "latent"), loadings)
        if about_a_fit:
            found[f"noise_variance_{name}"] = (feature, noise)
            found[f"intercepts_{name}"] = (feature, torch.stack([forms[s].intercepts[name] for s in under]))
    return found


def _distance(result: GaussianPosterior, latents: Tensor) -> Tensor:
    """(z - m0)^T S0^-1 (z - m0), shape (S, N)."""
    width, prior = latents.shape[-1], result.linear_gaussian
    factor: Tensor = torch.linalg.cholesky(prior.prior_covariance[:width, :width])
    distance = latents.new_empty(latents.shape[:2])
    for s, draw in enumerate(latents):  # (S, N, K) twice more may not fit
        whitened = torch.linalg.solve_triangular(factor, (draw - prior.prior_mean[:width]).mT, upper=False)
        distance[s] = whitened.square().sum(dim=0)
    return distance


def _explained(lg: LinearGaussian, names: Sequence[str]) -> dict[str, Tensor]:
    """diag(W S0 W^T) of each modality, (D_m,) each."""
    return {name: ((lg.loadings[name] @ lg.prior_covariance) * lg.loadings[name]).sum(dim=1) for name in names}


def _communalities(lg: LinearGaussian, names: Sequence[str]) -> dict[str, Tensor]:
    """diag(W S0 W^T) / (diag(W S0 W^T) + psi) of each modality, (D_m,) each."""
    return {name: signal / (signal + lg.noise_variance[name]) for name, signal in _explained(lg, names).items()}


def _numpy(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.detach().cpu().numpy()
    return array
