"""MOFA-FLEX (mofaflex), an optional extra, as a linear-Gaussian model of this package; mofapy2 is in default_choice."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile

import torch

from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian


def mofaflex_is_there() -> bool:
    """Whether mofaflex is installed."""
    return importlib.util.find_spec("mofaflex") is not None


def fit_mofaflex(data: MultimodalData, factors: int = 10, epochs: int = 2000, seed: int = 0) -> LinearGaussian:
    """Fit with its horseshoe prior of the weights, at ten times its rate, with which it ends by itself well within.

    Args:
        data: training rows; what they lack it leaves out.
        factors: as many as mofapy2 starts from.
        epochs: at most.
        seed: of its draws.
    """
    import pandas as pd

    logging.getLogger("mofaflex").setLevel(logging.ERROR)
    views, scale = {}, {}
    # its dependencies cannot write the strings of pandas 3
    with pd.option_context("future.infer_string", False), contextlib.redirect_stderr(io.StringIO()):
        import anndata
        import mofaflex

        for name in data.names:
            rows = data.observed(name).nonzero().squeeze(1)
            values = data[name][rows]
            scale[name] = float((values - values.mean(0)).std())  # what it divides a view by
            views[name] = anndata.AnnData(values.numpy(), obs=pd.DataFrame(index=[f"s{row}" for row in rows.tolist()]))
            views[name].var_names = [f"{name}_{d}" for d in range(values.shape[1])]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            fitted = mofaflex.MOFAFLEX(
                {"all": views},
                mofaflex.DataOptions(plot_data_overview=False, scale_per_group=False),
                mofaflex.ModelOptions(
                    n_factors=factors, weight_prior="Horseshoe", likelihoods="Normal", init_factors="pca"
                ),
                mofaflex.TrainingOptions(
                    device="cpu", max_epochs=epochs, lr=0.01, seed=seed, save_path=f"{folder}/model.h5"
                ),
            )
    weights, dispersion = fitted.get_weights("numpy"), fitted.get_dispersion("numpy")
    return LinearGaussian(
        {n: torch.as_tensor(weights[n]).double().mT * scale[n] for n in views},
        {n: data[n].double().nanmean(0) for n in views},
        {n: (scale[n] / torch.as_tensor(dispersion[n]).double()).square() for n in views},
    )
