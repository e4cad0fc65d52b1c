"""Variational fits of models that contain the linear-Gaussian one: started where closed-form EM ends."""

from __future__ import annotations

from typing import Any

from calmrl_prob.data import MultimodalData
from calmrl_prob.inference.posterior import Fittable
from calmrl_prob.inference.progress import Callback
from calmrl_prob.inference.svi import SVIResult, run_svi
from calmrl_prob.linear_gaussian import fit_em
from calmrl_prob.tracing import BoundModel


def fit_svi_from_em(
    model: Fittable,
    data: MultimodalData,
    seed: int,
    callback: Callback | None,
    *,
    noise_pseudo_count: float = 100.0,
    **options: Any,
) -> SVIResult:
    """Fit in place: loadings, intercepts and noise by closed-form EM first, then everything by SVI.

    From random parameters SVI needs thousands of steps to get where EM is in a second, and often ends elsewhere.

    Args:
        model: a Pyro module that can take over a ``LinearGaussian`` with a standard normal prior.
        data: N instances.
        seed: of both.
        callback: called after each round of SVI.
        noise_pseudo_count: weight of the noise prior of the EM fit, in observations of each feature.
        **options: of :func:`calmrl_prob.inference.svi.fit_svi`.

    Raises:
        ArgumentError: an unknown option.
    """
    blocks = data.conform(model.dims).blocks
    found = fit_em(
        blocks, model.latent_dim, noise=model.noise, seed=seed, tolerance=1e-4, noise_pseudo_count=noise_pseudo_count
    )
    model.load_linear_gaussian(found.linear_gaussian)
    return run_svi(BoundModel(model), data, seed, callback, **options)  # type: ignore[arg-type]  # a module too
