"""The settings that are tried, and their order.

At a moderate K the weight of the pseudo-rows goes down a whole ladder, from a prior of many times the rows to one of a
few, and beyond while an end of it is best: scores along it can have several tops. Then other forms of prior and noise
at the best weight, noise that is correlated within a modality among them; fewer latents, and more, the weight climbed
from there; automatic relevance determination; and the weight in small steps. Shrinkage, not a small K, is what keeps
imputations from overfitting: with few latents and no prior they are wrong, not only poor, since one latent then serves
two modalities' own variation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calmrl_prob.selection.search import Search, Tried
from calmrl_prob.selection.settings import Setting

Step = Callable[[Setting, int], Setting | None]

#: Latents to begin with, most that are tried, and the factor down to few.
_FIRST_LATENTS, MOST_LATENTS, _TIMES = 64, 256, 4
#: Weights of the pseudo-rows on the ladder, in rows of data; beyond its ends by the last factor, within these limits.
_LADDER, _LIMITS = (3.0, 1.0, 0.3, 0.1, 0.03), (1e-4, 1e4)
#: Factors of the weight between neighbours, in large steps and in small ones.
_LARGE, _SMALL = 10**0.5, 10**0.25
#: Most features of a modality for which all their covariance is tried as its noise, and the rank beyond.
_FULL_FEATURES, _RANK = 600, 16
#: What another number of latents, or another form, has to gain in score.
_GAIN = 1e-3
#: How far behind correlated noise a fit without it may be for many more latents to be tried in its place.
_CLOSE = 0.02
#: How far behind the best a setting, or the best of its kind, is not followed further.
_FAR = 0.1
#: Most latents of automatic relevance determination: its steps turn the latents.
_ARD_LATENTS = 32


@dataclass(frozen=True)
class Freedom:
    """Parts of a setting that are to be chosen; the rest stays as it is in the first.

    Attributes:
        latent_dim: K.
        noise: its form.
        shrinkage: the prior.
        correlated: whether noise may be correlated within a modality, which whole modalities allow.
    """

    latent_dim: bool = True
    noise: bool = True
    shrinkage: bool = True
    correlated: bool = True


@dataclass(frozen=True)
class Size:
    """Size of what a fit of the search sees.

    Attributes:
        num_instances: N.
        dims: number of features D_m of each modality.
    """

    num_instances: int
    dims: Mapping[str, int]

    @property
    def most_latents(self) -> int:
        """The largest K that such rows can carry, under the cap."""
        return min(MOST_LATENTS, max(1, min(self.num_instances, sum(self.dims.values())) - 1))

    @property
    def correlated_noise(self) -> dict[str, Any]:
        """Noise correlated within a modality that its widths allow, as attributes of a setting."""
        if max(self.dims.values()) <= _FULL_FEATURES:
            return {"noise": "full"}
        return {"noise": "low_rank", "noise_rank": min(_RANK, *self.dims.values())}


def first_setting(size: Size, latent_dim: int | None, noise: str, noise_rank: Any = None) -> Setting:  # noqa: ANN401 - by name or not
    """The setting to begin with, for fits to data of that size."""
    return Setting(
        latent_dim if latent_dim is not None else min(_FIRST_LATENTS, size.most_latents),
        noise if noise != "auto" else "isotropic",
        pseudo_rows=_rounded(_LADDER[0] * size.num_instances),
        noise_rank=noise_rank,
    )


def walk(search: Search, first: Setting, freedom: Freedom, size: Size) -> Tried:
    """Try settings, the best of what is free one after another; of as good ones that with fewer latents.

    Args:
        search: keeps what was tried.
        first: the setting to begin with.
        freedom: what is to be chosen.
        size: of what a fit of the search sees.

    Returns:
        The setting to take.

    Raises:
        BudgetSpentError: the time is spent; what was tried until then is in the search.
    """
    best = search.try_(first, "the first")
    if freedom.shrinkage:
        best = _down_the_ladder(search, best, size.num_instances)
    best = plain = _forms(search, best, freedom)
    if freedom.noise and freedom.correlated:
        best = _correlated(search, best, freedom, size)
    if freedom.latent_dim:
        best = _latents(search, best, freedom, size)
        if best.setting.noise != plain.setting.noise and search.value(plain) > search.value(best) - _CLOSE:
            many = plain.setting.but(latent_dim=size.most_latents)
            best = _better(search, best, search.try_(many, "many latents in place of correlated noise"))
    if freedom.shrinkage and search.value(plain) > search.value(best) - _FAR:  # as it has no correlated noise either
        best = _relevance(search, best, freedom, size)
    if freedom.shrinkage and not best.setting.ard:
        best = search.climb(best, _weight_step(_SMALL, size.num_instances), "weight of the prior, small steps")
    return best


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
        best = _better(search, best, search.try_(best.setting.but(**change), reason, near=best))
    return best


def _correlated(search: Search, best: Tried, freedom: Freedom, size: Size) -> Tried:
    """Noise that is correlated within a modality, the weight climbed, where that is better."""
    other = search.try_(best.setting.but(**size.correlated_noise), "noise correlated within a modality")
    if freedom.shrinkage:
        step = _weight_step(_LARGE, size.num_instances)
        # what such noise explains needs no shrinkage, so that the weight is most likely to go down
        other = search.climb(other, step, "weight of the prior with such noise", first=-1)
    return _better(search, best, other)


def _latents(search: Search, best: Tried, freedom: Freedom, size: Size) -> Tried:
    """Few latents or more, whichever are better; few with the weight climbed, then half as many if that is as good."""
    begun = best
    few = search.try_(best.setting.but(latent_dim=max(1, best.setting.latent_dim // _TIMES)), "few latents")
    if search.value(few) <= search.value(begun) + _GAIN:  # else more are further behind still, and cost most
        while best.setting.latent_dim < size.most_latents:
            twice = min(2 * best.setting.latent_dim, size.most_latents)
            more = _better(search, best, search.try_(best.setting.but(latent_dim=twice), "more latents"))
            if more is best:
                break
            best = more
    if search.value(begun) < search.value(best) - _CLOSE:
        return best
    if freedom.shrinkage and search.value(few) > search.value(best) - _FAR:
        step = _weight_step(_LARGE, size.num_instances)
        few = search.climb(few, step, "weight of the prior with few latents")
    if search.value(few) > search.value(best) - _GAIN:
        best = few
    elif best is not begun:
        return best
    while best.setting.latent_dim > 1:
        half = search.try_(best.setting.but(latent_dim=best.setting.latent_dim // 2), "half as many latents")
        if search.value(half) < search.value(best) - _GAIN:
            break
        best = half
    return best


def _relevance(search: Search, best: Tried, freedom: Freedom, size: Size) -> Tried:
    """Latents that can be switched off for a modality."""
    latents = min(_ARD_LATENTS, size.most_latents) if freedom.latent_dim else best.setting.latent_dim
    relevant = best.setting.but(latent_dim=latents, ard=True, pseudo_rows=0.0, pooling=1.0)
    if freedom.noise and relevant.noise in ("full", "low_rank"):
        relevant = relevant.but(noise="isotropic", noise_rank=None)
    return _better(search, best, search.try_(relevant, "automatic relevance determination"))


def _better(search: Search, best: Tried, other: Tried) -> Tried:
    """The other where it gains enough."""
    return other if search.value(other) > search.value(best) + _GAIN else best


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
