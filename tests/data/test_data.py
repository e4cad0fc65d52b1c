from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob.data import MultimodalData, require_fittable, warn_unidentifiable
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, IdentifiabilityWarning, SchemaError
from calmrl_prob.linear_gaussian import FeatureBlocks

NAN = float("nan")


def ragged(seed: int = 0, num_instances: int = 40, dtype: torch.dtype = torch.float64) -> MultimodalData:
    """Three modalities, about a third of the cells absent, everything else given too."""
    rng = np.random.default_rng(seed)
    mask = rng.random((num_instances, 3)) < 0.67
    mask[np.arange(num_instances), rng.integers(3, size=num_instances)] = True
    arrays = {name: rng.normal(size=(num_instances, d)) for name, d in {"image": 4, "text": 3, "audio": 1}.items()}
    return MultimodalData(
        {name: torch.tensor(array, dtype=dtype) for name, array in arrays.items()},
        observed_mask=mask,
        ids=[f"id{i}" for i in range(num_instances)],
        labels=rng.integers(4, size=num_instances),
        covariates={"age": rng.normal(size=num_instances), "caption": np.array(["a b"] * num_instances)},
        partition=np.where(np.arange(num_instances) % 4, "train", "test"),
        attributes={"name": "ragged"},
    )


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


class TestWhatMayBeGiven:
    @pytest.mark.parametrize(
        ("given_dtype", "expected"),
        [
            (np.float16, torch.float32),
            (np.float32, torch.float32),
            (np.float64, torch.float64),
            (np.longdouble, torch.float64),
            (np.int8, torch.float64),
            (np.uint32, torch.float64),
            (np.bool_, torch.float64),
            (np.dtype(">f4"), torch.float32),
        ],
    )
    def test_numpy_types(self, given_dtype: Any, expected: torch.dtype) -> None:  # noqa: ANN401
        array = np.array([[0, 1], [1, 1]]).astype(given_dtype)
        data = MultimodalData({"x": array})
        assert data.dtype == expected
        assert data["x"].tolist() == [[0.0, 1.0], [1.0, 1.0]]

    @pytest.mark.parametrize("given_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
    def test_torch_types(self, given_dtype: torch.dtype) -> None:
        data = MultimodalData({"x": torch.tensor([[0, 1], [1, 1]]).to(given_dtype)})
        assert data.dtype == (torch.float32 if given_dtype.is_floating_point else torch.float64)
        assert data["x"].tolist() == [[0.0, 1.0], [1.0, 1.0]]

    def test_the_widest_type_wins(self) -> None:
        data = MultimodalData({"x": np.ones((2, 1), np.float16), "y": torch.ones(2, 1, dtype=torch.float64)})
        assert data.dtype == data["x"].dtype == data["y"].dtype == torch.float64

    def test_pairs_and_order(self) -> None:
        assert MultimodalData([("b", np.ones((2, 1))), ("a", np.ones((2, 3)))]).dims == {"b": 1, "a": 3}

    @pytest.mark.parametrize("view", [lambda x: x[::-1], lambda x: x[:, ::-2], lambda x: x.T, np.asfortranarray])
    def test_any_memory_layout(self, view: Any) -> None:  # noqa: ANN401
        array = view(np.arange(36.0).reshape(6, 6))
        assert MultimodalData({"x": array})["x"].tolist() == array.tolist()

    def test_read_only_memory_is_taken_without_warning(self) -> None:
        array = np.ones((2, 2))
        array.flags.writeable = False
        assert MultimodalData({"x": array})["x"].data_ptr() == array.ctypes.data

    def test_masked_arrays_are_nan_where_masked(self) -> None:
        array = np.ma.masked_array(np.ones((2, 2), np.float32), mask=[[True, True], [False, False]])
        data = MultimodalData({"x": array, "y": np.ones((2, 1), np.float32)})
        assert data.observed_mask.tolist() == [[False, True], [True, True]]
        assert data.dtype == torch.float32

    def test_inputs_are_shared_and_never_changed(self) -> None:
        x = np.array([[1.0, 2.0], [NAN, NAN], [5.0, 6.0]])
        y = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
        before = x.copy(), y.clone()
        mask = np.array([[True, True], [True, True], [True, False]])
        data = MultimodalData({"x": x, "y": y}, observed_mask=mask)
        assert data["x"].data_ptr() == x.ctypes.data
        assert data["y"][2].isnan().all()
        data.mask({"x": [False, True, True]})["x"], data.filled("x"), data.subset([0]).filled("y", 7.0)
        np.testing.assert_array_equal(x, before[0])
        assert torch.equal(y, before[1])
        assert mask[1, 0]
        tensor_mask = torch.tensor(mask)
        MultimodalData({"x": x, "y": y}, observed_mask=tensor_mask)
        assert tensor_mask[1, 0]

    def test_gradients_flow_through(self) -> None:
        x = torch.ones(3, 2, requires_grad=True)
        data = MultimodalData({"x": x, "y": torch.ones(3, 1)}, observed_mask={"x": [True, False, True]})
        data.filled("x").square().sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [[2.0, 2.0], [0.0, 0.0], [2.0, 2.0]]

    def test_memory_maps(self, tmp_path: Any) -> None:  # noqa: ANN401
        np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
        array = np.load(tmp_path / "x.npy", mmap_mode="r")
        assert MultimodalData({"x": array})["x"].data_ptr() == array.ctypes.data


class TestDataFrames:
    def test_index_becomes_ids(self) -> None:
        frame = pd.DataFrame({"u": [1.0, 2.0], "v": [3.0, NAN]}, index=["p", "q"])
        data = MultimodalData({"x": frame, "y": frame[["u"]]}, missing="features")
        assert data.ids is not None
        assert data.ids.tolist() == ["p", "q"]

    def test_index_that_counts_rows_is_no_id(self) -> None:
        assert MultimodalData({"x": pd.DataFrame({"u": [1.0, 2.0]})}).ids is None

    def test_explicit_ids_win(self) -> None:
        data = MultimodalData({"x": pd.DataFrame({"u": [1.0, 2.0]}, index=["p", "q"])}, ids=[7, 8])
        assert data.ids is not None
        assert data.ids.tolist() == [7, 8]

    def test_nullable_and_boolean_columns(self) -> None:
        frame = pd.DataFrame(
            {"u": pd.array([1, None, 3], dtype="Int64"), "v": pd.array([0.5, None, 2.0], dtype="Float64")}
        )
        flags = pd.DataFrame({"a": [True, False, True], "b": [0.5, 1.0, 1.5]})
        data = MultimodalData({"x": frame, "y": flags})
        assert data.observed_mask[:, 0].tolist() == [True, False, True]
        assert data["y"].tolist() == [[1.0, 0.5], [0.0, 1.0], [1.0, 1.5]]

    def test_different_indexes_are_refused(self) -> None:
        frame = pd.DataFrame({"u": [1.0, 2.0]}, index=["p", "q"])
        frames = {"x": frame, "y": frame.rename(index={"q": "r"})}
        with pytest.raises(DataError, match=r"modality 'y'.*index differs.*'x'.*reindex"):
            MultimodalData(frames)
        with pytest.raises(DataError, match=r"modality 'y'.*index differs.*reindex"):  # not: different row counts
            MultimodalData({"x": frame, "y": frame.loc[["q"]]})

    def test_text_columns_are_refused_by_name(self) -> None:
        with pytest.raises(ArgumentTypeError, match=r"modality 'x'.*column 'v'"):
            MultimodalData({"x": pd.DataFrame({"u": [1.0, 2.0], "v": ["a", "b"]})})

    def test_observed_mask_as_a_frame(self) -> None:
        mask = pd.DataFrame({"y": [True, False]})
        data = MultimodalData({"x": np.ones((2, 1)), "y": np.ones((2, 1))}, observed_mask=mask)
        assert data.observed_mask.tolist() == [[True, True], [True, False]]


ONES = np.ones((3, 2))


class TestRefusals:
    @pytest.mark.parametrize(
        ("arrays", "error", "message"),
        [
            ({}, DataError, "at least one modality"),
            (ONES, ArgumentTypeError, "expected a mapping.*ndarray"),
            (pd.DataFrame(ONES), ArgumentTypeError, "expected a mapping.*DataFrame"),
            ([ONES], ArgumentTypeError, r"\(name, array\) pairs"),
            ({3: ONES}, ArgumentTypeError, "names that are non-empty strings, got 3"),
            ({"": ONES}, ArgumentTypeError, "non-empty strings"),
            ([("x", ONES), ("x", ONES)], DataError, "modality 'x' is given twice"),
            ({"x": ONES, "y": np.ones((4, 2))}, DataError, "'y': it has 4 rows, modality 'x' has 3"),
            ({"x": np.ones((0, 2))}, DataError, "'x': expected at least one row"),
            ({"x": np.ones((3, 0))}, DataError, "'x': expected at least one feature"),
            ({"x": np.ones(3)}, DataError, r"'x': expected shape \(N, D\), got \(3,\); use x\[:, None\]"),
            ({"x": np.ones((3, 2, 2))}, DataError, r"'x': expected shape \(N, D\).*flatten"),
            ({"x": np.array([["a"], ["b"]])}, ArgumentTypeError, "'x'.*got dtype <U1"),
            ({"x": np.array([[None], [1]], dtype=object)}, ArgumentTypeError, "'x'.*got dtype object; use .astype"),
            ({"x": [[1.0], [2.0]]}, ArgumentTypeError, "'x'.*got list; wrap it in numpy.asarray"),
            ({"x": "x.npy"}, ArgumentTypeError, "'x'.*got str; a path is not read: load the file first"),
            ({"x": Path("x.npy")}, ArgumentTypeError, "'x'.*Path; a path is not read: load the file first"),
            (Path("x.npz"), ArgumentTypeError, "arrays: .*Path; a path is not read: .*load_npz"),
            ({"x": None}, ArgumentTypeError, "'x'.*got None; leave out a modality that is not there"),
            ({"x": {"y": 1.0}}, ArgumentTypeError, "'x'.*got dict; pass the array, tensor or frame that it holds"),
            ({"x": torch.ones(3, 2, dtype=torch.complex64)}, ArgumentTypeError, "'x': expected real numbers"),
            ({"x": xr.Dataset({"u": ("row", [1.0])})}, ArgumentTypeError, "'x'.*got Dataset, which gives numpy none"),
            ({"x": np.ones((3, 2), np.complex64)}, ArgumentTypeError, "'x'.*complex64"),
            ({"x": torch.eye(3).to_sparse()}, ArgumentTypeError, "'x': expected a dense tensor.*to_dense"),
        ],
    )
    def test_arrays(self, arrays: Any, error: type[Exception], message: str) -> None:  # noqa: ANN401
        with pytest.raises(error, match=message):
            MultimodalData(arrays)

    @pytest.mark.parametrize("value", [np.inf, -np.inf])
    @pytest.mark.parametrize("missing", ["modalities", "features"])
    def test_infinities(self, value: float, missing: Any) -> None:  # noqa: ANN401
        x = np.ones((5, 3), np.float32)
        x[3, 1] = value
        with pytest.raises(DataError, match=r"modality 'x': 1 row holds infinities, first row 3, feature 1"):
            MultimodalData({"y": np.ones((5, 2)), "x": x}, missing=missing)

    def test_infinities_that_cancel_or_meet_nan(self) -> None:
        with pytest.raises(DataError, match="2 rows hold infinities, first row 0"):
            MultimodalData({"x": np.array([[np.inf, -np.inf], [NAN, np.inf], [1, 1]])}, missing="features")

    def test_large_numbers_are_no_infinities(self) -> None:
        x = np.full((3, 4), 3e38, np.float32)
        assert MultimodalData({"x": x}).observed_mask.all()

    def test_what_stands_in_absent_rows_is_not_read(self) -> None:
        x = np.array([[1.0, 2.0], [np.inf, NAN]])
        data = MultimodalData({"x": x, "y": np.ones((2, 1))}, observed_mask={"x": [True, False]})
        assert data["x"][1].isnan().all()
        assert data.filled("x").isfinite().all()

    def test_partial_rows_name_row_id_and_remedy(self) -> None:
        x = np.ones((4, 3))
        x[2, :2] = NAN
        with pytest.raises(
            DataError,
            match=r"'x': 1 row holds NaN in some features, first row 2 \(id 'c'\).*2 of 3; missing='features'",
        ):
            MultimodalData({"x": x}, ids=list("abcd"))

    def test_empty_instances(self, caplog: pytest.LogCaptureFixture) -> None:
        x = np.array([[1.0], [NAN], [3.0]])
        y = np.array([[1.0], [NAN], [NAN]])
        with pytest.raises(DataError, match=r"1 of 3 instances have no modality at all, first row 1 .*empty='drop'"):
            MultimodalData({"x": x, "y": y}, ids=["a", "b", "c"])
        with caplog.at_level(logging.INFO, logger="calmrl_prob.data"):
            data = MultimodalData({"x": x, "y": y}, ids=["a", "b", "c"], empty="drop")
        assert data.ids is not None
        assert data.ids.tolist() == ["a", "c"]
        assert data["x"].tolist() == [[1.0], [3.0]]
        assert "1 of 3" in caplog.text

    def test_nobody_is_left_by_dropping_the_empty(self) -> None:
        with pytest.raises(DataError, match=r"3 of 3 instances have no modality at all.*give at least one"):
            MultimodalData({"x": np.full((3, 2), NAN)}, empty="drop")

    @pytest.mark.parametrize(
        ("keywords", "error", "message"),
        [
            ({"ids": ["a", "b"]}, DataError, r"ids: expected shape \(3,\)"),
            ({"ids": ["a", "b", "a"]}, DataError, r"ids: expected distinct.*'a' stands in rows \[0, 2\]"),
            ({"labels": [1, 2]}, DataError, r"labels: expected shape \(3,\)"),
            ({"labels": np.ones((3, 1))}, DataError, r"labels: expected shape \(3,\).*got \(3, 1\)"),
            ({"covariates": {"age": [1.0]}}, DataError, r"covariates\['age'\]: expected shape \(3, ...\)"),
            ({"partition": "train"}, DataError, "partition"),
            ({"covariates": [1, 2, 3]}, ArgumentTypeError, "covariates: expected a mapping of names"),
            ({"attributes": "emoji"}, ArgumentTypeError, "attributes: expected a mapping of names, got 'emoji'"),
            ({"observed_mask": np.ones((3, 2), bool)}, DataError, r"observed_mask: expected shape \(N, M\) = \(3, 1\)"),
            ({"observed_mask": np.ones((3, 1), int)}, ArgumentTypeError, "True = PRESENT, got int64; use .astype"),
            ({"observed_mask": torch.ones(3, 1)}, ArgumentTypeError, "True = PRESENT, got torch.float32"),
            ({"observed_mask": {"y": [True] * 3}}, DataError, "no modality is called 'y'"),
            ({"observed_mask": {"x": [True] * 2}}, DataError, r"observed_mask\['x'\]: expected shape \(N,\) = \(3,\)"),
            ({"missing": "rows"}, ArgumentError, "'modalities' or 'features', got 'rows'"),
            ({"empty": "keep"}, ArgumentError, "'refuse' or 'drop', got 'keep'"),
        ],
    )
    def test_keywords(self, keywords: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            MultimodalData({"x": ONES}, **keywords)

    def test_names_and_rows_are_not_confused(self) -> None:
        data = ragged()
        with pytest.raises(SchemaError, match=r"no modality is called 'video'; .*\['image', 'text', 'audio'\]"):
            data["video"]
        with pytest.raises(KeyError):  # as of any mapping
            data["video"]
        with pytest.raises(ArgumentTypeError, match="for rows use subset"):
            data[0]  # type: ignore[index]
        with pytest.raises(TypeError):
            iter(data)  # type: ignore[call-overload]

    def test_one_instance_is_data_but_cannot_be_fitted(self) -> None:
        data = MultimodalData({"x": np.ones((1, 2))})
        assert len(data) == 1
        with pytest.raises(DataError, match="at least 2 instances, got 1"):
            require_fittable(data)


class TestMaskAndPatterns:
    def test_absent_means_nan_or_false(self) -> None:
        x = np.array([[1.0], [NAN], [3.0], [4.0]])
        mask = np.array([[True, True], [True, True], [False, True], [True, True]])
        data = MultimodalData({"x": x, "y": np.ones((4, 1))}, observed_mask=mask)
        assert data.observed_mask[:, 0].tolist() == [True, False, False, True]
        assert data.rows_with("x").tolist() == data.complete_rows().tolist() == [True, False, False, True]
        assert data.rows_with("x", "y", how="any").all()

    @given(st.integers(0, 10_000), st.integers(1, 70))
    @settings(max_examples=25, deadline=None, derandomize=True)
    def test_patterns_rebuild_the_mask(self, seed: int, num_modalities: int) -> None:
        rng = np.random.default_rng(seed)
        mask = rng.random((20, num_modalities)) < 0.5
        mask[np.arange(20), rng.integers(num_modalities, size=20)] = True
        mask[rng.integers(20)] = True
        arrays = {f"m{m}": np.ones((20, 1)) for m in range(num_modalities)}
        data = MultimodalData(arrays, observed_mask=mask)
        assert torch.equal(data.patterns[data.pattern_index], torch.tensor(mask))
        assert len(torch.unique(data.patterns, dim=0)) == len(data.patterns)

    def test_blocks_hold_the_present_rows(self) -> None:
        data = ragged()
        for name in data.names:
            rows = data.observed(name)
            assert torch.equal(data.blocks.values[name], data[name][rows])
        assert torch.equal(data.blocks.observed_mask, data.observed_mask)

    def test_mask_hides_and_copies_nothing(self) -> None:
        data = ragged()
        asked = torch.ones_like(data.observed_mask)
        asked[data.complete_rows(), 0] = False
        hidden = data.mask(asked)
        assert torch.equal(hidden.observed_mask, data.observed_mask & asked)
        assert hidden["image"][data.complete_rows()].isnan().all()
        assert not data["image"][data.complete_rows()].isnan().any()
        x, y = np.ones((2, 3)), np.ones((2, 1))
        hidden = MultimodalData({"x": x, "y": y}).mask({"x": [True, False]})
        assert hidden["y"].data_ptr() == y.ctypes.data
        assert hidden["x"].isnan().all(dim=1).tolist() == [False, True]
        assert hidden.blocks.values["x"].tolist() == [[1.0, 1.0, 1.0]]

    def test_mask_never_empties_an_instance(self) -> None:
        data = MultimodalData({"x": ONES, "y": np.array([[1.0], [NAN], [1.0]])})
        with pytest.raises(DataError, match="observed_mask: 1 instance would have nothing left, first row 1"):
            data.mask({"x": [True, False, True]})

    def test_feature_masks(self) -> None:
        x = np.array([[1.0, NAN], [NAN, NAN], [3.0, 4.0]])
        data = MultimodalData({"x": x, "y": ONES}, missing="features", observed_mask={"y": [True, True, False]})
        assert data.has_partial_rows
        assert data.observed_mask.tolist() == [[True, True], [False, True], [True, False]]
        assert data.feature_mask("x").tolist() == [[True, False], [False, False], [True, True]]
        assert data.feature_mask("y").tolist() == [[True, True], [True, True], [False, False]]
        assert data.filled("x", -1.0).tolist() == [[1.0, -1.0], [-1.0, -1.0], [3.0, 4.0]]
        blocks = data.blocks  # by feature, because the first row lacks one
        assert isinstance(blocks, FeatureBlocks)
        assert blocks.values[:, :2].tolist() == [[1.0, 0.0], [0.0, 0.0], [3.0, 4.0]]
        assert not data.subset([1, 2]).has_partial_rows
        assert data.subset([1, 2]).blocks.values["x"].tolist() == [[3.0, 4.0]]

    def test_groups_and_warning(self) -> None:
        mask = np.zeros((6, 5), bool)
        mask[:2, [0, 3]] = True
        mask[2:4, [3, 1]] = True
        mask[4:, [2, 4]] = True
        data = MultimodalData({name: np.ones((6, 1)) for name in "abcde"}, observed_mask=mask)
        assert data.modality_groups() == [("a", "b", "d"), ("c", "e")]
        with pytest.warns(IdentifiabilityWarning, match="'a', 'b', 'd'; 'c', 'e'.*cannot be learned"):
            warn_unidentifiable(data)
        require_fittable(data.subset(slice(0, 4)).select(["a", "b", "d"]))  # linked through d: no warning

    def test_a_part_may_lack_a_modality_but_cannot_be_fitted(self) -> None:
        data = MultimodalData({"x": ONES, "y": np.array([[1.0], [NAN], [NAN]])}).subset([1, 2])
        with pytest.raises(DataError, match="modality 'y': no instance has it"):
            require_fittable(data)


class TestDerived:
    @pytest.mark.parametrize(
        "rows", [slice(3, 20, 4), slice(None, None, -1), [5, 2, 2, -1], np.arange(40) % 3 == 0, torch.tensor([7, 1])]
    )
    def test_subset_takes_everything_along(self, rows: Any) -> None:  # noqa: ANN401
        data = ragged()
        numbers = np.arange(40)[rows.numpy() if isinstance(rows, Tensor) else rows]
        part = data.subset(rows)
        assert data.ids is not None
        assert data.labels is not None
        assert part.ids is not None
        assert part.labels is not None
        assert part.partition is not None
        for name in data.names:
            assert same(part[name], data[name][torch.tensor(numbers.copy())])
        assert part.ids.tolist() == data.ids[numbers].tolist()
        assert part.labels.tolist() == data.labels[numbers].tolist()
        assert part.covariates["age"].tolist() == data.covariates["age"][numbers].tolist()
        assert torch.equal(part.patterns[part.pattern_index], part.observed_mask)
        assert part.attributes == data.attributes

    def test_slices_are_views(self) -> None:
        x = np.ones((4, 2))
        assert MultimodalData({"x": x}).subset(slice(1, None))["x"].data_ptr() == x[1:].ctypes.data

    @pytest.mark.parametrize(
        ("rows", "error", "message"),
        [
            ([40], ArgumentError, "row 40 is out of range for 40"),
            ([-41], ArgumentError, "row -41 is out of range"),
            ([True, False], ArgumentError, "expected 40 booleans, one per instance, got 2"),
            ([], ArgumentError, "none of the 40"),
            (np.zeros(40, bool), ArgumentError, "none of the 40"),
            (slice(9, 3), ArgumentError, "none of the 40"),
            ([0.5], ArgumentTypeError, "got float64"),
            ("id3", ArgumentTypeError, "rows: expected"),
            (3, ArgumentTypeError, r"shape \(\)"),
        ],
    )
    def test_subset_refusals(self, rows: Any, error: type[Exception], message: str) -> None:  # noqa: ANN401
        with pytest.raises(error, match=message):
            ragged().subset(rows)

    def test_select(self) -> None:
        data = ragged()
        with pytest.raises(DataError, match=r"instances would have nothing left.*rows_with\('audio', 'text'\)"):
            data.select(["audio", "text"])
        part = data.subset(data.rows_with("audio", "text")).select(["audio", "text"])
        assert part.names == ("audio", "text")
        assert same(part["audio"], data["audio"][data.rows_with("audio", "text")])
        assert torch.equal(part.observed_mask, data.observed_mask[data.rows_with("audio", "text")][:, [2, 1]])
        assert data.subset(data.rows_with("text")).select("text").names == ("text",)

    @pytest.mark.parametrize("sizes", [0.25, 10, [0.25, 0.5, 0.25], [10, 20, 10], [4, 36]])
    def test_split_is_a_partition_of_the_rows(self, sizes: Any) -> None:  # noqa: ANN401
        data = ragged()
        indices = data.split_indices(sizes, seed=3)
        assert sorted(np.concatenate(indices).tolist()) == list(range(40))
        assert all((np.diff(part) > 0).all() for part in indices)
        expected = {0.25: [10, 30], 10: [10, 30]}.get(sizes) if isinstance(sizes, float | int) else None
        expected = expected or ([10, 20, 10] if len(indices) == 3 else [4, 36])
        assert [len(part) for part in data.split(sizes, seed=3)] == expected
        again = data.split_indices(sizes, seed=3)
        assert all(np.array_equal(a, b) for a, b in zip(indices, again, strict=True))
        assert not np.array_equal(indices[0], data.split_indices(sizes, seed=4)[0])

    def test_stratified_split_keeps_the_shares(self) -> None:
        labels = np.repeat([0, 1, 2], [50, 30, 20])
        data = MultimodalData({"x": np.ones((100, 1))}, labels=labels)
        first, second = data.split(0.7, seed=1, stratify=True)
        assert first.labels is not None
        assert second.labels is not None
        assert np.bincount(first.labels).tolist() == [35, 21, 14]
        assert np.bincount(second.labels).tolist() == [15, 9, 6]
        assert not np.array_equal(data.split_indices(0.7, seed=1, stratify=labels)[0][:35], np.arange(35))

    @pytest.mark.parametrize("sizes", [0.0, 1.0, 1.5, 0.001, [0.5, 0.4], [10, 20], [], 40, [-1, 41]])
    def test_split_sizes_that_do_not_fit(self, sizes: Any) -> None:  # noqa: ANN401
        with pytest.raises(ArgumentError, match="sizes"):
            ragged().split(sizes)

    @pytest.mark.parametrize("sizes", [np.int64(10), np.float64(0.25), np.float32(0.25), np.array([10, 30])])
    def test_split_takes_numpy_numbers(self, sizes: Any) -> None:  # noqa: ANN401
        assert [len(part) for part in ragged().split(sizes)] == [10, 30]

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda d: d.select(None), ArgumentTypeError, "names: expected a sequence of modality names, got None"),
            (lambda d: d.select([3]), ArgumentTypeError, "names: .*got 3 among them"),
            (lambda d: d.select([]), ArgumentError, "names: expected at least one modality"),
            (lambda d: d.select(["text", "text"]), ArgumentError, "names: modality 'text' stands twice"),
            (lambda d: d.select(["video"]), SchemaError, r"names: no modality is called 'video'; .*\['image'"),
            (lambda d: d.rows_with(), ArgumentError, "names: expected one or more modalities .*got none"),
            (lambda d: d.split(None), ArgumentTypeError, "sizes: expected a number or a list of numbers, got None"),
            (lambda d: d.split("x"), ArgumentTypeError, "sizes: .*got 'x'"),
            (lambda d: d.split([0.5, "x"]), ArgumentTypeError, "sizes: expected a number, got 'x'"),
            (lambda d: d.split(0.5, seed="x"), ArgumentTypeError, "seed: .*got 'x'"),
            (lambda d: d.split(0.5, seed=None), ArgumentTypeError, "seed: .*got None"),
            (lambda d: d.split(0.5, seed=-1), ArgumentError, "seed: .*got -1"),
            (lambda d: d.conform(None), ArgumentTypeError, "dims: expected a mapping .*got None; pass model.dims"),
            (lambda d: d.require_schema(["text"]), ArgumentTypeError, "dims: expected a mapping"),
            (lambda d: d.concat(d), ArgumentTypeError, r"parts: .*got a single MultimodalData; pass \[first, second"),
            (lambda d: d.concat(None), ArgumentTypeError, "parts: expected a list of MultimodalData, got None"),
            (lambda d: d.concat([d, 3]), ArgumentTypeError, r"parts\[1\]: expected MultimodalData, got 3"),
            (lambda d: d.to(device="nonsense"), ArgumentError, "device: torch cannot use 'nonsense'.*pass 'cpu'"),
            (lambda d: d.to(device="cuda:99"), ArgumentError, "device: torch cannot use 'cuda:99' on this machine"),
        ],
    )
    def test_bad_arguments_are_named(self, call: Any, error: type[Exception], message: str) -> None:  # noqa: ANN401
        with pytest.raises(error, match=message):
            call(ragged())

    def test_stratify_without_labels(self) -> None:
        with pytest.raises(ArgumentError, match="no labels"):
            MultimodalData({"x": ONES}).split(0.5, stratify=True)

    def test_partition(self) -> None:
        data = ragged()
        assert (len(data.train), len(data.test)) == (30, 10)
        with pytest.raises(DataError, match=r"no part is called 'valid'; there are \['test', 'train'\]"):
            data.part("valid")
        with pytest.raises(DataError, match=r"without a split; use data\.split"):
            _ = MultimodalData({"x": ONES}).train

    def test_concat_undoes_split(self) -> None:
        data = ragged()
        indices = data.split_indices(0.3, seed=0)
        joined = MultimodalData.concat([data.subset(rows) for rows in indices])
        restored = joined.subset(np.argsort(np.concatenate(indices)))
        for name in data.names:
            assert same(restored[name], data[name])
        assert torch.equal(restored.observed_mask, data.observed_mask)
        assert restored.ids is not None
        assert data.ids is not None
        assert restored.ids.tolist() == data.ids.tolist()
        assert restored.covariates["caption"].tolist() == data.covariates["caption"].tolist()
        assert restored.attributes == data.attributes

    def test_concat_reorders_widens_and_keeps_feature_gaps(self) -> None:
        a = MultimodalData({"x": np.ones((2, 1), np.float32), "y": np.ones((2, 2), np.float32)})
        b = MultimodalData({"y": np.array([[1.0, NAN]]), "x": np.ones((1, 1))}, missing="features")
        joined = MultimodalData.concat([a, b])
        assert joined.names == ("x", "y")
        assert joined.dtype == torch.float64
        assert joined.missing == "features"
        assert joined.feature_mask("y")[2].tolist() == [True, False]

    def test_concat_of_parts_that_lack_modalities(self) -> None:
        a = MultimodalData({"x": pd.DataFrame({"u": [1.0], "v": [2.0]})})
        b = MultimodalData({"y": np.ones((2, 3))})
        c = MultimodalData({"y": np.zeros((1, 3)), "x": pd.DataFrame({"v": [4.0], "u": [3.0]})})
        joined = MultimodalData.concat([a, b, c])
        assert joined.dims == {"x": 2, "y": 3}
        assert joined.feature_names == {"x": ("u", "v"), "y": None}
        assert joined.observed_mask.tolist() == [[True, False], [False, True], [False, True], [True, True]]
        assert joined["x"][[0, 3]].tolist() == [[1, 2], [3, 4]]
        assert bool(joined["x"][1].isnan().all())
        restored = joined.subset([1, 2]).select(["y"])
        assert torch.equal(restored["y"], b["y"])

    def test_concat_refusals(self) -> None:
        data = ragged()
        with pytest.raises(ArgumentError, match="at least one"):
            MultimodalData.concat([])
        with pytest.raises(DataError, match="'id0' stands in rows"):
            MultimodalData.concat([data, data])
        wider = MultimodalData({"image": np.ones((2, 4)), "text": np.ones((2, 3)), "audio": np.ones((2, 2))})
        with pytest.raises(SchemaError, match=r"parts\[1\]: modality 'audio': expected 1 features, got 2") as caught:
            MultimodalData.concat([data, wider])
        assert "model" not in str(caught.value)
        nameless = MultimodalData({name: np.ones((2, width)) for name, width in data.dims.items()})
        with pytest.raises(DataError, match="ids: 1 of 2 parts have it"):
            MultimodalData.concat([data.subset([0]), nameless])

    def test_to(self) -> None:
        data = ragged()
        narrow = data.to(torch.float32)
        assert {narrow[name].dtype for name in narrow.names} == {torch.float32}
        assert narrow.blocks.values["image"].dtype == torch.float32
        assert data.dtype == torch.float64
        with pytest.raises(ArgumentTypeError, match=r"expected torch\.float32 or torch\.float64"):
            data.to(torch.float16)

    def test_narrowing_never_makes_infinities(self) -> None:
        x = np.ones((4, 2))
        x[1] = 1e39
        x[2, 1] = -1e39
        data = MultimodalData({"y": np.ones((4, 1)), "x": x}, ids=list("abcd"))
        with pytest.raises(
            DataError, match=r"'x': 2 rows hold values that float32 cannot hold .*first row 1 \(id 'b'\), feature 0"
        ):
            data.to(torch.float32)
        hidden = data.mask({"x": [True, False, False, True]})  # what is absent is not looked at
        assert hidden.to(torch.float32).filled("x").isfinite().all()
        assert data.to(torch.float64)["x"].tolist() == x.tolist()
        gaps = MultimodalData({"x": np.array([[NAN, 1.0], [2.0, NAN]])}, missing="features").to(torch.float32)
        assert gaps.feature_mask("x").tolist() == [[False, True], [True, False]]

    def test_schema(self) -> None:
        data = ragged()
        data.require_schema({"audio": 1, "text": 3, "image": 4})
        with pytest.raises(SchemaError, match=r"lack \['video'\].*conform"):
            data.require_schema({**data.dims, "video": 2})
        with pytest.raises(SchemaError, match=r"have \['audio'\] besides.*select"):
            data.require_schema({"image": 4, "text": 3})
        with pytest.raises(SchemaError, match="modality 'text': expected 5 features, got 3"):
            data.require_schema({**data.dims, "text": 5})

    def test_conform_adds_absent_modalities(self) -> None:
        data = ragged()
        dims = {"video": 1000, "audio": 1, "image": 4, "text": 3}
        wide = data.conform(dims)
        wide.require_schema(dims)
        assert wide.names == tuple(dims)
        assert not wide.observed("video").any()
        assert wide["video"].isnan().all()
        assert wide.blocks.values["video"].shape == (0, 1000)
        assert same(wide["text"], data["text"])
        with pytest.raises(SchemaError, match="'image' is unknown"):
            data.conform({"audio": 1})

    @given(st.permutations(["image", "text", "audio"]), st.integers(0, 1000))
    @settings(max_examples=15, deadline=None, derandomize=True)
    def test_selecting_commutes_with_choosing_rows(self, names: list[str], seed: int) -> None:
        data = ragged(seed)
        rows = np.random.default_rng(seed).permutation(40)[:11]
        a, b = data.select(names).subset(rows), data.subset(rows).select(names)
        assert a.names == b.names
        assert all(same(a[name], b[name]) for name in names)
        assert torch.equal(a.patterns[a.pattern_index], b.patterns[b.pattern_index])


class TestDisplay:
    def test_repr_says_the_essentials(self) -> None:
        shown = repr(ragged())
        for part in ("40 instances", "3 modalities", "missing patterns", "float64", "image", "4 features", "observed"):
            assert part in shown
        assert "test 10, train 30" in shown

    def test_single_features_are_counted_where_they_may_be_missing(self) -> None:
        x = np.ones((5, 4))
        x[:, 0] = NAN
        x[4] = NAN
        data = MultimodalData({"x": x, "y": np.ones((5, 2))}, missing="features")
        assert "  x  4 features   60.0% of entries observed\n  y  2 features  100.0% of entries observed" in repr(data)
        assert "<td>60.0%</td>" in data._repr_html_()
        assert "of entries" not in repr(MultimodalData({"y": np.ones((5, 2))}))

    def test_html_is_escaped(self) -> None:
        shown = MultimodalData({"<b>": ONES})._repr_html_()
        assert "<td>&lt;b&gt;</td><td>2</td><td>100.0%</td>" in shown


def test_a_large_array_is_checked_at_the_cost_of_reading_it() -> None:
    x: NDArray[np.float32] = np.random.default_rng(0).standard_normal((50_000, 512), dtype=np.float32)
    x[::2] = NAN
    y = np.ones((50_000, 1), np.float32)
    MultimodalData({"x": x[:100], "y": y[:100]})
    seconds = []
    for _ in range(3):
        start = time.process_time()
        data = MultimodalData({"x": x, "y": y})
        seconds.append(time.process_time() - start)
    assert data["x"].data_ptr() == x.ctypes.data
    start = time.process_time()
    np.isfinite(x).all(axis=1)
    np.isnan(x).all(axis=1)
    plain = time.process_time() - start
    assert min(seconds) < 5 * plain + 0.05  # a loop over rows, or copies in float64, would be far above


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda() -> None:
    data = ragged()
    moved = data.to(device="cuda")
    assert moved["image"].device.type == moved.observed_mask.device.type == moved.patterns.device.type == "cuda"
    given_there = MultimodalData({name: moved[name] for name in moved.names}, observed_mask=data.observed_mask)
    for other in (moved, given_there):
        back = other.subset([3, 1]).to(device="cpu")
        assert all(same(back[name], data.subset([3, 1])[name]) for name in data.names)
    assert "cuda" in repr(moved)
    assert moved.subset(moved.complete_rows()).select(["text"]).filled("text").isfinite().all()
    x = moved["image"].clone()
    x[5, 2] = torch.inf
    with pytest.raises(DataError, match="first row 5, feature 2"):
        MultimodalData({"image": x})
    with pytest.raises(DataError, match="one device"):
        MultimodalData({"image": moved["image"], "text": data["text"]})
