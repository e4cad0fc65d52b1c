"""What torch does within a block, operation by operation: to show that work does not grow with the data."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Notes the name of each operation and the shapes of its tensors.

    Attributes:
        seen: (operation, shape) for every tensor that goes in or comes out, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        self.seen += [(str(func), tuple(part.shape)) for part in (*args, out) if isinstance(part, Tensor)]
        return out
