"""The two large matrix products of the engine, each in its fastest orientation.

A tall X (n, D) meets a narrow A (D, K) or Z (n, K). On CPUs, BLAS libraries run the same product up to twice as fast
when the narrow side comes first and data are float64; in float32 the plain order wins for X A. Measured in
``benchmarks/``.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Numbers that a chunk of rows may hold: large enough for full speed, small enough for the caches and for memory.
CHUNK_BUDGET = 2**21


def project(values: Tensor, weights: Tensor) -> Tensor:
    """X A, shape (n, K), computed in the type of X and returned in the type of A.

    Args:
        values: X, shape (n, D).
        weights: A, shape (D, K).
    """
    out = weights.new_empty(weights.shape[1], len(values))
    project_into(out, values, weights)
    return out.mT


def project_into(out: Tensor, values: Tensor, weights: Tensor) -> None:
    """Write (X A)^T into ``out``, shape (K, n), in the type of A."""
    if values.dtype == weights.dtype:
        torch.mm(weights.mT.contiguous(), values.mT, out=out)
    else:
        out.copy_((values @ weights.to(values.dtype)).mT)


def cross_product(values: Tensor, latents: Tensor) -> Tensor:
    """X^T Z, shape (D, K), computed in the type of X and, chunk by chunk, accumulated in the type of Z.

    Args:
        values: X, shape (n, D).
        latents: Z, shape (n, K).
    """
    if values.dtype == latents.dtype:
        return (latents.mT @ values).mT
    out = latents.new_zeros(latents.shape[1], values.shape[1])
    narrow = latents.to(values.dtype)
    for chunk in row_chunks(len(values), values.shape[1]):
        out += narrow[chunk].mT @ values[chunk]
    return out.mT


def gram(values: Tensor) -> Tensor:
    """X^T X, shape (D, D), in the type of X; about half of the products where the library can use the symmetry."""
    if values.is_cuda:
        return values.mT @ values
    array = values.numpy()
    return torch.from_numpy(array.T @ array)  # numpy hands this to BLAS's syrk, which torch does not have


def row_chunks(num_rows: int, width: int) -> list[slice]:
    """Cut rows of ``width`` numbers into slices that fit the caches."""
    step = max(64, CHUNK_BUDGET // max(width, 1))
    return [slice(start, min(start + step, num_rows)) for start in range(0, max(num_rows, 1), step)]
