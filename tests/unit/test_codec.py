"""Codecs: exact round trips, exact sizes, and nothing that is not finite gets through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from p2pnode.codec import Codec, FloatVector, codec_named

NAMES = ("float32", "float16")
each = pytest.mark.parametrize("name", NAMES)


def vectors(bound: float) -> st.SearchStrategy[FloatVector]:
    return npst.arrays(np.float32, st.integers(0, 200), elements=st.floats(-bound, bound, width=32))


@given(vectors(float(np.finfo(np.float32).max)))
def test_float32_keeps_every_bit(values: FloatVector) -> None:
    codec = codec_named("float32")
    found = codec.decode(codec.encode(values), len(values))
    assert found.dtype == np.float32
    assert found.tobytes() == values.tobytes()  # minus zero and denormals too


@given(vectors(65504.0))
def test_float16_is_as_near_as_half_precision_allows(values: FloatVector) -> None:
    codec = codec_named("float16")
    data = codec.encode(values)
    found = codec.decode(data, len(values))
    # Half a unit in the last place of 11 bits; below the smallest normal number, half of 2^-24.
    bound = np.maximum(np.abs(values.astype(np.float64)) * 2.0**-11, 2.0**-25)
    assert np.all(np.abs(found.astype(np.float64) - values) <= bound)
    assert codec.encode(found) == data  # what was rounded once is not changed again


@each
@given(st.data())
def test_sizes(name: str, data: st.DataObject) -> None:
    codec = codec_named(name)
    count = data.draw(st.integers(0, 1000))
    assert len(codec.encode(np.zeros(count, dtype=np.float32))) == codec.encoded_size(count)
    chunk_bytes = data.draw(st.integers(64, 131_072))
    most = codec.chunk_values(chunk_bytes)
    assert codec.encoded_size(most) <= chunk_bytes < codec.encoded_size(most + 1)


@each
@given(st.data())
def test_decoding_bytes_gives_finite_values_or_an_error(name: str, data: st.DataObject) -> None:
    codec = codec_named(name)
    count = data.draw(st.integers(0, 40))
    raw = data.draw(st.binary(min_size=codec.encoded_size(count), max_size=codec.encoded_size(count)))
    try:
        values = codec.decode(raw, count)
    except ValueError:
        return
    assert values.shape == (count,)
    assert np.all(np.isfinite(values))
    assert codec.encode(values) == raw


@each
@given(st.binary(max_size=64), st.integers(0, 20))
def test_another_length_is_refused_before_decoding(name: str, raw: bytes, count: int) -> None:
    codec = codec_named(name)
    if len(raw) != codec.encoded_size(count):
        with pytest.raises(ValueError, match="bytes where"):
            codec.decode(raw, count)


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 57, 99])
def test_one_value_that_is_not_finite_refuses_all(name: str, bad: float, place: int) -> None:
    codec = codec_named(name)
    values = np.zeros(100, dtype=np.float32)
    values[place] = bad
    with pytest.raises(ValueError, match="not finite"):
        codec.encode(values)
    dtype = {"float32": "<f4", "float16": "<f2"}[name]
    with pytest.raises(ValueError, match="not finite"):
        codec.decode(values.astype(dtype).tobytes(), 100)


@each
def test_bounds(name: str) -> None:
    codec: Codec = codec_named(name)
    largest = np.float32(codec.largest)
    assert codec.name == name
    found = codec.decode(codec.encode(np.array([largest, -largest], dtype=np.float32)), 2)
    np.testing.assert_array_equal(found, [largest, -largest])
    with np.errstate(over="ignore"):
        above = np.nextafter(largest, np.float32(np.inf), dtype=np.float32)
    with pytest.raises(ValueError, match="above"):
        codec.encode(np.array([above], dtype=np.float32))


@each
def test_decoding_takes_a_view_and_gives_a_copy(name: str) -> None:
    codec = codec_named(name)
    buffer = bytearray(codec.encode(np.array([1.0, 2.0], dtype=np.float32)))
    values = codec.decode(memoryview(buffer), 2)
    buffer[:] = bytes(len(buffer))
    np.testing.assert_array_equal(values, [1.0, 2.0])
    values[0] = 5.0


def test_no_other_codec() -> None:
    with pytest.raises(KeyError):
        codec_named("pickle")
