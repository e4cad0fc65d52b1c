"""Data drawn from the model itself, with the parameters that they were drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from calmrl_prob._support.arguments import brief, real_number, whole_number
from calmrl_prob._support.sizes import require_memory
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.missingness import mcar
from calmrl_prob.errors import ArgumentError, ArgumentTypeError
from calmrl_prob.linear_gaussian.structure import LinearGaussian


class SyntheticData(NamedTuple):
    """Synthetic data with the parameters and latents they were drawn from: the result of :func:`make_synthetic`.

    Attributes:
        data: the instances, some of their modalities missing.
        truth: the parameters that they were drawn from.
        latents: the z that each instance was drawn with, (N, K).
        complete: the same instances with nothing missing, to score imputations against.
    """

    data: MultimodalData
    truth: LinearGaussian
    latents: Tensor
    complete: MultimodalData


def make_synthetic(
    num_instances: int = 500,
    dims: Mapping[str, int] | None = None,
    latent_dim: int = 3,
    noise_variance: float = 0.5,
    *,
    noise: Literal["isotropic", "diagonal"] = "isotropic",
    missing_rate: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> SyntheticData:
    """Draw parameters, then instances from them: z ~ N(0, I), x^m | z ~ N(W^m z + mu^m, Psi^m).

    Loadings are drawn from N(0, 1/K), so that the latents give every feature a variance of about 1, and intercepts from
    N(0, 1). Psi^m is ``noise_variance`` times the identity, or, with ``noise="diagonal"``, times factors that
    are drawn evenly from [0.5, 1.5], one per feature. Labels say whether the first latent is above 0.

    Args:
        num_instances: N.
        dims: the number of features D_m of each modality; {"image": 8, "text": 6, "audio": 4} by default.
        latent_dim: K.
        noise_variance: the noise variance, in units of the variance that the latents explain in a feature.
        noise: "isotropic" or "diagonal".
        missing_rate: the share of modality cells removed completely at random, as
            :func:`calmrl_prob.data.missingness.mcar`.
        seed: the same seed gives the same parameters and instances.
        dtype: torch.float64 or torch.float32.

    Raises:
        ArgumentError: a size is below 1, the noise is not positive, or ``missing_rate`` cannot be met.
        ArgumentTypeError: an argument is of another type.

    Example:
        >>> data, truth, latents, complete = make_synthetic(200, {"image": 5, "text": 3}, missing_rate=0.2, seed=0)
        >>> data
        MultimodalData: 200 instances, 2 modalities, 3 missing patterns, float64
          image  5 features  82.0% observed
          text   3 features  78.0% observed
          labels: 2 distinct
        >>> truth
        LinearGaussian(image: 5, text: 3; latent_dim=3, dtype=torch.float64)
        >>> latents.shape, bool(complete.complete_rows().all())
        (torch.Size([200, 3]), True)
    """
    if not (dims is None or isinstance(dims, Mapping)):
        raise ArgumentTypeError(f"dims: expected a mapping of names to numbers of features, got {brief(dims)}.")
    widths = {"image": 8, "text": 6, "audio": 4} if dims is None else dict(dims)
    if not widths:
        raise ArgumentError("dims: expected at least one modality, got none; leave dims out for three.")
    if dtype not in (torch.float32, torch.float64):
        raise ArgumentTypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}.")
    for argument, size in {"num_instances": num_instances, "latent_dim": latent_dim, **widths}.items():
        whole_number(argument, size, 1)
    each = latent_dim + sum(widths.values())
    require_memory("num_instances", num_instances, each, torch.float64.itemsize, "ask for fewer")
    if not real_number("noise_variance", noise_variance, 0.5) > 0:
        raise ArgumentError(f"noise_variance: expected a positive number, got {noise_variance}.")
    if noise not in ("isotropic", "diagonal"):
        raise ArgumentError(f"noise: expected 'isotropic' or 'diagonal', got {noise!r}.")
    generator = torch.Generator().manual_seed(whole_number("seed", seed))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def factors(width: int) -> Tensor:
        spread = torch.rand(width, generator=generator, dtype=torch.float64) - 0.5
        return 1 + spread if noise == "diagonal" else torch.ones(width, dtype=torch.float64)

    truth = LinearGaussian(
        loadings={name: normal(width, latent_dim) / latent_dim**0.5 for name, width in widths.items()},
        intercepts={name: normal(width) for name, width in widths.items()},
        noise_variance={name: noise_variance * factors(width) for name, width in widths.items()},
    ).to(dtype)
    latents, arrays = truth.sample(num_instances, generator)
    complete = MultimodalData(arrays, labels=(latents[:, 0] > 0).long(), attributes={"name": "synthetic"})
    data = complete.mask(mcar(complete, missing_rate, seed=seed)) if missing_rate else complete
    return SyntheticData(data, truth, latents, complete)


def load_synthetic(
    *,
    num_instances: int = 500,
    dims: Mapping[str, int] | None = None,
    latent_dim: int = 3,
    noise_variance: float = 0.5,
    noise: Literal["isotropic", "diagonal"] = "isotropic",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> MultimodalData:
    """Complete data as :func:`make_synthetic` draws them, without their parameters.

    Example:
        >>> load_synthetic(num_instances=10).num_instances
        10
    """
    made = make_synthetic(num_instances, dims, latent_dim, noise_variance, noise=noise, seed=seed, dtype=dtype)
    return made.complete
