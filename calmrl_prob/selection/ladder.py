"""Which settings are tried, and in which order.

The weight of the pseudo-rows is climbed along a geometric ladder, at few latents, where a fit is cheap; then with more
latents as long as that is better, the weight climbed again each time, since shrinkage, not a small K, is what keeps
imputations from overfitting (a small K without it makes them wrong, not only poor: one latent serves two modalities'
own variation). Then, at the best: variances of features instead of modalities in the prior, noise by feature, automatic
relevance determination, and the weight in small steps. Ranges have no ends: what is best at an edge is gone beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calmrl_prob.selection.search import Search, Tried
from calmrl_prob.selection.settings import Setting

Step = Callable[[Setting, int], Setting | None]

#: Latents to begin with, most that are tried, and the factor between.
_FIRST_LATENTS, MOST_LATENTS, _TIMES = 16, 256, 4
#: Factors of the weight of pseudo-rows between neighbours, in large steps and in small ones.
_LARGE, _SMALL = 10**0.5, 10**0.25
#: The weight to begin with, as a share of the rows, the least, and the most in rows of data.
_SHARE, _LEAST, _MOST_ROWS = 0.3, 1.0, 1e4
#: Most latents at which the weight is climbed in large steps.
_CLIMBED_LATENTS = 64
#: What more latents, or another form, have to gain in score; and what a setting may be behind to be worth a climb.
_GAIN, _PROMISING = 1e-3, 0.03
#: Most latents of automatic relevance determination: its steps turn the latents.
_ARD_LATENTS = 32


@dataclass(frozen=True)
class Freedom:
    """What is to be chosen; the rest stays as it is in the first setting.

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
        pseudo_rows=max(_LEAST, round(_SHARE * num_instances, 1)),
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
    step = _weight_step(_LARGE, num_instances)
    best = search.try_(first, "the first")
    if freedom.shrinkage:
        best = search.climb(best, step, "weight of the prior")
    best = _forms(search, best, freedom)
    if freedom.latent_dim:
        best = _latents(search, best, freedom, step, most)
    if freedom.shrinkage:
        latents = min(_ARD_LATENTS, most) if freedom.latent_dim else best.setting.latent_dim
        search.try_(Setting(latents, best.setting.noise, ard=True), "automatic relevance determination")
        best = search.best
    if freedom.shrinkage and not best.setting.ard:
        search.climb(best, _weight_step(_SMALL, num_instances), "weight of the prior, small steps")


def _forms(search: Search, best: Tried, freedom: Freedom) -> Tried:
    """Variances of features in the prior, and noise by feature, where that is better."""
    forms = []
    if freedom.shrinkage:
        forms.append(({"pooling": 0.0}, "variances of features in the prior"))
    if freedom.noise:
        forms.append(({"noise": "diagonal"}, "noise by feature"))
    for change, reason in forms:
        other = search.try_(best.setting.but(**change), reason, near=best)
        if search.value(other) > search.value(best) + _GAIN:
            best = other
    return best


def _latents(search: Search, best: Tried, freedom: Freedom, step: Step, most: int) -> Tried:
    """More latents as long as that is better; else fewer; then half as many if that is as good."""
    begun = best.setting.latent_dim

    def at(latent_dim: int, reason: str) -> Tried:
        found = search.try_(best.setting.but(latent_dim=latent_dim), reason, near=best)
        cheap = latent_dim <= _CLIMBED_LATENTS  # beyond, the weight hardly moves, and each fit costs more
        if freedom.shrinkage and cheap and search.value(found) > search.value(best) - _PROMISING:
            found = search.climb(found, step, f"weight of the prior, {reason}")
        return found

    while best.setting.latent_dim < most:
        more = at(min(_TIMES * best.setting.latent_dim, most), "more latents")
        if search.value(more) <= search.value(best) + _GAIN:
            break
        best = more
    if best.setting.latent_dim > begun:
        half = search.try_(best.setting.but(latent_dim=best.setting.latent_dim // 2), "fewer latents")
        return half if search.value(half) > search.value(best) - _GAIN else best
    while best.setting.latent_dim > 1:
        fewer = at(best.setting.latent_dim // 2, "fewer latents")
        if search.value(fewer) < search.value(best) - _GAIN:
            break
        best = fewer
    return best


def _weight_step(factor: float, num_instances: int) -> Step:
    """Steps of the weight of the pseudo-rows, up and down."""

    def step(setting: Setting, direction: int) -> Setting | None:
        weight = setting.pseudo_rows * factor**direction
        if not 0.1 * _LEAST <= weight <= _MOST_ROWS * num_instances:
            return None
        return setting.but(pseudo_rows=float(f"{weight:.3g}"))

    return step
