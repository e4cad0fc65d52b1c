"""The settings that are tried, and their order.

At a moderate K the weight of the pseudo-rows goes down a whole ladder, from a prior of many times the rows to one of a
few, and beyond while an end of it is best: scores along it can have several tops. Then other forms of prior and noise
at the best weight; more latents, and fewer, the weight climbed from there; automatic relevance determination; and the
weight in small steps. Shrinkage, not a small K, is what keeps imputations from overfitting: with few latents and no
prior they are wrong, not only poor, since one latent then serves two modalities' own variation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from calmrl_prob.selection.search import Search, Tried
from calmrl_prob.selection.settings import Setting

Step = Callable[[Setting, int], Setting | None]

#: Latents to begin with, most that are tried, and the factor between.
_FIRST_LATENTS, MOST_LATENTS, _TIMES = 64, 256, 4
#: Weights of the pseudo-rows on the ladder, in rows of data; beyond its ends by the last factor, within these limits.
_LADDER, _LIMITS = (3.0, 1.0, 0.3, 0.1, 0.03), (1e-4, 1e4)
#: Factors of the weight between neighbours, in large steps and in small ones.
_LARGE, _SMALL = 10**0.5, 10**0.25
#: What another number of latents, or another form, has to gain in score.
_GAIN = 1e-3
#: Most latents of automatic relevance determination: its steps turn the latents.
_ARD_LATENTS = 32


@dataclass(frozen=True)
class Freedom:
    """Parts of a setting that are to be chosen; the rest stays as it is in the first setting.

    Attributes:
        latent_dim: K.
        noise: its form.
        shrinkage: the prior.
    """

    latent_dim: bool = True
    noise: bool = True
    shrinkage: bool = True


def most_latents(num_instances: int, num_features: int) -> int:
    """The largest K that fits to that many instances can carry, under the cap."""
    return min(MOST_LATENTS, max(1, min(num_instances, num_features) - 1))


def first_setting(num_instances: int, num_features: int, latent_dim: int | None, noise: str) -> Setting:
    """The setting to begin with, for fits to that many instances."""
    return Setting(
        latent_dim if latent_dim is not None else min(_FIRST_LATENTS, most_latents(num_instances, num_features)),
        noise if noise != "auto" else "isotropic",
        pseudo_rows=_rounded(_LADDER[0] * num_instances),
    )


def walk(search: Search, first: Setting, freedom: Freedom, num_instances: int, most: int) -> None:
    """Try settings, the best of what is free one after another.

    Args:
        search: keeps what was tried.
        first: the setting to begin with.
        freedom: what is to be chosen.
        num_instances: that a fit of the search sees.
        most: the largest K.

    Raises:
        BudgetSpentError: the time is spent; what was tried until then is in the search.
    """
    best = search.try_(first, "the first")
    if freedom.shrinkage:
        best = _down_the_ladder(search, best, num_instances)
    best = _forms(search, best, freedom)
    if freedom.latent_dim:
        best = _latents(search, best, freedom, num_instances, most)
    if freedom.shrinkage:
        latents = min(_ARD_LATENTS, most) if freedom.latent_dim else best.setting.latent_dim
        search.try_(Setting(latents, best.setting.noise, ard=True), "automatic relevance determination")
        best = search.best
    if freedom.shrinkage and not best.setting.ard:
        search.climb(best, _weight_step(_SMALL, num_instances), "weight of the prior, small steps")


def _down_the_ladder(search: Search, first: Tried, num_instances: int) -> Tried:
    """All weights of the ladder, each fit from the one before, and on beyond an end that is best."""
    tried = [first]
    for share in _LADDER[1:]:
        setting = first.setting.but(pseudo_rows=_rounded(share * num_instances))
        tried.append(search.try_(setting, "weight of the prior", near=tried[-1]))
    best = max(tried, key=search.value)
    if best in (tried[0], tried[-1]):
        best = search.climb(best, _weight_step(_LARGE, num_instances), "weight of the prior, beyond the ladder")
    return best


def _forms(search: Search, best: Tried, freedom: Freedom) -> Tried:
    """Variances of features in the prior, and noise by feature, where that is better."""
    forms: list[tuple[dict[str, Any], str]] = []
    if freedom.shrinkage:
        forms.append(({"pooling": 0.0}, "variances of features in the prior"))
    if freedom.noise:
        forms.append(({"noise": "diagonal"}, "noise by feature"))
    for change, reason in forms:
        other = search.try_(best.setting.but(**change), reason, near=best)
        if search.value(other) > search.value(best) + _GAIN:
            best = other
    return best


def _latents(search: Search, best: Tried, freedom: Freedom, num_instances: int, most: int) -> Tried:
    """Many latents, or few with the weight climbed, where that is better; then half as many if that is as good."""
    step = _weight_step(_LARGE, num_instances)
    begun = best
    few = search.try_(best.setting.but(latent_dim=max(1, best.setting.latent_dim // _TIMES)), "few latents")
    if freedom.shrinkage:
        few = search.climb(few, step, "weight of the prior with few latents")
    if best.setting.latent_dim < most:
        many = search.try_(best.setting.but(latent_dim=min(_TIMES * best.setting.latent_dim, most)), "many latents")
        best = many if search.value(many) > search.value(best) + _GAIN else best
    if search.value(few) > search.value(best) + _GAIN:
        best = few
    if best is begun and freedom.shrinkage:
        return best
    while best.setting.latent_dim > 1:
        half = search.try_(best.setting.but(latent_dim=best.setting.latent_dim // 2), "half as many latents")
        if search.value(half) < search.value(best) - _GAIN:
            break
        best = half
    return best


def _weight_step(factor: float, num_instances: int) -> Step:
    """Steps of the weight of the pseudo-rows, up and down."""

    def step(setting: Setting, direction: int) -> Setting | None:
        weight = setting.pseudo_rows * factor**direction
        if not _LIMITS[0] * num_instances <= weight <= _LIMITS[1] * num_instances:
            return None
        return setting.but(pseudo_rows=_rounded(weight))

    return step


def _rounded(weight: float) -> float:
    """To three digits, as tables show it."""
    return float(f"{weight:.3g}")
