"""Whether the files of a model are whole, as far as a look at their first bytes and their sizes tells.

The service looks closer, but only once everything is there: half a download is better found before hours of sending.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from nupes_client.errors import LocalFileError

INDEX_NAME = "model.safetensors.index.json"
PREFIX_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
"""Of the reference reader; nothing larger is a header."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_FETCH_AGAIN = "Download the model again, all of it."


def check_whole(folder: Path, files: Sequence[Path]) -> None:
    """Refuse a model that can not be one. Where an index says which weight files there are, only those are looked at.

    Raises:
        LocalFileError: a file is a pointer of Git LFS, a weight file is cut short, too long, or without a header, or
            one that the index names is missing.
    """
    for file in files:
        _refuse_pointer(file)
    indexed = _indexed(folder / INDEX_NAME)
    missing = sorted(indexed - {file.name for file in files})
    if missing:
        raise LocalFileError(
            f"{folder} lacks {_first(missing)} of the weight files that {INDEX_NAME} names", hint=_FETCH_AGAIN
        )
    for file in files:
        if file.suffix == ".safetensors" and (not indexed or file.name in indexed):
            _check_weights(file)


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as content:
        if content.read(len(_POINTER)) == _POINTER:
            raise LocalFileError(
                f"{file} is a pointer of Git LFS, not the file it stands for", hint=f"In {file.parent}: git lfs pull"
            )


def _indexed(path: Path) -> set[str]:
    """Return the weight files that an index names; none where it makes no sense, of which the service has words."""
    try:
        names = json.loads(path.read_bytes())["weight_map"].values()
        return {name for name in names if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def _check_weights(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(PREFIX_BYTES), "little")
        if size <= PREFIX_BYTES or not 2 <= length <= MOST_HEADER_BYTES:
            raise LocalFileError(f"{file} does not begin as a safetensors file does", hint=_FETCH_AGAIN)
        if PREFIX_BYTES + length > size:
            raise _cut_short(file, size, PREFIX_BYTES + length)
        header = content.read(length)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        whole = PREFIX_BYTES + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise LocalFileError(f"{file} has no header as safetensors files have: {error}", hint=_FETCH_AGAIN) from error
    if size < whole:
        raise _cut_short(file, size, whole)
    if size > whole:
        raise LocalFileError(f"{file} has {size} bytes, {size - whole} more than its tensors", hint=_FETCH_AGAIN)


def _cut_short(file: Path, size: int, whole: int) -> LocalFileError:
    return LocalFileError(
        f"{file} is cut short: it has {size} bytes, and says that there are {whole}", hint=_FETCH_AGAIN
    )


def _first(names: Iterable[str], most: int = 3) -> str:
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
