"""The header of a safetensors file: a strict check of untrusted bytes, and the header of a file about to be written.

Needs neither torch nor numpy. A file: 8 bytes little-endian length, that many bytes of JSON, tensors without gaps.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from nupes_core.errors import UnsafeFileError

DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Allowed safetensors dtypes and their sizes in bytes."""

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 32_000_000
"""About 300 000 tensors in one file. The reference reader takes 100 MB, which costs Python seconds and gigabytes."""

MAX_CONTAINERS = 1_000_000
"""Lists and objects in a JSON file from a stranger: each costs Python twenty times its two characters."""

MAX_NAME_LENGTH = 1024
MAX_DIMENSIONS = 16
_ALIGNMENT = 8
_TENSOR_KEYS = {"dtype", "shape", "data_offsets"}
_HINT = "The file is broken, cut short or was made to mislead a reader. Upload it again from its source."


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: `begin` and `end` count bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin

    @property
    def params(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        tensors: by position in the file; contiguous, from the end of the header to the end of the file.
        header_bytes: length prefix and JSON, i.e. where the data begins.
        metadata: the file's own string pairs.
    """

    tensors: tuple[TensorInfo, ...]
    header_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def data_bytes(self) -> int:
        """Bytes behind the header."""
        return self.tensors[-1].end if self.tensors else 0

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.header_bytes + self.data_bytes


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a file is going to hold."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def read_header(path: Path) -> Header:
    """Read and check the header of a file.

    Raises:
        UnsafeFileError: anything about the header, or its fit to the file, is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(PREFIX_BYTES)
        length = header_length(prefix, size, source=path.name)
        return parse_header(prefix + file.read(length), size, source=path.name)


def header_length(prefix: bytes, file_size: int | None = None, *, source: str = "file") -> int:
    """Return the bytes of JSON that the 8-byte prefix announces.

    Raises:
        UnsafeFileError: the prefix is cut short, or announces more than the file or `MAX_HEADER_BYTES` holds.
    """
    if len(prefix) < PREFIX_BYTES:
        raise _unsafe(source, f"is {len(prefix)} bytes long; a safetensors file starts with an 8-byte length")
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise _unsafe(source, f"announces a header of {length} bytes; allowed are 2 to {MAX_HEADER_BYTES}")
    if file_size is not None and PREFIX_BYTES + length > file_size:
        raise _unsafe(source, f"announces a header of {length} bytes, but the file has only {file_size}")
    return length


def parse_header(head: bytes, file_size: int | None = None, *, source: str = "file") -> Header:
    """Check the first bytes of a file (length prefix and JSON, more is ignored) and return its tensors.

    Args:
        head: at least the length prefix and the whole JSON.
        file_size: bytes of the whole file; None when only the header is at hand (the end is then not checked).
        source: name of the file for error messages.

    Raises:
        UnsafeFileError: the only error this raises, whatever the bytes; it quotes what was wrong.
    """
    length = header_length(head, file_size, source=source)
    text = head[PREFIX_BYTES : PREFIX_BYTES + length]
    if len(text) < length:
        raise _unsafe(source, f"has {len(text)} of the {length} header bytes that it announces")
    entries = _parse_json(text, source)
    metadata = _check_metadata(entries.pop("__metadata__", {}), source)
    tensors = [_check_tensor(name, entry, source) for name, entry in entries.items()]
    tensors.sort(key=lambda t: (t.begin, t.end))
    _check_contiguous(tensors, source)
    header = Header(tuple(tensors), PREFIX_BYTES + length, metadata)
    if file_size is not None and header.file_bytes != file_size:
        raise _unsafe(source, f"holds tensors up to byte {header.file_bytes}, but the file has {file_size} bytes")
    return header


def build_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, Header]:
    """Return the bytes of a header and its parsed form, for a file that will hold `specs`.

    Tensors are laid out by falling element size (which keeps each aligned) and in the given order within one size;
    the JSON is padded with spaces to 8 bytes. The same input gives the same bytes.

    Raises:
        UnsafeFileError: two tensors have the same name.
    """
    ordered = sorted(specs, key=lambda spec: -DTYPE_BYTES[spec.dtype])
    tensors: list[TensorInfo] = []
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for spec in ordered:
        if spec.name in entries:
            raise _unsafe("output", f"would hold two tensors named {_quote(spec.name)}")
        end = offset + spec.nbytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        tensors.append(TensorInfo(spec.name, spec.dtype, spec.shape, offset, end))
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = Header(tuple(tensors), PREFIX_BYTES + len(text), metadata)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text, header


def check_containers(text: bytes, source: str) -> None:
    """Refuse JSON that would take gigabytes once it is read; brackets in strings count too.

    Raises:
        UnsafeFileError: more than `MAX_CONTAINERS`.
    """
    found = text.count(b"[") + text.count(b"{")
    if found > MAX_CONTAINERS:
        raise _unsafe(source, f"holds {found} lists and objects; at most {MAX_CONTAINERS} are read")


def _unsafe(source: str, problem: str) -> UnsafeFileError:
    return UnsafeFileError(f"{source} {problem}", hint=_HINT)


def _quote(value: object) -> str:
    return reprlib.repr(value)


def _parse_json(text: bytes, source: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise _unsafe(source, f"has the key {_quote(twice)} twice in its header")
        return entries

    if not text.startswith(b"{"):
        raise _unsafe(source, f"has a header that starts with {_quote(text[:16])}, not with a JSON object")
    check_containers(text, source)
    try:
        entries = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _unsafe(source, f"has a header that is not JSON: {_quote(str(error))}") from error
    return dict(entries)


def _check_metadata(metadata: object, source: str) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise _unsafe(source, f"has __metadata__ {_quote(metadata)}, not an object")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise _unsafe(source, f"has __metadata__ {_quote(key)} = {_quote(value)}, not a string")
    return metadata


def _check_tensor(name: str, entry: object, source: str) -> TensorInfo:
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise _unsafe(
            source, f"has a tensor named {_quote(name)}; names are 1 to {MAX_NAME_LENGTH} printable characters"
        )
    if not isinstance(entry, dict) or set(entry) != _TENSOR_KEYS:
        raise _unsafe(source, f"describes {_quote(name)} by {_quote(entry)}; expected exactly {sorted(_TENSOR_KEYS)}")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _unsafe(source, f"has {_quote(name)} of dtype {_quote(dtype)}; allowed: {', '.join(DTYPE_BYTES)}")
    shape = _check_naturals(entry["shape"], MAX_DIMENSIONS, f"shape of {_quote(name)}", source)
    offsets = _check_naturals(entry["data_offsets"], 2, f"data_offsets of {_quote(name)}", source)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _unsafe(source, f"has data_offsets of {_quote(name)} {_quote(offsets)}, not a rising pair")
    nbytes = prod(shape) * DTYPE_BYTES[dtype]
    if nbytes != offsets[1] - offsets[0]:
        problem = (
            f"gives {_quote(name)} {offsets[1] - offsets[0]} bytes; shape {_quote(shape)} of {dtype} takes {nbytes}"
        )
        raise _unsafe(source, problem)
    return TensorInfo(name, dtype, shape, offsets[0], offsets[1])


def _check_naturals(values: object, most: int, what: str, source: str) -> tuple[int, ...]:
    """Return a JSON list as a tuple of at most `most` integers that fit 63 bits."""
    if not isinstance(values, list) or len(values) > most:
        raise _unsafe(source, f"has {what} {_quote(values)}, not a list of at most {most} integers")
    for value in values:
        if type(value) is not int or not 0 <= value < 2**63:
            raise _unsafe(source, f"has {what} {_quote(values)}; {_quote(value)} is no natural number of 63 bits")
    return tuple(values)


def _check_contiguous(tensors: list[TensorInfo], source: str) -> None:
    if tensors and tensors[0].begin != 0:
        raise _unsafe(
            source, f"has a gap of {tensors[0].begin} bytes before its first tensor {_quote(tensors[0].name)}"
        )
    for before, after in pairwise(tensors):
        if after.begin != before.end:
            kind = "overlap" if after.begin < before.end else "leave a gap"
            raise _unsafe(
                source,
                f"has tensors that {kind}: {_quote(before.name)} ends at {before.end}, "
                f"{_quote(after.name)} begins at {after.begin}",
            )
