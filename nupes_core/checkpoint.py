"""Streaming access to the tensors of safetensors files: bounded memory, exact layout, nothing left half-written."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch

from nupes_core.diskfile import disk_errors
from nupes_core.errors import NupesError, UnsafeFileError
from nupes_core.header import Header, TensorInfo, read_header

CHUNK_BYTES = 16 << 20
"""Bytes moved at once where a tensor is copied."""

_NO_PREALLOCATION = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})

TORCH_DTYPES: dict[str, torch.dtype] = {
    "U8": torch.uint8,
    "I16": torch.int16,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
"""Dtypes that are read as tensors: of weights, and of their stored parts. All others are copied as bytes."""

SAFETENSORS_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class ShardReader:
    """Reads tensors of one file, each straight from its place, so that no more than one tensor is in memory."""

    def __init__(self, path: Path, header: Header | None = None) -> None:
        """Open a file; `header` saves checking it again.

        Raises:
            UnsafeFileError: broken header.
        """
        self.path = path
        self.header = header or read_header(path)
        self._tensors = {info.name: info for info in self.header.tensors}
        self._file = path.open("rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def info(self, name: str) -> TensorInfo:
        """Return position, shape and dtype of a tensor."""
        return self._tensors[name]

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        """Return bytes `start` to `stop` of a tensor.

        Raises:
            UnsafeFileError: the file became shorter than its header says.
        """
        info = self._tensors[name]
        stop = info.nbytes if stop is None else stop
        content = bytearray(stop - start)
        self._file.seek(self.header.header_bytes + info.begin + start)
        view, filled = memoryview(content), 0
        while filled < len(content):
            count = self._file.readinto(view[filled:])
            if not count:
                raise UnsafeFileError(
                    f"{self.path.name} ended inside {name!r}", hint="The file changed while it was read."
                )
            filled += count
        return content

    def chunks(self, name: str, size: int = CHUNK_BYTES) -> Iterator[tuple[int, bytearray]]:
        """Yield (offset, bytes) over a tensor."""
        total = self._tensors[name].nbytes
        for start in range(0, total, size):
            yield start, self.read_bytes(name, start, min(start + size, total))

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return entries `start` to `stop` of the first dimension of a tensor of `TORCH_DTYPES`."""
        info = self._tensors[name]
        row = info.nbytes // info.shape[0]
        content = self.read_bytes(name, start * row, stop * row)
        return as_tensor(content, info.dtype).view(stop - start, *info.shape[1:])

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor of `TORCH_DTYPES`."""
        info = self._tensors[name]
        return as_tensor(self.read_bytes(name), info.dtype).view(info.shape)


class ShardWriter:
    """Writes one file whose layout is known in advance: header first, then tensors or parts of them in any order.

    A context manager. The file appears under its name only when the block ends without an error and every byte was
    written; otherwise nothing is left.
    """

    def __init__(self, path: Path, head: bytes, header: Header) -> None:
        """Prepare a file; `head` and `header` come from `build_header`."""
        self.path = path
        self._head = head
        self._header = header
        self._tensors = {info.name: info for info in header.tensors}
        self._missing = {info.name: info.nbytes for info in header.tensors}
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        with disk_errors(self.path):
            self._file = self._temporary.open("wb", buffering=0)
            try:
                _reserve(self._file, self._header.file_bytes)
                _write_all(self._file, self._head)
            except BaseException:
                self._discard()
                raise
        return self

    def write(self, name: str, content: bytes | bytearray | memoryview | torch.Tensor, offset: int = 0) -> None:
        """Write a tensor, or the part of it that begins `offset` bytes into it. Each byte must be written once.

        Raises:
            DiskFullError: no room left.
        """
        data = tensor_bytes(content) if isinstance(content, torch.Tensor) else memoryview(content)
        info = self._tensors[name]
        if offset + len(data) > info.nbytes or len(data) > self._missing[name]:
            raise NupesError(
                f"{len(data)} bytes at {offset} do not fit {name!r} of {info.nbytes} bytes in {self.path.name}"
            )
        assert self._file is not None, "the writer is a context manager"
        with disk_errors(self.path):
            self._file.seek(self._header.header_bytes + info.begin + offset)
            _write_all(self._file, data)
        self._missing[name] -= len(data)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._commit()
        except BaseException:
            self._discard()
            raise

    def _commit(self) -> None:
        incomplete = [name for name, missing in self._missing.items() if missing]
        if incomplete:
            raise NupesError(f"{self.path.name} was closed before {incomplete[0]!r} was written")
        assert self._file is not None, "the writer is a context manager"
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self.path)

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def as_tensor(content: bytearray, dtype: str) -> torch.Tensor:
    """Return the bytes as a flat tensor of a safetensors dtype, without a copy."""
    return (
        torch.frombuffer(content, dtype=TORCH_DTYPES[dtype]) if content else torch.empty(0, dtype=TORCH_DTYPES[dtype])
    )


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the little-endian bytes of a tensor in row-major order; no copy where it is contiguous already."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def _reserve(file: IO[bytes], size: int) -> None:
    """Claim the whole size at once, so that a full disk shows before the work instead of after it."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _NO_PREALLOCATION:
            raise
        file.truncate(size)


def _write_all(file: IO[bytes], content: bytes | memoryview) -> None:
    view = memoryview(content).cast("B")
    while view:
        view = view[file.write(view) :]
