"""Closed-form EM under mixture and group priors: the method "mixture em" of ``calmrl_prob.fit``."""

from __future__ import annotations

from typing import Any

import torch

from calmrl_prob._support.arguments import keyword_options, require_known_options
from calmrl_prob._support.progress import Callback
from calmrl_prob.data import MultimodalData
from calmrl_prob.errors import ArgumentError, DataError
from calmrl_prob.inference.protocols import Loads
from calmrl_prob.linear_gaussian import (
    EMResult,
    FeatureBlocks,
    LinearGaussian,
    ObservedBlocks,
    StructuresByInstance,
    fit_em,
    posterior,
)
from calmrl_prob.linear_gaussian.mixture.em import MixtureEMOptions, fit_mixture_em, split_by_labels
from calmrl_prob.linear_gaussian.mixture.model import LinearGaussianMixture

#: What the fit settles itself; every other keyword of ``fit_mixture_em`` is an option.
_SETTLED = ("noise", "known_components", "callback")
_OPTIONS = keyword_options(fit_mixture_em, _SETTLED, MixtureEMOptions)
#: Iterations of the single Gaussian that clusters are looked for under: it need not be perfect.
_START_ITERATIONS = 100


def run_mixture_em(
    model: Loads,
    structure: LinearGaussianMixture | StructuresByInstance,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    **options: Any,
) -> EMResult[LinearGaussianMixture]:
    """Fit a model with a mixture or group prior in place.

    Under a mixture prior it starts from a single Gaussian, whose posterior means are clustered (k-means).

    Args:
        model: takes over what was found.
        structure: as the model states it: a mixture, or one structure for each known group of instances.
        data: N instances.
        seed: of the clusters.
        callback: called after each step with the number of E-steps so far and the evidence, nats.
        **options: keywords of :func:`calmrl_prob.linear_gaussian.fit_mixture_em`.

    Raises:
        ArgumentError: an unknown option, one out of range, or more components than instances.
        DataError: a group of the prior has no instance.
    """
    require_known_options(options, _OPTIONS, "method 'mixture em'")
    blocks = data.conform(model.dims).blocks
    single = fit_em(
        blocks,
        model.latent_dim,
        noise=model.noise,
        seed=seed,
        max_iterations=_START_ITERATIONS,
        tolerance=1e-4,
        noise_pseudo_count=options.get("noise_pseudo_count", 0.0),
    ).linear_gaussian
    known = None
    if isinstance(structure, StructuresByInstance):
        known = structure.index
        _require_all_groups(structure)
        start = split_by_labels(single, blocks, known, len(structure.groups))
    else:
        start = clustered(single, blocks, structure.num_components, seed)
    result = fit_mixture_em(blocks, start, noise=model.noise, known_components=known, callback=callback, **options)
    model.load(result.structure)
    return result


def clustered(
    single: LinearGaussian, blocks: ObservedBlocks | FeatureBlocks, num_components: int, seed: int
) -> LinearGaussianMixture:
    """A mixture to start from: the posterior means under one Gaussian, clustered by k-means.

    Raises:
        ArgumentError: there are more components than instances.
    """
    from sklearn.cluster import KMeans

    means = posterior(single, blocks).mean.double().cpu().numpy()
    if num_components > len(means):
        raise ArgumentError(f"prior: {num_components} components are more than the {len(means)} instances.")
    found = KMeans(num_components, n_init=4, random_state=seed % 2**32).fit(means)
    labels = torch.as_tensor(found.labels_, dtype=torch.int64, device=blocks.device)
    return split_by_labels(single, blocks, labels, num_components)


def _require_all_groups(structure: StructuresByInstance) -> None:
    counts = torch.bincount(structure.index.cpu(), minlength=len(structure.groups))
    empty = [group for group, count in zip(structure.groups, counts.tolist(), strict=True) if not count]
    if empty:
        raise DataError(
            f"data: no instance belongs to group {empty[0]!r} of {structure.column!r}, so that its mean cannot be "
            "learned; leave it out of the prior's groups."
        )
