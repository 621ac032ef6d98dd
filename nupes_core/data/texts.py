"""Texts of a file of any kind that people have: plain, JSONL, JSON array, CSV, Parquet. Torch-free.

The service keeps uploads without their names, so the content says what a file is where no suffix does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nupes_core.data.parquetfile import CHAT_COLUMN, MAGIC, missing, parquet_rows
from nupes_core.data.textfiles import (
    Record,
    bad,
    csv_delimiter,
    csv_rows,
    json_array,
    json_lines,
    plain_text,
    read_head,
)
from nupes_core.errors import CalibrationError

Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str]
"""Makes one text of a conversation: messages with `role` and `content`."""

_SUFFIXES = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".safetensors": "tensors",
}
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_TENSOR_HEAD = re.compile(rb"....\0\0\0\0\{", re.DOTALL)
_OBJECT_HEAD = re.compile(rb'\s*\{\s*["}]')
_ARRAY_HEAD = re.compile(rb'\s*\[\s*[\["{\]]')


@dataclass(frozen=True)
class Texts:
    """Texts, and what stands between them where they are read as one: nothing between the lines of a plain text."""

    texts: tuple[str, ...]
    separator: str

    def joined(self, characters: int) -> Iterator[str]:
        """Yield them as one text, in pieces of whole texts that hold this many characters or a text more."""
        piece, held = [], 0
        for text in self.texts:
            piece.append(text)
            held += len(text)
            if held >= characters:
                yield self.separator.join([*piece, ""])
                piece, held = [], 0
        if piece:
            yield self.separator.join(piece)


RECORD_SEPARATOR = "\n\n"


def kind_of(path: Path, column: str) -> str:
    """Return `text`, `json_lines`, `json_array`, `csv`, `parquet` or `tensors`: by suffix, else by content.

    Raises:
        CalibrationError: the file cannot be read, is empty or is packed.
    """
    head = read_head(path)
    if not head.strip():
        raise bad(path, f"the calibration file is empty ({path.stat().st_size} bytes)", "Give one that holds data.")
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise bad(path, f"it is packed ({name})", "Unpack it first.")
    return _SUFFIXES.get(path.suffix.lower()) or _kind_of_content(head, column)


def _kind_of_content(head: bytes, column: str) -> str:
    if head.startswith(MAGIC):
        return "parquet"
    if _TENSOR_HEAD.match(head):
        return "tensors"
    if _OBJECT_HEAD.match(head):
        return "json_lines"
    first, second = _first_values(head)
    if isinstance(first, str | list) and isinstance(second, type(first)):
        return "json_lines"
    if _ARRAY_HEAD.match(head):
        return "json_array"
    return "text" if csv_delimiter(head, column) is None else "csv"


def _first_values(head: bytes) -> tuple[Any, Any]:
    """Return the JSON values of the first two lines that are not blank; None for what is none."""
    lines = [line for line in head.splitlines() if line.strip()][:2]
    values = [_value(line) for line in lines] + [None, None]
    return values[0], values[1]


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def read_texts(path: Path, column: str, *, characters: int, per_text: int | None = None, render: Render) -> Texts:
    """Read texts from the start of a file until there are enough characters.

    Args:
        path: the file.
        column: the field that holds the text; `messages` (a conversation) is taken where it is missing.
        characters: stop after these, within a text too.
        per_text: keep no more characters of each text.
        render: makes a text of a conversation.

    Raises:
        CalibrationError: anything about the file is wrong; it quotes what and where.
    """
    kind = kind_of(path, column)
    if kind == "tensors":
        raise bad(path, "it holds tensors, not texts")
    texts, read = [], 0
    for record in _READERS[kind](path, column):
        text = well_formed(_text(path, record, column, render)[: min(per_text or characters, characters - read)])
        if text.strip() or kind == "text":
            texts.append(text)
            read += len(text)
        if read >= characters:
            break
    if not any(text.strip() for text in texts):
        raise bad(path, "the calibration file holds no text", "Give one of some thousand words.")
    return Texts(tuple(texts), "" if kind == "text" else RECORD_SEPARATOR)


def _read_csv(path: Path, column: str) -> Iterator[Record]:
    return csv_rows(path, csv_delimiter(read_head(path), column) or ",")


_READERS: Mapping[str, Callable[[Path, str], Iterator[Record]]] = {
    "text": lambda path, _: plain_text(path),
    "json_lines": lambda path, _: json_lines(path),
    "json_array": lambda path, _: json_array(path),
    "csv": _read_csv,
    "parquet": parquet_rows,
}


def _text(path: Path, record: Record, column: str, render: Render) -> str:
    value = record.value
    if isinstance(value, dict):
        name = column if column in value else CHAT_COLUMN
        if name not in value:
            raise missing(path, record.where, column, list(value))
        value = value[name]
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        return render([_message(path, record, message) for message in value])
    problem = f"{record.where} holds {_NAMES.get(type(value), 'something else')}, not text"
    raise bad(path, problem, "Name the field that holds the text as `column`.")


_NAMES: Mapping[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    bytes: "bytes",
}


def _message(path: Path, record: Record, message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):  # parts of a message, of which the texts count
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(role, str) or not isinstance(content, str | None):
        problem = f"{record.where} has a message with {sorted(map(str, message))[:5]}, not `role` and `content`"
        raise bad(path, problem, "A conversation is a list of {role, content}.")
    return {"role": role, "content": content or ""}


def well_formed(text: str) -> str:
    """Return a text with the halves of surrogate pairs, which JSON can hold and tokenizers refuse, replaced by `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def given_texts(texts: Sequence[str], *, characters: int, per_text: int | None = None) -> Texts:
    """Return texts from memory in the bounds of `read_texts`.

    Raises:
        CalibrationError: not strings, or nothing in them.
    """
    kept, read = [], 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise CalibrationError(f"calibration text {index} is {type(text).__name__}, not str")
        if text.strip() and read < characters:
            kept.append(well_formed(text[: min(per_text or characters, characters - read)]))
            read += len(kept[-1])
    if not kept:
        raise CalibrationError(f"{len(texts)} calibration texts hold no text", hint="Give some thousand words.")
    return Texts(tuple(kept), RECORD_SEPARATOR)
