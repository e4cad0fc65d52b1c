"""Refusals: the end of an experiment that was asked for something that cannot work."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from calmrl_prob.errors import CalmrlError

logger = logging.getLogger(__name__)


@contextmanager
def plain_refusals() -> Iterator[None]:
    """Print this package's errors in one line and exit with 1; with HYDRA_FULL_ERROR=1 they are raised as they are."""
    try:
        yield
    except CalmrlError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        logger.info("refused: %s", error)  # so that the log in the folder of this run tells why it holds no results
        Console(stderr=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)
