"""mofapy2 (Argelaguet et al., MOFA+, 2020), an optional extra, as a linear-Gaussian model of this package."""

from __future__ import annotations

import contextlib
import importlib.util
import io

import numpy as np
import torch

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian
from experiments.comparison.imputers import has, values


def mofa_is_there() -> bool:
    """Whether mofapy2 is installed."""
    return importlib.util.find_spec("mofapy2") is not None


def fit_mofa(data: MultimodalData, factors: int = 10, iterations: int = 1000) -> LinearGaussian:
    """Fit with mofapy2's defaults: loadings and noise precisions, as posterior means, make the model.

    Args:
        data: training rows; missing values are left out by mofapy2 too.
        factors: to start from.
        iterations: at most.
    """
    from mofapy2.run.entry_point import entry_point  # an optional extra, so imported where it is used

    views = [np.where(has(data, name)[:, None], values(data, name), np.nan) for name in data.names]
    centres = [np.nanmean(view, axis=0) for view in views]
    # its bound takes logarithms of inclusion probabilities that have gone to 0 or 1
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(divide="ignore", invalid="ignore"):
        entry = entry_point()
        entry.set_data_options(scale_views=False)
        entry.set_data_matrix([[view.copy()] for view in views], likelihoods=["gaussian"] * len(views))
        entry.set_model_options(factors=factors)
        entry.set_train_options(iter=iterations, convergence_mode="fast", seed=0, verbose=False)
        entry.build()
        entry.run()
    nodes = entry.model.nodes
    loadings, precisions = nodes["W"].getExpectation(), nodes["Tau"].getExpectation()
    return LinearGaussian(
        {name: torch.as_tensor(loadings[m]).double() for m, name in enumerate(data.names)},
        {name: torch.as_tensor(centre).double() for name, centre in zip(data.names, centres, strict=True)},
        {name: 1 / torch.as_tensor(np.nan_to_num(precisions[m])).double().amax(0) for m, name in enumerate(data.names)},
    )
