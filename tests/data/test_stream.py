"""Streams of a function's chunks: one schema, stable tokens, and changes told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
import torch

import calmrl_prob as cal
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, SchemaError


def chunks() -> Iterator[cal.MultimodalData]:
    rng = np.random.default_rng(0)
    for size in (4, 3):
        yield cal.MultimodalData({"image": rng.normal(size=(size, 2)), "text": rng.normal(size=(size, 3))})


def test_a_function_is_called_anew_for_each_pass() -> None:
    stream = cal.MultimodalStream.from_chunks(chunks)
    assert (stream.names, stream.num_rows) == (("image", "text"), None)
    first, second = list(stream), list(stream)
    assert [len(chunk) for chunk in first] == [4, 3]
    assert all(torch.equal(a["text"], b["text"]) for a, b in zip(first, second, strict=True))
    parts = list(stream.items(3))
    assert [token for token, _ in parts] == ["chunk 0, rows 0 to 3", "chunk 0, rows 3 to 4", "chunk 1"]
    assert torch.equal(torch.cat([chunk["image"] for _, chunk in parts]), torch.cat([c["image"] for c in first]))


def test_chunks_are_brought_into_the_schema() -> None:
    frame = pd.DataFrame({"u": [1.0, 2.0], "v": [3.0, 4.0]})
    parts = [
        cal.MultimodalData({"x": frame, "y": torch.ones(2, 1, dtype=torch.float64)}),
        cal.MultimodalData({"x": frame[["v", "u"]]}),
    ]
    stream = cal.MultimodalStream.from_chunks(lambda: parts)
    second = list(stream)[1]
    assert second["x"].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert second.observed_mask.tolist() == [[True, False], [True, False]]


def test_mappings_of_arrays_are_chunks_and_other_things_are_not() -> None:
    stream = cal.MultimodalStream.from_chunks(lambda: [{"x": np.array([[1.0, np.nan], [2.0, 3.0]])}])
    assert next(iter(stream)).missing == "features"
    assert [len(chunk) for chunk in stream.chunks(1)] == [1, 1]
    with pytest.raises(ArgumentTypeError, match="as chunk 0"):
        cal.MultimodalStream.from_chunks(lambda: [3])
    with pytest.raises(ArgumentTypeError, match="factory: expected a function"):
        cal.MultimodalStream.from_chunks([])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="it gives no chunks"):
        cal.MultimodalStream.from_chunks(lambda: [])


def test_a_chunk_of_another_schema_is_named() -> None:
    parts = [{"x": np.ones((2, 2))}, {"x": np.ones((2, 3))}]
    stream = cal.MultimodalStream.from_chunks(lambda: parts)
    with pytest.raises(SchemaError, match="chunk 1: data: modality 'x': expected 2 features, got 3"):
        list(stream)


def test_a_stream_that_changes_between_passes_is_told() -> None:
    parts = [{"x": np.ones((2, 2))}]
    stream = cal.MultimodalStream.from_chunks(lambda: parts)
    list(stream)
    parts.append({"x": np.ones((1, 2))})
    with pytest.raises(DataError, match="this pass had 3 rows, the one before 2"):
        list(stream)


def test_tokens_of_another_size_are_refused() -> None:
    stream = cal.MultimodalStream.from_chunks(chunks)
    with pytest.raises(ArgumentError, match="after: no chunk of 2 rows is called 'chunk 9'"):
        list(stream.items(2, after="chunk 9"))
    with pytest.raises(ArgumentError, match="size"):
        list(stream.chunks(0))


def test_a_first_chunk_that_lacks_a_modality_is_told_of_the_schema() -> None:
    chunks = [{"x": np.ones((3, 2))}, {"x": np.ones((3, 2)), "y": np.ones((3, 1))}]
    with pytest.raises(SchemaError, match=r"^chunk 1: .*\['x', 'y'\].* of the first chunk.*schema="):
        list(cal.MultimodalStream.from_chunks(lambda: chunks))
    stream = cal.MultimodalStream.from_chunks(lambda: chunks, schema={"x": 2, "y": 1})
    assert [int(chunk.observed("y").sum()) for chunk in stream] == [0, 3]


@pytest.mark.parametrize(
    "call", [cal.posterior, cal.masked_validation, cal.value_of_information, lambda fit, data: cal.save_npz(data, "x")]
)
def test_what_takes_no_stream_says_what_does(call: Callable[[object, cal.MultimodalStream], object]) -> None:
    data = cal.datasets.make_synthetic(30, {"x": 2, "y": 2}, latent_dim=1, seed=0).data
    fit = cal.fit(cal.SharedLatentModel(data.dims, 1), data)
    with pytest.raises(ArgumentTypeError, match=r"data: .* got a stream, which cal\.fit"):
        call(fit, cal.MultimodalStream.from_chunks(lambda: [data]))


def test_a_function_that_returns_one_iterator_again_is_refused() -> None:
    once = iter([cal.MultimodalData({"x": torch.ones(2, 1)}), cal.MultimodalData({"x": torch.zeros(2, 1)})])
    with pytest.raises(ArgumentTypeError, match="the same iterator twice"):
        cal.MultimodalStream.from_chunks(lambda: once)
    with pytest.raises(ArgumentTypeError, match="got None from it"):
        cal.MultimodalStream.from_chunks(lambda: None)  # type: ignore[arg-type, return-value]


def test_streams_of_functions_are_told_apart_by_what_their_first_chunk_looks_like() -> None:
    def mark(chunk: cal.MultimodalData) -> str:
        return cal.MultimodalStream.from_chunks(lambda: [chunk]).fingerprint

    x, ids = torch.arange(4.0).reshape(2, 2), ["a", "b"]
    first = mark(cal.MultimodalData({"x": x}, ids=ids))
    assert first == mark(cal.MultimodalData({"x": x + 1e-9}, ids=ids))  # values may be drawn or computed anew
    others = [cal.MultimodalData({"x": x}, ids=["a", "c"]), cal.MultimodalData({"x": x[:1]}, ids=["a"])]
    assert first not in {mark(other) for other in others}
