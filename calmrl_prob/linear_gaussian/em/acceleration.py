"""Anderson acceleration of a fixed-point iteration.

For x -> g(x) with residual f = g(x) - x, the next point is

    g(x_k) - dG gamma,   gamma = argmin |f_k - dF gamma|,

with dG, dF the differences of the last images and residuals. EM takes it only where it raises the evidence (the
guard is in ``em.py``). Source: Walker & Ni, Anderson acceleration for fixed-point iterations (2011); guarded for EM by
Henderson & Varadhan, Damped Anderson acceleration with restarts and monotonicity control for accelerating EM (2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Point = TypeVar("Point")


class AndersonAccelerator:
    """Proposes the next point from the last few.

    Args:
        memory: how many differences to keep.

    Example:
        >>> import torch
        >>> accelerator, x = AndersonAccelerator(memory=3), torch.tensor([1.0, 1.0], dtype=torch.float64)
        >>> rates = torch.tensor([0.9, 0.99], dtype=torch.float64)  # a linear iteration with two slow directions
        >>> for _ in range(4):
        ...     x = accelerator.propose(x, rates * x)
        >>> bool(x.abs().max() < 1e-6)
        True
    """

    def __init__(self, memory: int = 10) -> None:
        self._memory = memory
        self._count = 0
        self._previous: tuple[Tensor, Tensor] | None = None
        self._images = self._changes = self._inner = torch.empty(0)

    def reset(self) -> None:
        """Forget the past, as after a step that had to be taken back."""
        self._previous = None
        self._count = 0

    def propose(self, point: Tensor, image: Tensor) -> Tensor:
        """The next point, from this one and its image; the image itself while there is no past."""
        residual = image - point
        if self._previous is not None:
            if self._images.shape[-1] != len(point):
                self._images, self._changes = (point.new_zeros(self._memory, len(point)) for _ in range(2))
                self._inner = point.new_zeros(self._memory, self._memory)
            row = self._count % self._memory  # the oldest makes room; their order does not matter
            torch.sub(image, self._previous[0], out=self._images[row])
            torch.sub(residual, self._previous[1], out=self._changes[row])
            self._count += 1
            self._inner[row] = self._inner[:, row] = self._changes @ self._changes[row]
        self._previous = (image, residual)
        if self._count == 0:
            return image
        kept = slice(min(self._count, self._memory))
        inner = self._inner[kept, kept]
        scale = inner.diagonal().clamp(min=torch.finfo(inner.dtype).tiny).rsqrt()
        inner = inner * scale[:, None] * scale
        inner.diagonal().add_(1e-10)
        coefficients = scale * torch.linalg.solve(inner, scale * (self._changes[kept] @ residual))
        accelerated: Tensor = image - coefficients @ self._images[kept]
        return accelerated


class AndersonGuess(Generic[Point]):
    """The same for points that can be written as vectors in which convex steps are legal.

    Args:
        memory: how many differences to keep.
        flatten: a point as a vector.
        unflatten: a point of the kind of the first argument, from a vector that is near those of points.
    """

    def __init__(
        self, memory: int, flatten: Callable[[Point], Tensor], unflatten: Callable[[Point, Tensor], Point]
    ) -> None:
        self._accelerator = AndersonAccelerator(memory)
        self._flatten, self._unflatten = flatten, unflatten

    def __call__(self, point: Point, image: Point) -> Point:
        """The guess, given a point and where the iteration would go from it."""
        return self._unflatten(point, self._accelerator.propose(self._flatten(point), self._flatten(image)))

    def reset(self) -> None:
        """Forget the past."""
        self._accelerator.reset()
