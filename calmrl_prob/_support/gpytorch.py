"""GPyTorch, an optional dependency: imported by whoever needs it, when it is needed."""

from __future__ import annotations

from typing import Any

from calmrl_prob.errors import MissingDependencyError


def gpytorch(argument: str) -> Any:  # noqa: ANN401 - a module without annotations
    """The module.

    Args:
        argument: what it is needed for, as messages name it.

    Raises:
        MissingDependencyError: it is not installed.

    Example:
        >>> gpytorch("kernel").kernels.RBFKernel.__name__
        'RBFKernel'
    """
    try:
        import gpytorch as module
    except ImportError as error:
        raise MissingDependencyError(
            f"{argument}: Gaussian processes need GPyTorch, which is not installed; pip install 'calmrl-prob[gp]'."
        ) from error
    return module
