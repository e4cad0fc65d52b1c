"""Imputations by other packages, each as its users would have them: ``(train, test, ...) -> {modality: (N_test, D)}``.

Packages are optional extras, so that each is imported where it is used.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

import calmrl_prob as cal

if TYPE_CHECKING:
    from cca_zoo.linear import MCCA
    from cca_zoo.probabilistic import GFA

Values = dict[str, NDArray[np.float64]]
_MOST_EPOCHS = 1000


def default(train: cal.MultimodalData, test: cal.MultimodalData) -> Values:
    """This package, with nothing chosen."""
    fit = cal.fit(cal.SharedLatentModel(train.dims), train)
    return {name: mean.numpy() for name, mean in cal.impute(fit, test).mean.items()}


def mcca(train: cal.MultimodalData, test: cal.MultimodalData, components: int, shrinkage: float) -> Values:
    """Multiset CCA of cca-zoo, of complete rows: its views may not have missing rows."""
    from cca_zoo.linear import MCCA

    return _predicted(MCCA(n_components=components, shrinkage=shrinkage), train, test)


def gfa(train: cal.MultimodalData, test: cal.MultimodalData, components: int) -> Values:
    """Group factor analysis of cca-zoo, of complete rows; relevance priors prune components."""
    from cca_zoo.probabilistic import GFA

    return _predicted(GFA(n_components=components, random_state=0, n_posterior_samples=1), train, test)


def _predicted(model: MCCA | GFA, train: cal.MultimodalData, test: cal.MultimodalData) -> Values:
    """What cca-zoo's ``predict`` says of each view, of rows with the same views at a time."""
    complete = train.subset(train.complete_rows())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its convergence, which no setting here depends on
        model.fit([complete[name].numpy() for name in train.names])
    values = {name: np.zeros((len(test), width)) for name, width in train.dims.items()}
    there = test.observed_mask.numpy()
    for pattern in np.unique(there, axis=0):
        rows = (there == pattern).all(1)
        views = [test[name].numpy()[rows] if seen else None for name, seen in zip(train.names, pattern, strict=True)]
        for name, found in zip(train.names, model.predict(views), strict=True):
            values[name][rows] = found
    return values


def muvi(train: cal.MultimodalData, test: cal.MultimodalData, factors: int) -> Values:
    """MuVI without feature sets, its defaults but for ten times its rate and fewer epochs.

    It knows no new rows, so that those to impute are among the rows of the fit.
    """
    import muvi as package

    logging.getLogger("muvi").setLevel(logging.ERROR)
    both = {name: torch.cat([train[name], test[name]]).numpy() for name in train.names}
    mean, spread = ({name: f(x) for name, x in both.items()} for f in (lambda x: np.nanmean(x, 0), _overall_sd))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = package.MuVI(both, n_factors=factors, device="cpu")
        model.fit(n_epochs=_MOST_EPOCHS, learning_rate=0.05, seed=0, verbose=False)
        found = model.get_reconstructed()
    return {name: (found[name] * spread[name] + mean[name])[len(train) :] for name in train.names}


def _overall_sd(values: NDArray[np.float64]) -> np.float64:
    """The one number by which MuVI divides a view."""
    return np.nanstd(values - np.nanmean(values, 0))
