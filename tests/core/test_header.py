from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nupes_core.errors import UnsafeFileError
from nupes_core.header import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    Header,
    TensorSpec,
    build_header,
    header_length,
    parse_header,
    read_header,
)


def head(entries: Any) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def tensor(begin: int, end: int, shape: list[Any], dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_reference_library_writes(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(3, 5, dtype=torch.bfloat16), "b": torch.randn(7), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "m.safetensors")
    assert {t.name: (t.dtype, t.shape) for t in header.tensors} == {
        "w": ("BF16", (3, 5)),
        "b": ("F32", (7,)),
        "empty": ("F32", (0, 4)),
    }
    assert header.metadata == {"format": "pt"}
    assert header.file_bytes == (tmp_path / "m.safetensors").stat().st_size


def test_the_reference_library_reads_what_we_lay_out(tmp_path: Path) -> None:
    specs = [TensorSpec("codes", "U8", (3,)), TensorSpec("w", "F32", (2, 1)), TensorSpec("bases", "I16", (2,))]
    text, header = build_header(specs, {"format": "pt"})
    (tmp_path / "m.safetensors").write_bytes(text + bytes(header.data_bytes))
    loaded = load_file(tmp_path / "m.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in loaded.items()} == {
        "codes": ((3,), torch.uint8),
        "w": ((2, 1), torch.float32),
        "bases": ((2,), torch.int16),
    }
    assert parse_header(text, header.file_bytes) == header


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_every_allowed_dtype_takes_the_bytes_it_should(dtype: str) -> None:
    size = 3 * DTYPE_BYTES[dtype]
    assert parse_header(head({"t": tensor(0, size, [3], dtype)})).data_bytes == size


HOSTILE = {
    "empty file": (b"", None, "0 bytes long"),
    "cut inside the prefix": (b"\x10\0\0", None, "3 bytes long"),
    "header beyond the file": (struct.pack("<Q", 1000) + b"{}", 10, "1000"),
    "huge header": (struct.pack("<Q", 2**63) + b"{}", 10, str(2**63)),
    "header over the cap": (struct.pack("<Q", MAX_HEADER_BYTES + 1), 10**12, str(MAX_HEADER_BYTES + 1)),
    "header cut short": (struct.pack("<Q", 50) + b"{}", None, "2 of the 50"),
    "not JSON": (head(b"{nonsense"), None, "not JSON"),
    "not an object": (head([1, 2]), None, "not with a JSON object"),
    "not UTF-8": (head(b'{"\xff": 1}'), None, "not JSON"),
    "nested without end": (head(b'{"a":' + b"[" * 200_000), None, "not JSON"),
    "tensor twice": (head(b'{"a":1,"a":2}'), None, "'a' twice"),
    "metadata not strings": (head({"__metadata__": {"n": 3}}), None, "3"),
    "metadata not an object": (head({"__metadata__": "x"}), None, "'x'"),
    "entry not an object": (head({"a": 7}), None, "7"),
    "missing key": (head({"a": {"dtype": "U8", "shape": []}}), None, "data_offsets"),
    "unknown dtype": (head({"a": tensor(0, 1, [1], "PICKLE")}), None, "'PICKLE'"),
    "dtype not hashable": (head({"a": tensor(0, 1, [1], ["U8"])}), None, "['U8']"),
    "negative dimension": (head({"a": tensor(0, 1, [-1])}), None, "-1"),
    "fractional dimension": (head({"a": tensor(0, 1, [1.0])}), None, "1.0"),
    "boolean dimension": (head({"a": tensor(0, 1, [True])}), None, "True"),
    "product beyond 64 bits": (head({"a": tensor(0, 0, [2**62, 2**62, 4])}), None, "takes"),
    "dimension beyond 63 bits": (head({"a": tensor(0, 0, [2**63])}), None, str(2**63)),
    "endless integer": (head(b'{"a":{"dtype":"U8","shape":[' + b"9" * 100_000 + b"]}}"), None, "not JSON"),
    "too many dimensions": (head({"a": tensor(0, 1, [1] * 1000)}), None, "at most 16"),
    "falling offsets": (head({"a": tensor(5, 2, [0])}), None, "(5, 2)"),
    "shape against bytes": (head({"a": tensor(0, 5, [4])}), None, "5 bytes"),
    "gap at the start": (head({"a": tensor(4, 8, [4])}), None, "gap of 4"),
    "overlap": (head({"a": tensor(0, 8, [8]), "b": tensor(4, 12, [8])}), None, "overlap"),
    "gap": (head({"a": tensor(0, 8, [8]), "b": tensor(9, 10, [1])}), None, "leave a gap"),
    "offsets beyond the file": (head({"a": tensor(0, 8, [8])}), 40, "40"),
    "bytes behind the last tensor": (head({"a": tensor(0, 8, [8])}), 10_000, "10000"),
    "name with a line break": (head({"a\nb": tensor(0, 1, [1])}), None, "'a\\nb'"),
    "lone surrogate": (head(b'{"\\ud800":{}}'), None, "\\ud800"),
    "name without end": (head({"a" * 5000: tensor(0, 1, [1])}), None, "aaa"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_quickly_with_the_value_that_was_wrong(case: str) -> None:
    content, size, quoted = HOSTILE[case]
    started = time.monotonic()
    with pytest.raises(UnsafeFileError) as caught:
        parse_header(content, size, source="x.safetensors")
    assert quoted in caught.value.message
    assert caught.value.message.startswith("x.safetensors")
    assert len(caught.value.message) < 500
    assert time.monotonic() - started < 2


def test_of_a_hundred_thousand_tensors_the_one_named_twice_is_found_in_linear_time() -> None:
    entries = ",".join(f'"t{i}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{i + 1}]}}' for i in range(100_000))
    sound = head(f"{{{entries}}}".encode())
    started = time.monotonic()
    parse_header(sound, len(sound) + 100_000)
    sound_s = time.monotonic() - started
    started = time.monotonic()
    with pytest.raises(UnsafeFileError, match="t99999"):
        parse_header(head(f'{{{entries},"t99999":{{}}}}'.encode()))
    assert time.monotonic() - started < 5 * sound_s


def test_the_length_alone_can_be_checked_before_more_is_fetched() -> None:
    assert header_length(struct.pack("<Q", 120), 10_000) == 120


def test_names_that_collide_in_an_output_are_refused() -> None:
    with pytest.raises(UnsafeFileError, match="two tensors named 'w_codes'"):
        build_header([TensorSpec("w_codes", "U8", (1,)), TensorSpec("w_codes", "U8", (1,))], {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
tensor_like = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BYTES, "X"]) | json_values,
        "shape": st.lists(st.integers(-2, 6) | st.integers(), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-2, 64) | st.integers(), min_size=2, max_size=2) | json_values,
    }
)


def only_refuses(content: bytes, size: int | None) -> None:
    try:
        assert isinstance(parse_header(content, size), Header)
    except UnsafeFileError as error:
        assert error.message  # noqa: PT017


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.none() | st.integers(0, 400))
def test_random_bytes_never_raise_anything_else(content: bytes, size: int | None) -> None:
    only_refuses(content, size)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=12), tensor_like | json_values, max_size=4), st.none() | st.integers(0, 400))
def test_random_json_never_raises_anything_else(entries: dict[str, Any], size: int | None) -> None:
    only_refuses(head(entries), size)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_byte_never_raises_anything_else(position: int, value: int) -> None:
    specs = [TensorSpec("model.layers.0.w", "BF16", (4, 8)), TensorSpec("b", "F32", (4,))]
    text, header = build_header(specs, {"format": "pt"})
    damaged = bytearray(text)
    damaged[position % len(text)] = value
    only_refuses(bytes(damaged), header.file_bytes)
