"""Labels decide, not positions: rows and features of frames, series and arrays in the container."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from calmrl_prob import MultimodalData
from calmrl_prob.data import require_fittable
from calmrl_prob.errors import ArgumentTypeError, CalmrlError, DataError, SchemaError

A = np.arange(12.0).reshape(4, 3)
B = 10 + np.arange(8.0).reshape(4, 2)
IDS = ["p", "q", "r", "s"]
TURNED = [2, 0, 3, 1]
FRAME = pd.DataFrame(A, index=IDS, columns=["u", "v", "w"])


class Annotated:
    """What AnnData offers."""

    def __init__(self, matrix: Any, obs: list[str], var: list[str]) -> None:  # noqa: ANN401
        self.X, self.obs_names, self.var_names = matrix, pd.Index(obs), pd.Index(var)


class Polars:
    """What a polars frame offers."""

    columns = ("u", "v", "w")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:  # noqa: ANN401
        return np.asarray(A, dtype=dtype)


def of_frame(order: list[int]) -> object:
    return FRAME.iloc[order]


def of_xarray(order: list[int]) -> object:
    return xr.DataArray(A[order], dims=("s", "f"), coords={"s": np.array(IDS)[order], "f": ["u", "v", "w"]})


def of_annotated(order: list[int]) -> object:
    return Annotated(A[order], [IDS[i] for i in order], ["u", "v", "w"])


class TestRows:
    @pytest.mark.parametrize("made", [of_frame, of_xarray, of_annotated])
    @pytest.mark.parametrize("other", [of_frame, of_xarray, of_annotated])
    def test_modalities_in_another_order_are_put_right(self, made: Any, other: Any) -> None:  # noqa: ANN401
        data = MultimodalData({"x": made([0, 1, 2, 3]), "y": other(TURNED)})
        assert data.ids is not None
        assert data.ids.tolist() == IDS
        assert torch.equal(data["x"], data["y"])
        assert data.feature_names == {"x": ("u", "v", "w"), "y": ("u", "v", "w")}

    @pytest.mark.parametrize("made", [of_frame, of_xarray, of_annotated])
    def test_modalities_of_other_rows_are_refused(self, made: Any) -> None:  # noqa: ANN401
        with pytest.raises(DataError, match=r"modality 'y': its index differs.*reindex"):
            MultimodalData({"x": FRAME.rename(index={"p": "other"}), "y": made(TURNED)})

    def test_frames_whose_rows_are_counted(self) -> None:
        x = FRAME.reset_index(drop=True)
        data = MultimodalData({"x": x, "y": x.iloc[TURNED]}, labels=pd.Series(range(4)).iloc[::-1])
        assert data.ids is None
        assert torch.equal(data["x"], data["y"])
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize("argument", ["labels", "partition", "ids"])
    def test_series_are_put_right(self, argument: str) -> None:
        given: dict[str, Any] = {argument: pd.Series(["a", "b", "c", "d"], index=IDS).iloc[TURNED]}
        assert getattr(MultimodalData({"x": FRAME}, **given), argument).tolist() == ["a", "b", "c", "d"]

    def test_covariates_are_put_right(self) -> None:
        table, column = pd.DataFrame(A, index=IDS), xr.DataArray(A[:, 0], dims="s", coords={"s": IDS})
        given = {"table": table.iloc[TURNED], "column": column.isel(s=TURNED), "text": list("abcd")}
        found = MultimodalData({"x": FRAME}, covariates=given).covariates
        assert np.array_equal(found["table"], A)
        assert np.array_equal(found["column"], A[:, 0])
        assert found["text"].tolist() == list("abcd")

    def test_masks_are_put_right(self) -> None:
        seen = pd.DataFrame({"y": [False, True, True, True], "x": True}, index=IDS)
        array = xr.DataArray(seen.to_numpy(), dims=("s", "m"), coords={"s": IDS, "m": ["y", "x"]}).isel(s=TURNED)
        whole = MultimodalData({"x": FRAME, "y": B})
        for mask in (seen.iloc[TURNED], {"y": seen["y"].iloc[TURNED]}, array):
            for data in (MultimodalData({"x": FRAME, "y": B}, observed_mask=mask), whole.mask(mask)):
                assert data.observed("y").tolist() == [False, True, True, True]
                assert bool(data.observed("x").all())

    def test_rows_are_chosen_and_stratified_by_labels(self) -> None:
        data = MultimodalData({"x": FRAME})
        flags = pd.Series([True, False, False, True], index=IDS)
        chosen = data.subset(flags.iloc[TURNED]).ids  # type: ignore[arg-type]
        assert chosen is not None
        assert chosen.tolist() == ["p", "s"]
        classes = pd.Series(["a", "b", "a", "b"], index=IDS)
        same = data.split_indices(0.5, stratify=classes), data.split_indices(0.5, stratify=classes.iloc[TURNED])
        assert [part.tolist() for part in same[0]] == [part.tolist() for part in same[1]]

    @pytest.mark.parametrize(
        ("arrays", "labels", "message"),
        [
            ({"x": FRAME}, pd.Series(range(4), index=list("pqrt")), "labels: its labels.*reindex.*to_numpy"),
            ({"x": FRAME}, pd.Series(range(4)), "labels: its labels.*to_numpy"),
            ({"x": A}, pd.Series(range(4), index=IDS), "labels: its rows have labels.*ids=.*to_numpy"),
            ({"x": A}, pd.Series(range(4), index=[3, 2, 1, 0]), "labels: its rows have labels"),
            ({"x": FRAME}, pd.Series(range(4), index=["p", "p", "q", "r"]), "labels: its labels"),
        ],
    )
    def test_labels_of_other_rows_are_refused(self, arrays: Any, labels: object, message: str) -> None:  # noqa: ANN401
        with pytest.raises(DataError, match=message):
            MultimodalData(arrays, labels=labels)

    def test_arrays_take_columns_of_one_table(self) -> None:
        table = pd.DataFrame({"id": IDS, "y": [0, 1, 2, 3]})
        data = MultimodalData({"x": A}, ids=table["id"], labels=table["y"].iloc[TURNED])
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 2, 3]
        assert MultimodalData({"x": A}, labels=table["y"]).labels is not None

    def test_ids_that_contradict_the_index_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"ids: .*another order.*reset_index"):
            MultimodalData({"x": FRAME}, ids=IDS[::-1])


KINDS: dict[str, Any] = {
    "mixed": ["a", 1, 2.5],
    "text and number alike": ["1", 1, 2],
    "tuples": [("a", 1), ("a", 2), ("b", 1)],
    "numpy strings": np.array(["a", "b", "c"]),
    "bytes": np.array([b"a", b"b", b"c"]),
    "dates": [datetime.date(2020, 1, day) for day in (1, 2, 3)],
    "times": pd.date_range("2020", periods=3),
    "times in a zone": pd.date_range("2020", periods=3, tz="UTC"),
    "periods": pd.period_range("2020", periods=3, freq="M"),
    "categories": pd.CategoricalIndex(["a", "c", "b"]),
    "several levels": pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)]),
    "intervals": pd.interval_range(0, 3),
    "numbers": [3.5, 1.0, 2.0],
}


class TestIds:
    @pytest.mark.parametrize("kind", list(KINDS))
    @pytest.mark.parametrize("as_index", [False, True])
    def test_any_kind_works(self, kind: str, as_index: bool) -> None:
        ids = KINDS[kind]
        if as_index:
            index = ids if isinstance(ids, pd.Index) else pd.Index(ids)
            data = MultimodalData({"x": pd.DataFrame(A[:3], index=index)})
        else:
            data = MultimodalData({"x": A[:3]}, ids=ids)
        assert repr(data)
        assert data.ids is not None
        assert data.ids.shape == (3,)
        assert len(set(data.ids.tolist())) == 3
        parts = [data.subset([row]) for row in (2, 0, 1)]
        joined = MultimodalData.concat(parts).ids
        assert joined is not None
        assert joined.tolist() == data.ids[[2, 0, 1]].tolist()
        with pytest.raises(DataError, match="ids: expected distinct identifiers"):
            MultimodalData.concat([data, parts[0]])

    def test_of_two_kinds_stay_what_they_are_when_joined(self) -> None:
        joined = MultimodalData.concat([MultimodalData({"x": A[:1]}, ids=["1"]), MultimodalData({"x": A[:1]}, ids=[1])])
        assert joined.ids is not None
        assert joined.ids.tolist() == ["1", 1]

    @pytest.mark.parametrize(
        "ids", [["a", "b", None], ["a", "b", np.nan], [1.0, 2.0, np.nan], pd.DatetimeIndex(["2020", "2021", None])]
    )
    def test_missing_ones_are_refused(self, ids: Any) -> None:  # noqa: ANN401
        with pytest.raises(DataError, match="ids: row 2 has none"):
            MultimodalData({"x": A[:3]}, ids=ids)
        with pytest.raises(DataError, match="ids: row 2 has none"):
            MultimodalData({"x": pd.DataFrame(A[:3], index=ids)})

    def test_what_cannot_be_looked_up_by_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"ids: .*astype\(str\)"):
            MultimodalData({"x": A[:3]}, ids=[{"a": 1}, {"b": 1}, {"c": 1}])


class TestMissingLabels:
    @pytest.mark.parametrize(
        "labels",
        [
            np.array(["x", np.nan, "y", "x"], dtype=object),
            ["x", None, "y", "x"],
            ["x", float("nan"), "y", "x"],
            pd.Series(["x", None, "y", "x"], dtype="string"),
            pd.Categorical(["x", None, "y", "x"]),
        ],
    )
    def test_are_none_everywhere(self, labels: object) -> None:
        data = MultimodalData({"x": A}, labels=labels)
        assert "labels: 2 distinct, 1 missing" in repr(data)
        assert "1 missing" in data._repr_html_()
        assert data.labels is not None
        assert data.labels.tolist() == ["x", None, "y", "x"]
        assert len(data.subset(data.labels == "x")) == 2
        assert sum(len(part) for part in data.split(0.5, stratify=True)) == 4

    def test_of_several_kinds(self) -> None:
        data = MultimodalData({"x": A}, labels=["x", 1, 1, None], partition=["train", None, "test", "train"])
        assert "labels: 2 distinct, 1 missing" in repr(data)
        assert "(none) 1" in repr(data)
        assert len(data.train) == 2
        with pytest.raises(DataError, match="no part is called 'other'"):
            data.part("other")


class TestFeatureNames:
    @pytest.mark.parametrize(
        "frame", [FRAME, Polars(), of_xarray([0, 1, 2, 3]), of_annotated([0, 1, 2, 3])], ids=lambda f: type(f).__name__
    )
    def test_are_kept(self, frame: object) -> None:
        data = MultimodalData({"x": frame, "y": B})
        for each in (data, data.subset([2, 0]), data.select(["x"]), data.mask({"y": [True] * 3 + [False]})):
            assert each.feature_names["x"] == ("u", "v", "w")
        assert data.feature_names["y"] is None
        assert data.to(torch.float32).feature_names == data.feature_names
        parts = [data.subset([0]), data.subset([1, 2])]
        assert MultimodalData.concat(parts).feature_names == data.feature_names
        assert data.conform({"y": 2, "z": 1, "x": 3}).feature_names == {"y": None, "z": None, "x": ("u", "v", "w")}
        assert data.dims == {"x": 3, "y": 2}

    def test_plain_arrays_have_none(self) -> None:
        data = MultimodalData({"x": A})
        assert type(data.dims) is dict
        assert data.conform(MultimodalData({"x": FRAME}).dims).feature_names["x"] == ("u", "v", "w")
        assert torch.equal(data.conform(MultimodalData({"x": FRAME}).dims)["x"], data["x"])

    def test_another_order_is_put_right_by_conform_and_concat(self) -> None:
        data = MultimodalData({"x": FRAME})
        turned = MultimodalData({"x": FRAME[["w", "u", "v"]]})
        assert torch.equal(turned.conform(data.dims)["x"], data["x"])
        assert data.conform(data.dims) is data
        later = turned.subset([1])._derive(ids=np.array(["t"]))
        assert torch.equal(MultimodalData.concat([data, later])["x"][-1], data["x"][1])

    def test_others_are_refused_by_conform_and_concat(self) -> None:
        data = MultimodalData({"x": FRAME})
        other = MultimodalData({"x": FRAME.rename(columns={"u": "t"})})
        with pytest.raises(SchemaError, match=r"modality 'x'.*lack \['u'\] and have \['t'\] besides; .*to_numpy"):
            other.conform(data.dims)
        with pytest.raises(SchemaError, match=r"parts\[1\]: modality 'x'.*the parts before"):
            MultimodalData.concat([data, other])

    def test_columns_that_are_numbers(self) -> None:
        counted = MultimodalData({"x": pd.DataFrame(A)})
        turned = MultimodalData({"x": pd.DataFrame(A)[[2, 0, 1]]})
        assert torch.equal(turned.conform(counted.dims)["x"], counted["x"])
        assert torch.equal(counted.conform(turned.dims)["x"], turned["x"])
        named = MultimodalData({"x": FRAME})  # numbers are no names: there is nothing to go by
        assert torch.equal(named.conform(counted.dims)["x"], named["x"])

    def test_columns_of_other_kinds(self) -> None:
        columns = pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])
        frame = pd.DataFrame(A, columns=columns)
        data, turned = MultimodalData({"x": frame}), MultimodalData({"x": frame.iloc[:, [2, 0, 1]]})
        assert torch.equal(turned.conform(data.dims)["x"], data["x"])
        dated = MultimodalData({"x": pd.DataFrame(A, columns=pd.date_range("2020", periods=3))})
        assert dated.feature_names["x"] == ("2020-01-01 00:00:00", "2020-01-02 00:00:00", "2020-01-03 00:00:00")

    def test_names_that_stand_twice_go_only_by_their_order(self) -> None:
        twice = pd.DataFrame(A, columns=["u", "u", "v"])
        data = MultimodalData({"x": twice})
        assert data.conform(MultimodalData({"x": twice}).dims) is data
        with pytest.raises(SchemaError, match="modality 'x'"):
            MultimodalData({"x": twice.iloc[:, [2, 0, 1]]}).conform(data.dims)

    def test_a_sparse_annotated_matrix_is_refused_with_a_remedy(self) -> None:
        class Sparse:
            toarray = None

        with pytest.raises(CalmrlError, match=r"dense X.*to_df\(\)"):
            MultimodalData({"x": Annotated(Sparse(), IDS, ["u", "v", "w"])})


class TestChunks:
    def test_a_modality_that_nobody_has_is_data_but_cannot_be_fitted(self) -> None:
        data = MultimodalData({"x": A, "y": np.full((4, 2), np.nan)})
        assert data.dims == {"x": 3, "y": 2}
        assert not bool(data.observed("y").any())
        assert "0.0% observed" in repr(data)
        with pytest.raises(DataError, match="modality 'y': no instance has it"):
            require_fittable(data)

    def test_masked_away_wholly(self) -> None:
        data = MultimodalData({"x": A, "y": B}, observed_mask={"y": np.zeros(4, dtype=bool)})
        assert not bool(data.observed("y").any())
        joined = MultimodalData.concat([data, MultimodalData({"x": A, "y": B})])
        assert joined.observed("y").sum() == 4

    def test_by_feature(self) -> None:
        data = MultimodalData({"x": A, "y": np.full((4, 2), np.nan)}, missing="features")
        assert not bool(data.feature_mask("y").any())


def test_annotated_data_on_their_own_are_to_be_named() -> None:
    annotated = Annotated(np.ones((2, 1)), ["r", "s"], ["u"])
    with pytest.raises(ArgumentTypeError, match=r"got Annotated; name it, \{'rna': adata\}"):
        MultimodalData(annotated)  # type: ignore[arg-type]
