"""Records of text files from an untrusted source, one after the other, in bounded memory. Torch-free.

However long a file is, no more than one line (`MOST_BYTES`) or one JSON item is in memory. A reader stops where its
caller stops.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nupes_core.errors import CalibrationError

MOST_BYTES = 1 << 24
"""Of a line of JSONL or CSV, and of an item of a JSON array."""

HEAD_BYTES = 1 << 16
DELIMITERS = ",;\t"
_PIECE_BYTES = 1 << 16
_BOM = codecs.BOM_UTF8
_COLUMN_NAME = re.compile(r"[\w.\-]{1,64}")
_UTF8_HINT = "Save it as UTF-8."


@dataclass(frozen=True)
class Record:
    """One text, or what holds it, and where it was found, e.g. `line 3`."""

    where: str
    value: Any


def bad(path: Path, problem: str, hint: str | None = None) -> CalibrationError:
    """Return the error that says what is wrong with a file."""
    return CalibrationError(f"{path.name}: {problem}", hint=hint)


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file, without the mark of UTF-8.

    Raises:
        CalibrationError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES).removeprefix(_BOM)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise CalibrationError(
            f"the calibration file {reprlib.repr(str(path))} cannot be read: {said}",
            hint="Give the path of a file; texts themselves go into a list.",
        ) from error


def plain_text(path: Path) -> Iterator[Record]:
    """Yield the lines with their ends; a line of more than 64 KiB comes in pieces."""
    for number, line in enumerate(_decoded(path, _PIECE_BYTES), 1):
        if "\0" in line:
            raise bad(path, f"line {number} holds a zero byte: it is no text", _UTF8_HINT)
        yield Record(f"line {number}", line)


def json_lines(path: Path) -> Iterator[Record]:
    """Yield the value of each line that is not blank."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield Record(f"line {number}", _parse(path, line.rstrip("\r\n"), number))


def json_array(path: Path) -> Iterator[Record]:
    """Yield the items of an array, without holding the array."""
    reader = _ArrayReader(path)
    reader.expect("[")
    number = 0
    while reader.next_sign() != "]":
        if number:
            reader.expect(",")
        number += 1
        yield Record(f"item {number}", reader.item(number))


def csv_rows(path: Path, delimiter: str = ",") -> Iterator[Record]:
    """Yield each row as column -> field; the first row names the columns."""
    rows = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        for row in rows:
            if row and len(row) != len(header):
                raise bad(path, f"line {rows.line_num} has {len(row)} fields; the header names {len(header)}")
            if row:
                yield Record(f"line {rows.line_num}", dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise bad(path, f"line {rows.line_num} is not CSV: {error}", "Convert the file to JSONL.") from error


def csv_delimiter(head: bytes, column: str) -> str | None:
    """Return the delimiter where a file begins like a CSV with a header, else None.

    That is where the first line names `column`, or holds nothing but names and rows of as many fields follow.
    """
    lines = head.decode("utf-8", "replace").splitlines(keepends=True)
    found = {delimiter: _rows(lines, delimiter) for delimiter in DELIMITERS}
    for delimiter, rows in found.items():
        if rows and column in rows[0]:
            return delimiter
    return next((delimiter for delimiter, rows in found.items() if _is_table(rows)), None)


def _rows(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    try:
        return list(islice(csv.reader(lines, delimiter=delimiter), 5))
    except csv.Error:
        return []


def _is_table(rows: Sequence[Sequence[str]]) -> bool:
    header, following = rows[0] if rows else [], [row for row in rows[1:4] if row]
    names = len(header) > 1 and all(_COLUMN_NAME.fullmatch(field) for field in header)
    return names and bool(following) and all(len(row) == len(header) for row in following)


def _lines(path: Path) -> Iterator[str]:
    """Yield whole lines.

    Raises:
        CalibrationError: a line longer than `MOST_BYTES`, or bytes that are not UTF-8.
    """
    for number, line in enumerate(_decoded(path, MOST_BYTES), 1):
        if len(line) >= MOST_BYTES // 4 and not line.endswith("\n") and len(line.encode()) >= MOST_BYTES:
            raise bad(path, f"line {number} has {MOST_BYTES} bytes or more", "Cut the texts into shorter ones.")
        yield line


def _decoded(path: Path, most: int) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends, longer ones in pieces of `most` bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        while piece := file.readline(most):
            yield _decode(path, decoder, piece, file.tell())
        _decode(path, decoder, b"", file.tell(), final=True)


def _decode(path: Path, decoder: codecs.IncrementalDecoder, piece: bytes, end: int, *, final: bool = False) -> str:
    try:
        return decoder.decode(piece, final)
    except UnicodeDecodeError as error:
        at = end - len(error.object) + error.start
        wrong = error.object[error.start]
        raise bad(path, f"not UTF-8: {error.reason} 0x{wrong:02x} at byte {at}", _UTF8_HINT) from error


def _parse(path: Path, line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        problem = f"line {number} is not JSON: {error.msg} at column {error.colno}"
        raise bad(path, problem, "Each line of a JSONL file is an object or a string of its own.") from error
    except (ValueError, RecursionError) as error:
        raise bad(path, f"line {number} is not JSON that can be read: {_said(error)}") from error


def _said(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]


class _ArrayReader:
    """Parses a JSON array item by item; reads on where an item is not complete yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces = _decoded(path, _PIECE_BYTES)
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def next_sign(self) -> str:
        """Return the next character that is no white space, and stay in front of it."""
        while not (rest := self._text[self._at : self._at + 1]) or rest in " \t\r\n":
            if rest:
                self._at += 1
            elif not self._read():
                raise bad(self._path, "the JSON array has no end", "The file is cut short: make it again.")
        return rest

    def expect(self, sign: str) -> None:
        """Step over a character.

        Raises:
            CalibrationError: another one is there.
        """
        found = self.next_sign()
        if found != sign:
            raise bad(self._path, f"not a JSON array: {found!r} stands where {sign!r} is expected")
        self._at += 1

    def item(self, number: int) -> Any:
        """Parse the next value, and step over it."""
        self.next_sign()
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._read():
                    raise bad(self._path, f"item {number} is not JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise bad(self._path, f"item {number} is not JSON that can be read: {_said(error)}") from error
            else:
                return value

    def _read(self) -> bool:
        """Read as much again as is not parsed yet (so that trying again costs no more than reading did)."""
        rest = len(self._text) - self._at
        if rest > MOST_BYTES:
            raise bad(
                self._path, f"an item of more than {MOST_BYTES} characters, or broken JSON", "Convert it to JSONL."
            )
        read: list[str] = []
        while sum(map(len, read)) <= rest and (piece := next(self._pieces, None)) is not None:
            read.append(piece)
        self._text, self._at = self._text[self._at :] + "".join(read), 0
        return bool(read)
