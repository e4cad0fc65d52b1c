"""Families of latents beyond the normal one: Student-t and mixture priors, fitted and scored as the other settings are.

They begin with the number of latents and the noise of the best normal setting, and halve the number while that gains.
No pseudo-rows exist for them, nor any other prior of the loadings: what shrinks them is fewer latents, and of mixtures
the pseudo-instances of their components, K of them, which draw the covariance of each to what all have in common. They
need rows: responsibilities and scales are each instance's own. Their log score is that of their predictive densities,
with variances put right as those of normal ones are (``scores.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError
from calmrl_prob.inference.exact.mixture import run_mixture_em
from calmrl_prob.inference.exact.scale_mixture_fit import run_scale_em
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.posteriors.rescaled import Rescaled
from calmrl_prob.priors import MixturePrior, Prior, StudentTPrior
from calmrl_prob.selection.folds import Fold
from calmrl_prob.selection.held_out import HeldOutSums, added
from calmrl_prob.selection.predicted import predicted_rows
from calmrl_prob.selection.search import BudgetSpentError, Search, Tried
from calmrl_prob.selection.settings import Setting

#: The families that are tried, in order, each with its numbers of components.
_KINDS: dict[str, tuple[int | None, ...]] = {"student_t": (None,), "mixture": (2, 3, 4)}
#: Tolerance of a fit of the search and its E-steps at most; without a prior, one that stopped early would look better.
_TOLERANCE, _MOST_STEPS = 1e-4, 200
#: What another family has to gain in score over the normal one.
_GAIN = 1e-3
_SMALLEST = 1e-12


def prior_of(setting: Setting, seed: int = 0, dtype: torch.dtype = torch.float64) -> Prior | None:
    """The prior of the latents that a setting asks for; None for the standard normal."""
    if setting.family == "student_t":
        return StudentTPrior(setting.latent_dim, dtype=dtype)
    if setting.family == "mixture":
        assert setting.num_components is not None
        return MixturePrior(setting.latent_dim, setting.num_components, seed=seed, dtype=dtype)
    return None


def model_of(
    dims: dict[str, int], setting: Setting, seed: int, dtype: torch.dtype = torch.float64
) -> SharedLatentModel:
    """A model to fit with a setting."""
    noise: Any = setting.noise
    return SharedLatentModel(dims, setting.latent_dim, noise, prior_of(setting, seed, dtype), dtype=dtype)


def try_families(
    search: Search, best: Tried, families: Sequence[str], trains: Sequence[MultimodalData], free: bool
) -> tuple[Tried, str]:
    """Try the families beside the normal one, and take the best setting where it gains enough.

    Args:
        search: of the normal settings; what is tried is added to it.
        best: the setting that it took.
        families: "student_t", "mixture".
        trains: for each fold the rows of the other folds.
        free: whether the number of latents is open.

    Returns:
        The setting to take, and what could not be tried, in words; empty if nothing.
    """
    normal = [tried for tried in search.tried.values() if tried.setting.noise in ("isotropic", "diagonal")]
    begin = best if best in normal else max(normal, key=search.value, default=None)
    if begin is None:
        return best, f"{_listed(families)}: they take noise 'isotropic' or 'diagonal', and no such setting was tried"
    base = begin.setting.but(pseudo_rows=0.0, pooling=1.0, ard=False)
    found, problems = best, list[str]()
    kinds = [(family, count) for family, counts in _KINDS.items() if family in families for count in counts]
    for number, (family, count) in enumerate(kinds):
        try:
            tried = _fewer_latents(search, base.but(family=family, num_components=count), trains, free)
        except BudgetSpentError:
            left = [f"{name} of {c}" if c else name for name, c in kinds[number:]]
            return found, "; ".join([*problems, f"the budget was spent before all of {_listed(left)} were tried"])
        except ArgumentError as error:  # more components than instances, or latents than a fold can carry
            problems.append(f"{family}: {error}")
            continue
        if search.value(tried) > search.value(found) + (_GAIN if found is best else 0.0):
            found = tried
        if family == "mixture":
            base = base.but(latent_dim=tried.setting.latent_dim)  # more components begin where fewer ended
    return found, "; ".join(problems)


def _fewer_latents(search: Search, setting: Setting, trains: Sequence[MultimodalData], free: bool) -> Tried:
    """A family with the latents of the setting, and, where their number is free, half as many while that gains."""
    best = _try(search, setting, "another family of latents", trains)
    while free and best.setting.latent_dim > 1:
        fewer = best.setting.but(latent_dim=best.setting.latent_dim // 2)
        half = _try(search, fewer, "another family, half as many latents", trains)
        if search.value(half) <= search.value(best):
            break
        best = half
    return best


def _try(search: Search, setting: Setting, reason: str, trains: Sequence[MultimodalData]) -> Tried:
    return search.scored(setting, reason, lambda k: _fitted(trains[k], setting, search.seed), sums_of_predictives)


def _fitted(train: MultimodalData, setting: Setting, seed: int) -> SharedLatentModel:
    """A model of the family, fitted by closed-form EM."""
    model = model_of(train.dims, setting, seed)
    structure: Any = model.structure()
    run: Any = run_mixture_em if setting.family == "mixture" else run_scale_em
    run(model, structure, train, seed, None, tolerance=_TOLERANCE, max_iterations=_MOST_STEPS)
    return model


def sums_of_predictives(fold: Fold, model: SharedLatentModel) -> list[HeldOutSums]:
    """Sums of squared errors of a fold's rows, and their log densities once variances are right.

    Of each modality and pattern of others the variances of each feature are multiplied by the factor that makes the
    mean squared standardised error 1: of a normal predictive the log density is then that of normal errors, which is
    what :func:`calmrl_prob.selection.scores.score_fold` supposes where it has squared errors alone.
    """
    assert fold.data is not None
    parts = predicted_rows(model, fold.data)
    sums = added(part.held_out().sums(fold.centre[part.modality]) for part in parts)
    total = {key: torch.zeros_like(part.square_error) for key, part in sums.items()}
    for part in predicted_rows(model, fold.data):  # anew, chunk by chunk: densities of all rows would fill the memory
        key = (part.modality, part.seen)
        whole = sums[key]
        factor = whole.square_error / (whole.count.clamp(min=1) * whole.variance)
        right = replace(part, predictive=Rescaled(part.predictive, factor.clamp(min=_SMALLEST)))
        total[key] += right.log_density.nansum(dim=0)
    return [replace(part, log_density=total[key]) for key, part in sums.items()]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))
