"""Columns of a table grouped into modalities."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_selector

from calmrl_prob.errors import CalmrlError
from calmrl_prob.sklearn.columns import grouped_columns

LABELS = ["red", "green", "t0", "t1", "age"]
FRAME = pd.DataFrame(np.ones((2, 5)), columns=LABELS).astype({"age": "float32"})


def of_frame(modalities: object, frame: pd.DataFrame = FRAME) -> dict[str, list[int]]:
    found = grouped_columns(modalities, frame, frame.columns.tolist(), frame.shape[1])
    return {name: columns.tolist() for name, columns in found.items()}


@pytest.mark.parametrize(
    "modalities",
    [
        {"image": ["red", "green"], "text": ["t0", "t1"], "age": "age"},
        {"image": [0, 1], "text": np.array([2, -2]), "age": 4},
        {"image": slice("red", "green"), "text": slice("t0", "t1"), "age": slice("age", None)},
        {"image": slice(2), "text": slice(2, -1), "age": [-1]},
        {"image": [True, True, False, False, False], "text": pd.Index(["t0", "t1"]), "age": np.arange(5) == 4},
        {"image": ("red", "green"), "text": make_column_selector("t\\d"), "age": make_column_selector("^a")},
        {"image": lambda X: [c for c in X if "re" in c], "text": pd.Series(["t0", "t1"]), "age": np.int64(4)},
        [("image", [0, 1]), ("text", [2, 3]), ("age", [4])],
    ],
)  # fmt: skip
def test_columns_are_found_by_name_position_slice_booleans_and_selector(modalities: object) -> None:
    assert of_frame(modalities) == {"image": [0, 1], "text": [2, 3], "age": [4]}


def test_the_first_level_of_a_multiindex_groups_columns_that_may_be_interleaved() -> None:
    columns = pd.MultiIndex.from_tuples([("image", "u"), ("text", "u"), ("image", "v"), (7, "w")])
    frame = pd.DataFrame(np.ones((2, 4)), columns=columns)
    assert of_frame(None, frame) == {"image": [0, 2], "text": [1], "7": [3]}
    assert of_frame({"b": [("text", "u"), (7, "w")], "a": [0, 2]}, frame) == {"b": [1, 3], "a": [0, 2]}


def test_without_anything_that_groups_them_all_columns_are_one_modality() -> None:
    assert of_frame(None) == {"X": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"image": ["red", "blue"]}, "expected one column 'blue', got no column"),
        ({"image": [0, 5]}, "expected positions below 5"),
        ({"image": [0, 1], "text": [1, 2, 3, 4]}, "columns ['green'] are chosen twice; give each"),
        ({"image": [0, 0, 1, 2, 3, 4]}, "columns ['red'] are chosen twice"),
        ({"image": [0, 1]}, "columns ['t0', 't1', 'age'] are in no modality"),
        ({"image": slice(5), "text": []}, "'text' has no columns"),
        ({"image": slice(5), "text": make_column_selector("none")}, "'text' has no columns"),
        ({}, "'nothing' has no columns"),
        ({"image": [True, False]}, "expected 5 booleans, one a column, got 2"),
    ],
)
def test_what_cannot_be_grouped_is_refused_by_a_value_error(modalities: object, message: str) -> None:
    with pytest.raises(ValueError, match="modalities") as caught:
        of_frame(modalities)
    assert isinstance(caught.value, CalmrlError)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        (5, "expected a mapping of names to columns, got 5"),
        ({1: [0]}, "expected text as names, got 1; use '1'"),
        ({"image": 1.5}, "expected columns by name or position"),
        ({"image": [1.5]}, "expected names or positions of columns, got 1.5 among them"),
    ],
)
def test_what_has_another_type_is_refused_by_a_type_error(modalities: object, message: str) -> None:
    with pytest.raises(TypeError, match="modalities") as caught:
        of_frame(modalities)
    assert isinstance(caught.value, CalmrlError)
    assert message in str(caught.value)


def test_names_need_a_table_that_has_some_and_has_each_once() -> None:
    with pytest.raises(ValueError, match="X has no names"):
        grouped_columns({"image": ["red"]}, np.ones((2, 2)), None, 2)
    with pytest.raises(ValueError, match="got 2 columns"):
        grouped_columns({"image": ["red"]}, None, ["red", "red"], 2)
