"""Reading and writing the files of a run. Each is written under a temporary name and moved into place when whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from calmrl_prob._support.files import write_atomically
from calmrl_prob.errors import FileFormatError

#: Tables besides the results, each a file in the folder ``tables`` of a run.
TABLES = ("coverage", "evidence", "pairs", "intervals", "shares", "modalities")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame without its index, as the ending of ``path`` says: .csv or .parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        if path.suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False)


def write_text(text: str, path: Path) -> None:
    """Write a text in UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file as it is, such as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def read_table(path: Path) -> pd.DataFrame:
    """Read a frame; an empty one if the file says that there is nothing.

    Raises:
        FileFormatError: there is no such file, or it cannot be read.
    """
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}); run the comparison again.") from error


def read_facts(path: Path) -> dict[str, Any]:
    """Read ``run.json``: what the run was.

    Raises:
        FileFormatError: there is no such file, or it is no JSON object.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}); give the folder of a finished run.") from error
    if not isinstance(facts, dict):
        raise FileFormatError(f"{path}: expected a JSON object, got {type(facts).__name__}.")
    return facts
