"""The gate of Pyro models: what must hold of a model on some data, whichever route it then takes.

- A site counts no value that is not there: masked where its modality is missing, feature by feature where single ones
  are, and with no NaN under a mask, whose gradient would be NaN.
- It observes what the data have, and what its distribution can take.
- The same latents give the same densities: no chance beside the sample sites, nothing that depends on which other
  instances are in the call or on their latents.

Each is seen from densities alone, so that it holds for sites of any family.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pyro.distributions import NanMaskedMultivariateNormal, NanMaskedNormal
from torch import Tensor

from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ModelError
from calmrl_prob.programs.bound import BoundModel
from calmrl_prob.programs.sites import Call, Site
from calmrl_prob.programs.support import edge_rows, warn_unsupported
from calmrl_prob.programs.unvalidated import unvalidated

#: Densities that differ by more than this for each feature, or share of them, differ by more than rounding.
_ROUNDING = {torch.float64: 1e-7, torch.float32: 1e-3}
#: Rows that are looked at, besides those that lack something.
_ROWS = 5


def require_sound(bound: BoundModel, data: MultimodalData) -> None:
    """Refuse a model that breaks one of the rules above on these data; costs six calls on a few rows.

    Args:
        bound: the model, without global latents that are not fitted yet.
        data: the instances.

    Raises:
        ModelError: it does; names the site, the row and the remedy.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(data):
        ...     with pyro.plate("instances", len(data)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        ...         pyro.sample("x", dist.Poisson(z.exp()).to_event(1), obs=data.filled("x"))
        >>> require_sound(BoundModel(model), MultimodalData({"x": torch.ones(2, 1)}))
    """
    rows = telling_rows(data, _ROWS)
    batch = data.subset(rows)
    call = bound.call(batch)
    require_observed(call, batch, rows)
    edges = edge_rows(data)
    edge = data.subset(edges)
    warn_unsupported(bound.call(edge), edge, edges)
    _require_finite(call, rows)
    _require_separate(bound, data, rows)


def require_observed(call: Call, data: MultimodalData, rows: Tensor) -> None:
    """Refuse sites that observe other values than the data have, or count values that are not there.

    Args:
        call: of the model on the data.
        data: a few instances.
        rows: their numbers among all, for messages.

    Raises:
        ModelError: there is one.
    """
    for name, site in call.observed.items():
        present = data.feature_mask(name)
        values = site.rows(site.value)
        _require_values(name, values, data, present)
        density = _density(site, site.value)
        _require_masked(name, density, data, rows)
        # what stands in place of absent values, altered: the density must not see it
        other = _other_values(values, present)
        altered = _density(site, site.shaped(torch.where(present | values.isnan(), values, other)))
        counted = _apart(density, altered, values.shape[1]) & ~present.all(1)
        if bool(counted.any()):
            row = int(rows[counted.cpu()][0])
            raise ModelError(
                f"site {name!r}: its density counts features that are missing (row {row}, say); use "
                f".mask(data.feature_mask({name!r})).to_event(1), with the mask before to_event."
            )


def telling_rows(data: MultimodalData, number: int) -> Tensor:
    """Up to ``number`` rows of :func:`spread_rows`, and for each modality one that lacks it and one that lacks some."""
    found = [spread_rows(data, number)]
    for name in data.names:
        observed = data.observed(name)
        found.append((~observed).nonzero()[:1, 0].cpu())
        if data.has_partial_rows:
            found.append((observed & ~data.feature_mask(name).all(1)).nonzero()[:1, 0].cpu())
    rows: Tensor = torch.unique(torch.cat(found))
    return rows


def spread_rows(data: MultimodalData, number: int) -> Tensor:
    """Up to ``number`` rows: one of each missing pattern first, then at random, always the same."""
    generator = torch.Generator().manual_seed(0)
    index = data.pattern_index.cpu()
    first = torch.as_tensor(np.unique(index.numpy(), return_index=True)[1])
    order = torch.cat([first[: max(1, number // 2)], torch.randperm(len(data), generator=generator)[: 2 * number]])
    return torch.as_tensor(list(dict.fromkeys(order.tolist()))[:number]).sort().values


def _require_finite(call: Call, rows: Tensor) -> None:
    """Refuse NaN under a mask: the density leaves it out, the gradient does not."""
    for name, site in call.observed.items():
        values = site.rows(site.value)
        if not bool(values.isfinite().all()) and not _takes_nan(site.fn):
            row = int(rows[(~values.isfinite()).any(1).cpu()][0])
            raise ModelError(
                f"site {name!r}: it observes NaN where the modality is missing (row {row}, say), of which the gradient "
                f"is NaN even under a mask; pass obs=data.filled({name!r})."
            )


def _takes_nan(fn: Any) -> bool:  # noqa: ANN401 - any distribution
    """Whether NaN is how a distribution is told what is absent."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, NanMaskedNormal | NanMaskedMultivariateNormal)


def _require_values(name: str, values: Tensor, data: MultimodalData, present: Tensor) -> None:
    """A modality's site must observe what the data have."""
    expected = data.filled(name).to(values.dtype)
    if values.shape != expected.shape or bool(
        (~((values - expected).abs() <= 1e-4 * (1 + expected.abs())) & present).any()
    ):
        raise ModelError(
            f"site {name!r}: it observes other values than the data have; pass obs=data.filled({name!r}) and transform "
            "the data themselves before, if they are to be transformed."
        )


def _require_masked(name: str, log_density: Tensor, data: MultimodalData, rows: Tensor) -> None:
    """Refuse a site that adds to the density where its modality is missing."""
    absent = ~data.observed(name)
    if bool((log_density[absent] != 0).any()):
        row = int(rows[absent.cpu()][0])
        raise ModelError(
            f"site {name!r}: it is not masked where the modality is missing (row {row}, say), so that its density "
            f"counts values that are not there; use .mask(data.observed({name!r}))."
        )


def _other_values(values: Tensor, present: Tensor) -> Tensor:
    """For each feature a value that is not what absent ones are filled with: the largest there is, or 1; (F,)."""
    largest = torch.where(present, values, torch.zeros_like(values)).amax(0)
    return torch.where(largest == 0, torch.ones_like(largest), largest)


def _require_separate(bound: BoundModel, data: MultimodalData, rows: Tensor) -> None:
    """Refuse densities that depend on chance, on other instances of the call, or on the latents of those."""
    number = len(rows)
    both = data.subset(torch.cat([rows, spread_rows(data, 3 * number).flip(0)]))
    drawn = bound.call(both)
    latents = {name: site.value.expand(site.fn.shape()) for name, site in drawn.latents.items()}
    places = {name: site.place() for name, site in drawn.latents.items()}
    own = {name: value.narrow(places[name], 0, number) for name, value in latents.items()}
    moved = {
        name: torch.cat(
            [value.narrow(places[name], number, 1), value.narrow(places[name], 1, len(both) - 1)], places[name]
        )
        for name, value in latents.items()
    }
    beside = bound.call(both, latents)
    alone, again = bound.call(data.subset(rows), own), bound.call(data.subset(rows), own, seed=1)
    if list(alone.observed) != list(drawn.observed) or list(alone.latents) != list(drawn.latents):
        changed = sorted({*alone.latents, *alone.observed} ^ {*drawn.latents, *drawn.observed}) or list(alone.latents)
        raise ModelError(
            f"site {changed[0]!r}: the model changes its sites from call to call; give sites fixed names, and no "
            "branches that depend on chance."
        )
    for name in _differing(alone, again, slice(None)):
        raise ModelError(
            f"site {name!r}: for the same latents it differs from call to call; leave out what is random beside the "
            "sample sites, such as dropout (module.eval() switches it off)."
        )
    for name in _differing(alone, beside, slice(0, number)):
        raise ModelError(
            f"site {name!r}: it depends on which other instances are in the call, as where a covariate is standardised "
            "by its mean over them; work such numbers out of all data beforehand."
        )
    for name in _differing(beside, bound.call(both, moved), slice(1, len(both))):
        raise ModelError(
            f"site {name!r}: it depends on the latents of other instances than its own; use a GaussianProcessPrior "
            "where a covariate couples them, else pyro.infer on the whole model."
        )


def _differing(one: Call, other: Call, rows: slice) -> Iterable[str]:
    """The sites whose densities of some rows differ between two calls, the second of which may have more rows."""
    for role in ("latents", "observed"):
        for name, site in getattr(one, role).items():
            before = _density(site, site.value)
            after = _density(getattr(other, role)[name], getattr(other, role)[name].value)
            width = site.rows(site.value).shape[1]
            if bool(_apart(before[: len(after)][rows], after[rows], width).any()):
                yield name


def _density(site: Site, value: Tensor) -> Tensor:
    """The log density of each instance, (n,), at a value in the site's shape."""
    try:
        with unvalidated():
            density = site.fn.log_prob(value)
    except Exception as error:
        raise ModelError(
            f"site {site.name!r}: its density at a given value cannot be had, {type(error).__name__}: {error}; use a "
            "distribution whose log_prob takes any value, such as one of transforms that have an inverse."
        ) from error
    if site.mask is not None:
        density = torch.where(torch.as_tensor(site.mask, device=density.device), density, torch.zeros_like(density))
    moved = density.expand(site.fn.batch_shape).movedim(site.place(), 0)
    return moved.reshape(len(moved), -1).sum(1)


def _apart(one: Tensor, other: Tensor, width: int) -> Tensor:
    """Rows in which two densities of ``width`` features differ by more than rounding."""
    alike = (one - other).abs() <= _ROUNDING.get(one.dtype, 1e-3) * (width + torch.maximum(one.abs(), other.abs()))
    return ~(alike | (one == other) | (one.isnan() & other.isnan()))
