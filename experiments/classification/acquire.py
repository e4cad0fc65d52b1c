"""Accuracy against modalities acquired: test rows begin with one modality each, and cells are acquired in an order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import calmrl_prob as cal
from calmrl_prob.classification import Classifier
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian
from experiments.alignment.runs import lacking
from experiments.comparison.imputers import Array

#: Orders, with what tables call them.
POLICIES = {
    "class": "expected drop of the entropy of the class",
    "gain": "value of information",
    "uncertain": "value of information x entropy of the class",
    "random": "random",
    "fixed": "fixed",
}


def acquisition_curve(
    classifier: Classifier, lg: LinearGaussian, test: MultimodalData, policy: str, steps: int, seed: int
) -> list[dict[str, Any]]:
    """Accuracy after each step, with the share of all cells to acquire that were acquired by then.

    Args:
        classifier: says the classes.
        lg: the fitted model, whose value of information is asked.
        test: complete rows with labels; one modality of each, at random, is there from the start.
        policy: "class" takes the cells first that are expected to tell most about the class of the row; "gain" those
            of the greatest expected gain about the latents; "uncertain" those of the greatest product of it and the
            entropy of the class; "random" any; "fixed" modality by modality.
        steps: equal parts that the cells are acquired in; no row gets two in one step, unless all rows have one.
        seed: of the start and of "random".
    """
    generator = np.random.default_rng(seed)
    number = len(test.names)
    data = lacking(test, number - 1, seed)
    present = data.observed_mask.numpy().copy()
    cells, rows = int((~present).sum()), []
    for step in range(steps + 1):
        data = test.mask(torch.as_tensor(present))
        stated = classifier.probabilities(data)
        right = classifier.classes[stated.argmax(1)] == test.labels
        share = 1 - (~present).sum() / cells
        rows.append({"policy": policy, "share": float(share), "accuracy": 100 * float(right.mean())})
        if step == steps:
            break
        if policy == "class":
            worth = np.nan_to_num(classifier.value_of_information(data, seed=seed + step).gain)
        else:
            worth = _worth(policy, data, lg, stated, generator)
        worth[present] = -np.inf
        wanted = round(cells * (step + 1) / steps) - (cells - int((~present).sum()))
        present = _acquired(present, worth, wanted)
    return rows


def _worth(
    policy: str, data: MultimodalData, lg: LinearGaussian, stated: Array, generator: np.random.Generator
) -> Array:
    if policy == "random":
        return generator.random(tuple(data.observed_mask.shape))
    if policy == "fixed":
        return np.tile(-np.arange(len(data.names), dtype=float), (len(data), 1))
    gain: Array = np.nan_to_num(cal.value_of_information(lg, data).gain)
    gain *= 1 + 1e-6 * generator.random((len(gain), 1))  # rows that tell as much come in no order of the file
    entropy = -(stated * np.log(np.maximum(stated, 1e-12))).sum(1, keepdims=True)
    return gain * entropy if policy == "uncertain" else gain


def _acquired(present: np.ndarray, worth: Array, wanted: int) -> np.ndarray:
    """The mask with the best cells added: the best of each row, best rows first, again until there are enough."""
    present, worth = present.copy(), worth.copy()
    while wanted > 0:
        best = worth.argmax(1)
        value = worth[np.arange(len(worth)), best]
        chosen = np.argsort(-value, kind="stable")[: min(wanted, int(np.isfinite(value).sum()))]
        present[chosen, best[chosen]] = True
        worth[chosen, best[chosen]] = -np.inf
        wanted -= len(chosen)
    return present
