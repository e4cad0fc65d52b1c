"""Optional packages: imported by whoever needs them, when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from calmrl_prob.errors import MissingDependencyError


def optional(module: str, extra: str, task: str) -> Any:  # noqa: ANN401 - a module
    """A module of an optional package.

    Args:
        module: its full name.
        extra: of this package's extras, the one that installs it.
        task: what it is needed for, as messages name it.

    Raises:
        MissingDependencyError: it is not installed; says by which command it is.

    Example:
        >>> optional("pyarrow.parquet", "arrow", "reading parquet").__name__
        'pyarrow.parquet'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{task} needs {module.partition('.')[0]}, which is not installed; pip install 'calmrl-prob[{extra}]'."
        ) from error
