"""Classes from a fitted model and labels of some instances: the function that users call as ``cal.classify``."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief, checked_seed
from calmrl_prob.classification.choice import TriedSetting, choose, temperatures
from calmrl_prob.classification.classifier import Classifier
from calmrl_prob.classification.folds import HeldOut, Labelled, canonical_order, held_out_folds
from calmrl_prob.classification.options import ClassifyOptions, ClassSetting
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.entries import entries, grouped
from calmrl_prob.data.features import names_of, with_names
from calmrl_prob.data.row_labels import RowLabels
from calmrl_prob.data.stream import require_data
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlWarning, DataError
from calmrl_prob.inference.feature_names import named_dims
from calmrl_prob.inference.posterior import as_linear_gaussian
from calmrl_prob.inference.protocols import Model
from calmrl_prob.inference.result import FitResult
from calmrl_prob.linear_gaussian import posterior
from calmrl_prob.linear_gaussian.mixture.labelled import standardized
from calmrl_prob.model import SharedLatentModel
from calmrl_prob.programs.bound import BoundModel
from calmrl_prob.selection import Choice
from calmrl_prob.selection.folds import deal

#: The tolerance of the last EM, nats an instance.
_TOLERANCE = 1e-4


@torch.no_grad()
def classify(
    model: Model | FitResult,
    data: MultimodalData,
    labels: object = None,
    *,
    seed: int = 0,
    options: ClassifyOptions | None = None,
    **settings: Any,
) -> Classifier:
    """A classifier of instances with any modalities missing, of a fitted model and the labels of some instances.

    Of each class c, R directions U of the fitted model's latents (those of correlated noise included) have a Gaussian
    of their own, and everything else is the fitted model's:

        U^T z | c ~ N(m_c, S_c),    p(c | x) = pi_c p(x | c) / sum_c' pi_c' p(x | c')

    p(x | c) is in closed form for whatever an instance has; what it lacks is integrated out, not filled in. U spans the
    class means that the labelled instances tell of, m_c, S_c and pi_c come of EM in closed form, in which instances
    without a label count as a mixture if held-out labels are better known so, pi_c with one pseudo-instance a class.
    How much means are drawn to that of all and covariances to what they have in common, R, a temperature and the share
    of instances that the model knows nothing of are chosen by the log probability of held-out labels; and so is whether
    regression of labels on the latents gives U, or the classes too, which is better where latents outnumber the rows:
    those are the Gaussians that have its log odds. What order the instances come in is of no account.

    Sources: Hastie & Tibshirani, Discriminant analysis by Gaussian mixtures (1996); McLachlan & Peel, Finite Mixture
    Models (2000), section 2.19; Guo et al., On calibration of modern neural networks (2017), for the temperature.

    Args:
        model: a linear-Gaussian model with one Gaussian prior, or what ``calmrl_prob.fit`` returned. Only of a fit
            whose settings were chosen does this know how to fit it again without held-out rows; else the rows that
            labels are held out of are those that the model has seen, which makes probabilities too bold.
        data: N instances, those that the model was fitted to. Of a model with batches shifts and scales are taken off.
        labels: (N,) classes, None or NaN where not known; ``data.labels`` if not given. Where they have labels of rows,
            as a pandas Series has, these decide.
        seed: of folds and fits.
        options: :class:`ClassifyOptions`; its defaults if not given.
        **settings: fields of the options by name, such as ``folds`` or ``groups``.

    Returns:
        The classifier: ``probabilities``, ``predict`` and, of the latents, ``posterior`` of any data.

    Raises:
        DataError: there are no labels, as many as instances, or fewer than two classes; or no class has two instances;
            or an instance has a modality of which its batch has no intercept.
        ArgumentError: an option is unknown or out of range, or there are fewer groups than folds.
        ArgumentTypeError: ``data`` is of another type, or the model has no linear-Gaussian form.
        SchemaError: the data have a modality, or features, that are not the model's.

    Warns:
        CalmrlWarning: a class has a single labelled instance: its covariance is that of all classes.

    Example:
        >>> import calmrl_prob as cal
        >>> leaves = cal.datasets.load_leaves()
        >>> few = leaves.subset(leaves.labels < 4)
        >>> train = few.train.mask(cal.missingness.mcar(few.train, rate=0.3, seed=0))
        >>> model = cal.SharedLatentModel(train.dims, latent_dim=4)
        >>> fit = cal.fit(model, train, pseudo_rows=30)
        >>> classifier = cal.classify(fit, train)
        >>> found = classifier.probabilities(few.test.select(["margin"]))  # shape and texture missing
        >>> found.shape, bool((classifier.predict(few.test) == few.test.labels).mean() > 0.8)
        ((16, 4), True)
    """
    how = ClassifyOptions.of(options, settings, "classify")
    require_data(data)
    seed = checked_seed(seed)
    fitted = model.model if isinstance(model, FitResult) else model
    if isinstance(fitted, BoundModel):
        raise ArgumentTypeError(
            "model: expected one of a single linear-Gaussian form that it states, got a fitted Pyro model; pass a "
            "SharedLatentModel, or cal.discover(fit.model, data).linear_gaussian() where it is conjugate."
        )
    own = as_linear_gaussian(fitted)
    dims = with_names(own.dims, names_of(named_dims(model)), data.feature_names)
    data = data.conform(dims)
    batch = fitted.batch if isinstance(fitted, SharedLatentModel) else None
    if batch is not None:  # the model is that of rows whose shifts and scales are taken off
        data = batch.require_adjusted(data)
    classes, codes = _coded(data, labels)
    groups = _groups(data, how)
    order = canonical_order(data, codes.cpu().numpy(), groups)
    data, codes = data.subset(order), codes[order]
    whole = replace(standardized(own), feature_names=names_of(dims) or None)
    labelled = Labelled(posterior(whole, data.blocks), codes, len(classes))
    most = min(len(classes) - 1, whole.latent_dim, how.max_directions)
    fold = _dealt(codes.cpu().numpy(), None if groups is None else groups[order], how.folds, seed)
    again = _settings(model, how)
    folds = [*held_out_folds(data, codes, len(classes), fold, whole, again, seed)]
    best, rows = _chosen(folds, bool((codes < 0).any()), most, how)
    patterns, by_pattern = temperatures(folds, best) if folds else (data.observed_mask[:0], codes.new_zeros(0).double())
    axes, components = labelled.learn(best.setting, _TOLERANCE)
    import pandas as pd

    return Classifier(
        classes=classes,
        linear_gaussian=whole,
        latent_dim=own.latent_dim,
        directions=axes,
        components=components,
        temperature=best.temperature,
        patterns=patterns,
        pattern_temperatures=by_pattern,
        floor=best.floor,
        setting=best.setting,
        table=pd.DataFrame(rows),
        batch=copy.deepcopy(batch),
    )


def _coded(data: MultimodalData, labels: object) -> tuple[np.ndarray, Tensor]:
    """The classes, and the number of each instance's, -1 where it is not known.

    Raises:
        DataError: there are no labels, as many as instances, or fewer than two classes; or no class has two instances.
    """
    given = data.labels if labels is None else entries(_arranged(data, "labels", labels))
    if given is None:
        raise DataError("labels: the data have none; give one for each instance, None where it is not known.")
    if given.shape != (len(data),):
        raise DataError(f"labels: expected one for each of the {len(data)} instances, got shape {given.shape}.")
    kinds, index = grouped(given, "labels")
    known = np.array([kind is not None and kind == kind for kind in kinds.tolist()])  # NaN is not itself
    place = np.where(known, np.cumsum(known) - 1, -1)
    classes, codes = kinds[known], torch.as_tensor(place[index], dtype=torch.int64)
    counts = torch.bincount(codes[codes >= 0], minlength=len(classes))
    if len(classes) < 2:
        raise DataError(f"labels: expected at least two classes, got {classes.tolist()}; label instances of another.")
    if int(counts.max()) < 2:
        raise DataError(
            f"labels: expected a class with two instances or more, got {len(classes)} classes of one each; label more."
        )
    alone = classes[(counts == 1).numpy()].tolist()
    if alone:
        others = "" if len(alone) == 1 else f" (so have {len(alone) - 1} others)"
        warnings.warn(
            f"labels: class {alone[0]!r} has a single labelled instance{others}; how it varies is taken from all "
            "classes; label more.",
            CalmrlWarning,
            stacklevel=4,
        )
    return classes, codes.to(data.device)


def _chosen(
    folds: list[HeldOut], some_unlabelled: bool, most: int, how: ClassifyOptions
) -> tuple[TriedSetting, list[dict[str, Any]]]:
    """The best setting by held-out labels, and what was tried."""
    if isinstance(how.unlabelled, bool):
        unlabelled = [how.unlabelled and some_unlabelled]
    else:
        unlabelled = [False, True] if some_unlabelled else [False]
    if not folds:  # too few labels to hold any out
        return TriedSetting(ClassSetting(most, unlabelled=unlabelled[0]), float("nan"), 1.0, 0.0), []
    return choose(folds, most, unlabelled)


def _settings(model: object, how: ClassifyOptions) -> tuple[Choice, SharedLatentModel] | None:
    """Choice and model by which it is fitted again; None where it is not to be."""
    known = (
        isinstance(model, FitResult)
        and isinstance(model.choice, Choice)
        and isinstance(model.model, SharedLatentModel)
        and model.choice.family == "normal"
    )
    if how.refit is True and not known:
        raise ArgumentError(
            "refit: the settings of the model are not known; give what cal.fit returned for a model with "
            "latent_dim=None, or leave it out."
        )
    if not known or how.refit is False:
        return None
    assert isinstance(model, FitResult)
    return model.choice, model.model


def _groups(data: MultimodalData, how: ClassifyOptions) -> np.ndarray | None:
    """Groups of instances that must not tell of each other, (N,); None if there are none."""
    if how.groups is None:
        return None
    groups: Any = how.groups
    groups = data.covariates.get(groups) if isinstance(groups, str) else entries(_arranged(data, "groups", groups))
    if groups is None:
        raise ArgumentError(f"groups: the data have no covariate {how.groups!r}; they have {list(data.covariates)}.")
    if np.shape(groups) != (len(data),):
        raise ArgumentError(
            f"groups: expected one for each of {len(data)} instances, got {brief(how.groups)} of shape "
            f"{np.shape(groups)}; give a sequence of {len(data)}, or the name of a covariate."
        )
    return entries(groups)


def _dealt(codes: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> np.ndarray:
    """The fold of each instance; -1 where it has no label. Classes evenly, or whole groups."""
    generator, fold = np.random.default_rng(seed), np.full(len(codes), -1)
    known = np.flatnonzero(codes >= 0)
    if groups is not None:
        fold[known] = deal(len(known), folds, seed, groups[known].tolist())
        return fold
    count = min(folds, len(known))
    order = known[np.lexsort((generator.random(len(known)), codes[known]))]
    fold[order] = (np.arange(len(order)) + generator.integers(count)) % count
    return fold


def _arranged(data: MultimodalData, argument: str, column: object) -> object:
    """A column in the order of the instances, by its own labels where it has some."""
    return RowLabels(len(data), ids=data.ids).arranged(argument, column)
