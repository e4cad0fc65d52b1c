"""Fusion of modalities: one vector for each row, whatever it lacks, for a classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from calmrl_prob.alignment.anchors import leading_vector
from calmrl_prob.alignment.completion import Completion
from calmrl_prob.data import MultimodalData
from calmrl_prob.linear_gaussian import LinearGaussian, posterior


@torch.no_grad()
def fused_representations(data: MultimodalData, model: LinearGaussian) -> dict[str, Tensor]:
    """Ways to make one vector of the representations that a row has.

    Args:
        data: N rows of M modalities, all of one width D; each row has one at least.
        model: of them.

    Returns:
        "mean of the observed", (N, D); "latent", its posterior mean (N, K); "calibrated anchor", the leading vector of
        observed representations beside the means of the missing ones, (N, D).

    Example:
        >>> lg = LinearGaussian({n: torch.ones(2, 1) for n in "ab"}, {n: torch.zeros(2) for n in "ab"},
        ...                     {n: torch.tensor(1.0) for n in "ab"})
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> data = MultimodalData({"a": x, "b": x}, observed_mask=torch.tensor([[True, False], [True, True]]))
        >>> {name: tuple(vectors.shape) for name, vectors in fused_representations(data, lg).items()}
        {'mean of the observed': (2, 2), 'latent': (2, 1), 'calibrated anchor': (2, 2)}
    """
    stacked = torch.stack([data.filled(name) for name in data.names], dim=1).to(model.dtype)
    mask = data.observed_mask
    completion = Completion.from_linear_gaussian(model, stacked, mask)
    return {
        "mean of the observed": (stacked * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True),
        "latent": completion.posterior.mean,
        "calibrated anchor": leading_vector(completion.values).vector,
    }


@torch.no_grad()
def fused_inputs(data: MultimodalData, model: LinearGaussian) -> dict[str, Tensor]:
    """The same of inputs without encoders; what they lack is zero, the mean of centred features, or imputed.

    Args:
        data: N rows of M modalities of any widths, centred.
        model: of them.

    Returns:
        "latent", its posterior mean (N, K); "mean for what is missing" and "imputed by the model", all features of all
        modalities side by side, (N, sum of D_m).
    """
    given = posterior(model, data.blocks)
    features, imputed = [], []
    for name in data.names:
        here, values = data.observed(name)[:, None], data.filled(name).to(model.dtype)
        means = given.mean @ model.loadings[name].mT + model.intercepts[name]
        features.append(values)
        imputed.append(torch.where(here, values, means))
    return {
        "latent": given.mean,
        "mean for what is missing": torch.cat(features, dim=1),
        "imputed by the model": torch.cat(imputed, dim=1),
    }
