"""Whether the files of a model are whole: seen here at once, by the service only when all of them were sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nupes_client.errors import LocalFileError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX_BYTES = 64_000_000
MAX_HEADER_BYTES = 32_000_000
"""What the service reads of an index and of a header; it refuses longer ones."""

_PREFIX_BYTES = 8
_POINTER = b"version https://git-lfs.github.com/spec/"
_SHOWN = 3
_AGAIN = "Download or save it again from its source."


def check_whole(folder: Path, files: list[Path]) -> None:
    """Check the files of a model that are to be sent. Reads index and headers, no weights.

    Safetensors files that an index does not name are left alone: the service does not read their tensors either.

    Raises:
        LocalFileError: pointers of git-lfs in place of files, a file of the index that is missing, or weights that
            are cut short, too long or no safetensors.
    """
    pointers = [path.name for path in files if _read(path, len(_POINTER)) == _POINTER]
    if pointers:
        raise LocalFileError(
            f"{folder} has pointers of git-lfs in place of files: {_some(pointers)}",
            hint="Run `git lfs pull` in the folder.",
        )
    weights = _weights(folder, {path.name for path in files})
    missing = [path.name for path in weights if path not in files]
    if missing:
        raise LocalFileError(
            f"{folder} lacks files that {INDEX_NAME} names: {_some(missing)}",
            hint="Add them, or give the folder that `save_pretrained` wrote.",
        )
    for path in weights:
        _check_weights(path)


def _weights(folder: Path, names: set[str]) -> list[Path]:
    """The files that the service will take the weights from, as far as can be told."""
    if INDEX_NAME in names and (indexed := _indexed(folder / INDEX_NAME)):
        return [folder / name for name in sorted(indexed)]
    if SINGLE_NAME in names:
        return [folder / SINGLE_NAME]
    return [folder / name for name in sorted(names) if name.endswith(".safetensors")]


def _indexed(path: Path) -> set[str]:
    """The files that an index names; none when there is no sense in it, which the service has its own words for."""
    index = _json(_read(path, MAX_INDEX_BYTES))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    return set(names) if all(_is_weight_file(name) for name in names) else set()


def _is_weight_file(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _check_weights(path: Path) -> None:
    size = path.stat().st_size
    length = _header_length(path, size)
    tensors_end = _tensors_end(_json(_read(path, length, start=_PREFIX_BYTES)))
    if tensors_end is None:
        raise _headless(path)
    end = _PREFIX_BYTES + length + tensors_end
    if size != end:
        fault = "cut short" if size < end else "too long"
        raise LocalFileError(f"{path} is {fault}: it has {size} bytes, and its header says {end}", hint=_AGAIN)


def _header_length(path: Path, size: int) -> int:
    length = int.from_bytes(_read(path, _PREFIX_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise _headless(path)
    if size < _PREFIX_BYTES + length:
        raise LocalFileError(f"{path} is cut short: it ends at byte {size}, before its header does", hint=_AGAIN)
    return length


def _tensors_end(header: Any) -> int | None:
    """Where the last tensor ends, in bytes from the end of the header; None when this is no header."""
    try:
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return max(map(int, ends), default=0)
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return None


def _headless(path: Path) -> LocalFileError:
    return LocalFileError(f"{path} is no safetensors file: it does not begin with a header", hint=_AGAIN)


def _json(text: bytes) -> Any:
    """What JSON says, None when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read(path: Path, length: int, *, start: int = 0) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
    except OSError as error:
        raise LocalFileError(f"{path} can not be read: {error.strerror}") from error


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
