"""Rows of a Parquet file from an untrusted source, in bounded memory. Needs pyarrow, which is imported here only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nupes_core.data.textfiles import Record, bad
from nupes_core.errors import CalibrationError

MAGIC = b"PAR1"
CHAT_COLUMN = "messages"

MOST_GROUP_BYTES = 1 << 31
"""Of a row group, decompressed."""

ROWS_AT_ONCE = 1
"""A dictionary can make each row of a small file large; one at a time costs 18 µs a row."""


def parquet_rows(path: Path, column: str) -> Iterator[Record]:
    """Yield the rows as {column: value}; only this column (`messages` where it is missing) is read.

    Raises:
        CalibrationError: no pyarrow, broken, column missing, or a row group of more than `MOST_GROUP_BYTES`.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise bad(path, "a Parquet file needs the package pyarrow", "pip install pyarrow, or give JSONL.") from error
    try:
        with ParquetFile(path, buffer_size=1 << 20) as file:
            yield from _rows(path, file, column)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        first = next(iter(str(error).splitlines()), "")[:200]
        raise bad(path, f"not a Parquet file that can be read: {first}", "Write it again, or give JSONL.") from error


def _rows(path: Path, file: Any, column: str) -> Iterator[Record]:
    name = _present(path, file.schema_arrow.names, column)
    number = 0
    for group in range(file.num_row_groups):
        _check_size(path, file.metadata.row_group(group))
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[name], use_threads=False):
            for value in batch.column(0):
                number += 1
                yield Record(f"row {number}", {name: value.as_py()})


def _present(path: Path, names: list[str], column: str) -> str:
    for name in (column, CHAT_COLUMN):
        if name in names:
            return name
    raise missing(path, "it", column, names)


def missing(path: Path, where: str, column: str, names: list[str]) -> CalibrationError:
    """Return the error for a column that is not there."""
    shown = ", ".join(repr(str(name)[:100]) for name in names[:20]) or "none"
    return bad(
        path, f"{where} has no column {column!r}; it has {shown}", "Name the one that holds the text as `column`."
    )


def _check_size(path: Path, group: Any) -> None:
    """A few kilobytes can decompress to gigabytes.

    All columns together: asked for a single one, pyarrow ends the process where the file lies about it.
    """
    size = group.total_byte_size
    if not 0 <= size <= MOST_GROUP_BYTES:
        raise bad(path, f"a row group holds {size} bytes; at most {MOST_GROUP_BYTES} are read", "Write smaller ones.")
