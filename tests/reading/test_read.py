"""Reading of every format: the same data, whatever they were in."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch

import calmrl_prob as cal
from calmrl_prob.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    FileFormatError,
    IdentifiabilityWarning,
    SchemaError,
)
from tests.cases.files_cases import (
    BATCH,
    CASES,
    GENES,
    IDS,
    LABELS,
    PROTEIN,
    PROTEINS,
    RNA,
    WITHOUT_FEATURES,
    assay,
    list_table,
    muon,
    protein_frame,
    rna_frame,
    wide_frame,
    write_h5ad,
)

every_format = pytest.mark.parametrize("case", CASES)


@every_format
def test_the_same_data_whatever_they_were_in(case: str, tmp_path: Path) -> None:
    data = cal.read(**CASES[case](tmp_path))
    assert set(data.names) == {"rna", "protein"}
    order = [data.ids.tolist().index(name) for name in IDS]
    np.testing.assert_array_equal(data["rna"].numpy()[order], RNA)
    np.testing.assert_array_equal(data["protein"].numpy()[order], PROTEIN)
    assert data.missing == "features"
    assert data.observed("protein").numpy()[order].tolist() == [n != 2 for n in range(7)]
    assert data.labels[order].tolist() == LABELS.tolist()
    assert data.covariates["batch"][order].tolist() == BATCH.tolist()
    if case not in ("csv", "tsv"):  # text has no types
        assert data.dtype == torch.float32
    if case == "tsv":
        assert data.feature_names["rna"] == tuple(f"rna:{gene}" for gene in GENES)
    elif case not in WITHOUT_FEATURES:
        assert data.feature_names == {"rna": tuple(GENES), "protein": tuple(PROTEINS)} or case == "tsv"


@every_format
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_stream_is_the_same_in_chunks_again_and_again(case: str, size: int, tmp_path: Path) -> None:
    settings = CASES[case](tmp_path)
    whole, stream = cal.read(**settings), cal.read(**settings, stream=True)
    assert (stream.dims, stream.num_rows, stream.dtype) == (whole.dims, len(whole), whole.dtype)
    assert stream.feature_names == whole.feature_names
    items = list(stream.items(size))
    tokens = [token for token, _ in items]
    assert max(len(chunk) for _, chunk in items) <= size
    assert len(set(tokens)) == len(tokens)
    for chunks in ([chunk for _, chunk in items], list(stream.chunks(size))):
        together = cal.MultimodalData.concat(chunks)
        assert together.ids.tolist() == whole.ids.tolist()
        for name in whole.names:
            np.testing.assert_array_equal(together[name].numpy(), whole[name].numpy())
        assert together.labels.tolist() == whole.labels.tolist()
        assert {chunk.missing for chunk in chunks} == {"features"}
    rest = [token for token, _ in stream.items(size, after=tokens[0])]
    assert rest == tokens[1:]


@pytest.mark.parametrize("case", ["parquet of lists", "npz", "npy", "h5mu", "zarr"])
def test_a_stream_travels_as_its_place(case: str, tmp_path: Path) -> None:
    stream = cal.read(**CASES[case](tmp_path), stream=True)
    next(iter(stream.chunks(2)))  # with a file open
    there = pickle.loads(pickle.dumps(stream))
    assert there.fingerprint == stream.fingerprint
    assert [token for token, _ in there.items(2)] == [token for token, _ in stream.items(2)]


class TestJoin:
    def test_outer_keeps_instances_of_either_and_inner_those_of_both(self) -> None:
        rna, protein = rna_frame().iloc[:5], protein_frame().iloc[[6, 3, 1]]
        outer = cal.read({"rna": rna, "protein": protein})
        assert outer.ids.tolist() == [*IDS[:5], IDS[6]]
        assert outer.observed_mask.tolist() == [[True, n in (1, 3)] for n in range(5)] + [[False, True]]
        np.testing.assert_array_equal(outer["protein"][[5, 3, 1]].numpy(), PROTEIN[[6, 3, 1]])
        inner = cal.read({"rna": rna, "protein": protein}, join="inner")
        assert inner.ids.tolist() == [IDS[1], IDS[3]]
        np.testing.assert_array_equal(inner["rna"].numpy(), RNA[[1, 3]])

    def test_columns_are_those_of_whoever_has_them(self) -> None:
        rna, protein = rna_frame().iloc[:4], protein_frame().iloc[3:]
        data = cal.read(
            {"rna": rna.assign(batch=BATCH[:4], age=[1.0, 2.0, 3.0, 4.0]), "protein": protein.assign(batch=BATCH[3:])},
            covariates=["batch", "age"],
        )
        assert data.covariates["batch"].tolist() == BATCH.tolist()
        assert np.isnan(data.covariates["age"][4:]).all()

    def test_sources_that_differ_are_refused(self) -> None:
        rna, protein = rna_frame().assign(batch="one"), protein_frame().assign(batch=BATCH)
        with pytest.raises(DataError, match="column 'batch': two sources differ, 'one' and 'two' for id 'cell-1'"):
            cal.read({"rna": rna, "protein": protein})

    def test_assays_that_differ_keep_columns_of_their_own(self) -> None:
        value = muon()
        value.mod["rna"].obs["depth"] = np.arange(7.0)
        value.mod["protein"].obs["depth"] = np.ones(6)
        data = cal.read(value)
        assert set(data.covariates) == {"batch", "rna:depth", "protein:depth"}

    def test_ids_of_two_kinds_are_refused(self) -> None:
        numbered = protein_frame().set_axis(range(5, 12))
        with pytest.raises(DataError, match=r"are texts, those of .* numbers"):
            cal.read({"rna": rna_frame(), "protein": numbered})

    def test_arrays_without_ids_go_by_position(self) -> None:
        data = cal.read({"rna": RNA, "protein": PROTEIN})
        assert data.ids is None
        np.testing.assert_array_equal(data["protein"].numpy(), PROTEIN)
        with pytest.raises(DataError, match="7 rows, the array has 6"):
            cal.read({"rna": RNA, "protein": PROTEIN[:6]})
        with pytest.raises(DataError, match="the array has none, other"):
            cal.read({"rna": rna_frame(), "protein": PROTEIN})

    def test_nothing_in_common_is_refused(self) -> None:
        with pytest.raises(DataError, match="no instance is in all sources"):
            cal.read({"rna": rna_frame().iloc[:2], "protein": protein_frame().iloc[3:]}, join="inner")


class TestChoices:
    def test_modalities_by_a_mapping(self) -> None:
        data = cal.read(
            wide_frame(), modalities={"a": ["rna:TAL1", "protein:CD3"], "b": ["rna:GATA1"]}, covariates=["batch"]
        )
        assert data.feature_names == {"a": ("rna:TAL1", "protein:CD3"), "b": ("rna:GATA1",)}
        assert list(data.covariates) == ["batch"]

    def test_one_table_of_numbers_is_one_modality_called_by_the_file(self, tmp_path: Path) -> None:
        rna_frame().to_parquet(tmp_path / "genes.parquet")
        assert cal.read(tmp_path / "genes.parquet").dims == {"genes": 3}
        assert cal.read({"rna": tmp_path / "genes.parquet"}).dims == {"rna": 3}

    def test_labels_and_ids_by_name(self) -> None:
        frame = wide_frame().reset_index(names="who")
        data = cal.read(frame, sep=":", ids="who", labels="batch", covariates=[])
        assert (data.ids.tolist(), data.labels.tolist(), data.covariates) == (IDS, BATCH.tolist(), {})

    def test_layers_and_embeddings_of_anndata(self, tmp_path: Path) -> None:
        value = assay(RNA, GENES)
        value.layers["counts"] = scipy.sparse.csr_matrix(2 * RNA)
        value.obsm["X_pca"] = RNA[:, :2]
        places = {"counts": "layers/counts", "pca": "obsm/X_pca", "rna": "X"}
        for origin in (value, write_h5ad(tmp_path / "x.h5ad", value)):
            data = cal.read(origin, modalities=places, labels="batch")
            np.testing.assert_array_equal(data["counts"].numpy(), 2 * RNA)
            assert data.dims == {"counts": 3, "pca": 2, "rna": 3}
            assert data.feature_names["counts"] == tuple(GENES)
            stream = cal.read(origin, modalities=places, stream=True)
            np.testing.assert_array_equal(next(stream.chunks(3))["counts"].numpy(), 2 * RNA[:3])
            with pytest.raises(SchemaError, match=r"no 'layers/count'.*layers/counts"):
                cal.read(origin, modalities={"x": "layers/count"})

    def test_assays_of_mudata(self) -> None:
        assert cal.read(muon(), modalities=["protein"], empty="drop").names == ("protein",)
        assert cal.read(muon(), modalities={"genes": "rna/X"}).dims == {"genes": 3}
        with pytest.raises(SchemaError, match=r"no assay 'atac'; it has \['rna', 'protein'\]"):
            cal.read(muon(), modalities=["atac"])

    def test_identifiers_keep_their_zeros_and_numbers_stay_numbers(self, tmp_path: Path) -> None:
        (tmp_path / "zeros.csv").write_text("id,a\n007,1\n010,2\n")
        (tmp_path / "plain.csv").write_text("id,a\n7,1\n10,2\n")
        assert cal.read(tmp_path / "zeros.csv").ids.tolist() == ["007", "010"]
        assert cal.read(tmp_path / "plain.csv").ids.tolist() == [7, 10]

    def test_a_memory_map_stays_one(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.ones((5, 2)))
        data = cal.read(tmp_path / "x.npy")
        assert data.dims == {"x": 2}
        np.save(tmp_path / "who.npy", np.arange(5) + 10)
        assert cal.read(tmp_path / "x.npy", ids="who.npy").ids.tolist() == [10, 11, 12, 13, 14]

    def test_complete_data_are_of_the_faster_kind(self) -> None:
        assert cal.read(rna_frame()).missing == "modalities"
        with pytest.raises(DataError, match="the frame: modality 'x': 1 row holds NaN"):
            cal.read(protein_frame().dropna(how="all"), missing="modalities")


def truncated(tmp_path: Path) -> Path:
    """Three files, of which the middle one lost its second half."""
    for n in range(3):
        table = list_table().set_column(0, "id", pa.array([f"{n}-{name}" for name in IDS]))
        pa.parquet.write_table(table, tmp_path / f"part-{n}.parquet", row_group_size=3)
    middle = tmp_path / "part-1.parquet"
    middle.write_bytes(middle.read_bytes()[: middle.stat().st_size // 2])
    return tmp_path


class TestBadInput:
    def test_a_truncated_file_in_the_middle_is_named(self, tmp_path: Path) -> None:
        for stream in (False, True):
            with pytest.raises(FileFormatError, match=r"part-1\.parquet: it cannot be read"):
                cal.read(truncated(tmp_path), stream=stream)

    def test_a_damaged_row_group_is_named_and_others_stay_readable(self, tmp_path: Path) -> None:
        path = tmp_path / "cells.parquet"
        pa.parquet.write_table(list_table(), path, row_group_size=3, compression="gzip")
        column = pa.parquet.read_metadata(path).row_group(1).column(1)
        raw = bytearray(path.read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        raw[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        path.write_bytes(bytes(raw))
        with pytest.raises(FileFormatError, match=r"cells\.parquet, row group 1"):
            cal.read(path)
        stream = iter(cal.read(path, stream=True).chunks(3))
        assert next(stream).ids.tolist() == IDS[:3]
        with pytest.raises(FileFormatError, match=r"cells\.parquet, row group 1"):
            next(stream)

    def test_files_of_other_columns_are_named(self, tmp_path: Path) -> None:
        pa.parquet.write_table(list_table(), tmp_path / "a.parquet")
        pa.parquet.write_table(list_table().drop_columns(["protein"]), tmp_path / "b.parquet")
        with pytest.raises(SchemaError, match=r"b\.parquet: its columns .*a\.parquet: it lacks \['protein'\]"):
            cal.read(tmp_path)
        text = list_table().set_column(1, "rna", pa.array(BATCH.tolist()))
        pa.parquet.write_table(text, tmp_path / "b.parquet")
        with pytest.raises(SchemaError, match=r"b\.parquet: column 'rna' is of type string"):
            cal.read(tmp_path)

    def test_the_widest_type_of_all_files_is_read(self, tmp_path: Path) -> None:
        pd.DataFrame({"u": np.array([1, 2], dtype=np.float32)}).to_parquet(tmp_path / "a.parquet")
        pd.DataFrame({"u": [1 / 3]}).to_parquet(tmp_path / "b.parquet")
        assert cal.read(tmp_path)["x"][2].item() == 1 / 3

    def test_lists_of_several_lengths_are_refused(self, tmp_path: Path) -> None:
        pa.parquet.write_table(pa.table({"x": [[1.0, 2.0], [3.0]]}), tmp_path / "x.parquet")
        with pytest.raises(
            SchemaError, match=r"x\.parquet, row group 0: column 'x': expected lists of 2 numbers, row 1"
        ):
            cal.read(tmp_path / "x.parquet")

    def test_files_with_lists_of_other_widths_are_named(self, tmp_path: Path) -> None:
        for name, width in (("a", 2), ("b", 3)):
            cal.write(cal.MultimodalData({"x": np.ones((4, width))}), tmp_path / f"{name}.parquet")
        for stream in (False, True):
            with pytest.raises(
                SchemaError, match=r"b\.parquet: column 'x' holds lists of 3 numbers, in .*a\.parquet of 2"
            ):
                cal.read(tmp_path, stream=stream)
        pa.parquet.write_table(pa.table({"x": [[1.0, 2.0, 3.0]]}), tmp_path / "b.parquet")
        with pytest.raises(SchemaError, match=r"b\.parquet, row group 0: column 'x': expected lists of 2 numbers"):
            cal.read(tmp_path)

    @pytest.mark.parametrize("change", ["shorter", "same length", "gone"])
    def test_files_that_change_under_a_stream_are_named(self, change: str, tmp_path: Path) -> None:
        for name in ("a", "b"):
            cal.write(cal.MultimodalData({"x": np.ones((4, 2))}), tmp_path / f"{name}.parquet")
        stream = cal.read(tmp_path, stream=True)
        passing = iter(stream.chunks(4))
        next(passing)
        if change == "gone":
            (tmp_path / "b.parquet").unlink()
        else:
            rows = 3 if change == "shorter" else 4
            cal.write(cal.MultimodalData({"x": np.full((rows, 2), 1 / 3)}), tmp_path / "b.parquet")
        kind = FileNotFoundError if change == "gone" else DataError
        if change != "same length":
            with pytest.raises(kind, match=r"b\.parquet"):
                next(passing)
        with pytest.raises(kind, match=r"b\.parquet"):
            next(stream.chunks(4))

    def test_repeated_ids_are_told_with_their_places(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            pa.parquet.write_table(list_table(), tmp_path / f"{name}.parquet", row_group_size=4)
        with pytest.raises(
            DataError, match=r"'cell-0' stands twice, in row 0 of a\.parquet.* and in row 0 of b\.parquet"
        ):
            cal.read(tmp_path)
        with pytest.raises(DataError, match="'cell-1' stands twice"):
            cal.read({"rna": rna_frame().set_axis([IDS[1]] * 7), "protein": protein_frame()})

    @pytest.mark.parametrize("name", ["cells.parquet", "cells.npz", "cells.csv", "cells.h5mu", "x.npy"])
    def test_empty_files_are_named(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(FileFormatError, match=name):
            cal.read(tmp_path / name)

    @pytest.mark.parametrize("case", ["parquet of lists", "npz", "npy", "h5mu"])
    def test_half_a_file_is_named(self, case: str, tmp_path: Path) -> None:
        CASES[case](tmp_path)
        path = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(FileFormatError, match=path.name):
            cal.read(path)

    def test_paths_that_are_not_there_and_endings_that_are_not_known(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"there is no .*none\.parquet"):
            cal.read(tmp_path / "none.parquet")
        with pytest.raises(FileNotFoundError, match=r"there is no .*\*\.parquet"):
            cal.read(tmp_path / "*.parquet")
        with pytest.raises(ArgumentError, match="is empty"):
            cal.read(tmp_path)
        (tmp_path / "cells.xlsx").write_bytes(b"PK")
        with pytest.raises(
            ArgumentError, match=r"has the ending '\.xlsx'; the endings that can be read are \['\.parquet'"
        ):
            cal.read(tmp_path / "cells.xlsx")
        (tmp_path / "a.csv").write_text("id,u\na,1\n")
        (tmp_path / "b.csv").write_text("id,u\nb,1\n")
        with pytest.raises(ArgumentError, match=r"2 \.csv files; pass a dict"):
            cal.read(tmp_path / "*.csv")

    def test_options_that_there_are_not(self) -> None:
        with pytest.raises(ArgumentError, match="join: expected 'outer' or 'inner'"):
            cal.read(rna_frame(), join="left")  # type: ignore[call-overload]
        with pytest.raises(ArgumentError, match="missing: expected 'auto'"):
            cal.read(rna_frame(), missing="none")  # type: ignore[call-overload]
        with pytest.raises(ArgumentTypeError, match=r"modalities: expected a list of names, got 'rna'; use \['rna'\]"):
            cal.read(rna_frame(), modalities="rna")
        with pytest.raises(ArgumentTypeError, match="origin: expected a path"):
            cal.read(3)
        with pytest.raises(ArgumentTypeError, match="of several files of the same columns give their folder or a glob"):
            cal.read(["a.parquet", "b.parquet"])
        with pytest.raises(SchemaError, match="labels: the frame has no column 'kind'"):
            cal.read(rna_frame(), labels="kind")
        with pytest.raises(SchemaError, match="labels: none of the origins has 'kind'"):
            cal.read({"rna": rna_frame(), "protein": protein_frame()}, labels="kind")
        with pytest.raises(SchemaError, match="no column of it can be a modality"):
            cal.read(pd.DataFrame({"a": ["x"]}))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["frames", "files", "mudata"])
def test_sources_that_share_no_id_are_told(kind: str, stream: bool, tmp_path: Path) -> None:
    rna, protein = rna_frame(), protein_frame().iloc[[0, 1, 3]].rename(str.upper)
    origin: object = {"rna": rna, "protein": protein}
    if kind == "files":
        rna.rename_axis("id").to_csv(tmp_path / "rna.csv")
        protein.rename_axis("id").to_csv(tmp_path / "protein.csv")
        origin = {"rna": str(tmp_path / "rna.csv"), "protein": str(tmp_path / "protein.csv")}
    if kind == "mudata":
        other = assay(PROTEIN, PROTEINS, [0, 1, 3])
        other.obs_names = protein.index
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mudata warns of what it will do in its next version
            origin = mudata.MuData({"rna": assay(RNA, GENES), "protein": other})
    with pytest.warns(IdentifiabilityWarning, match=r"'cell-0', 'cell-1', 'cell-2', .* 'CELL-0'") as told:
        cal.read(origin, stream=stream)
    assert told[0].filename == __file__
    assert len(told) == 1


def test_of_three_sources_the_stranger_is_told() -> None:
    frames = {"rna": rna_frame(), "protein": protein_frame().iloc[[0, 1, 3]]}
    with pytest.warns(IdentifiabilityWarning, match="'x'") as told:
        cal.read(frames | {"sound": pd.DataFrame({"a": [1.0]}, index=["x"])})
    assert len(told) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("id;a0;a1\nx;0.5;1.5\n", r"';' stands between its names, and ',' is expected; .*sep=';'"),
        ("id;a0;a1\nx;0,5;1,5\n", r"';' stands between its names.*decimal=','"),
        ("id\ta0\ta1\nx\t0.5\t1.5\n", r"'\\t' stands between its names"),
        ("id,größe\nx,1\n".encode("latin-1"), "no text in UTF-8 .*; save it as UTF-8"),
        ("id,a0\nx,1\n".encode("utf-16"), "no text in UTF-8 .*; save it as UTF-8"),
    ],
)
def test_tables_that_are_written_another_way_say_how(content: str | bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileFormatError, match=told):
        cal.read(path)
