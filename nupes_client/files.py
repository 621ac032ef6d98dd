"""Files on this machine: their checksums, their bytes in pieces, and which of a folder make up a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nupes_client.errors import FileChangedError, LocalFileError, missing_file
from nupes_client.wholeness import check_whole

CHUNK_BYTES = 1 << 20
Advance = Callable[[int], None]
"""Told how many more bytes were read or written."""

MODEL_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".md", ".tiktoken"})
MODEL_NAMES = frozenset({"LICENSE", "NOTICE"})
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class ModelFolder:
    """The files of a folder that are sent, and those that are left behind."""

    files: list[Path]
    left_out: list[Path]

    @property
    def size(self) -> int:
        """Bytes to send."""
        return sum(file.stat().st_size for file in self.files)


def model_folder(folder: Path) -> ModelFolder:
    """Choose the files of a model in `folder`: weights as safetensors, configuration, tokenizer, license.

    Subfolders are left out: hubs keep other formats of the same weights there.

    Raises:
        LocalFileError: not a folder, no `config.json`, no safetensors file, or files that are not whole.
    """
    if not folder.is_dir():
        raise (
            missing_file(folder)
            if not folder.exists()
            else LocalFileError(f"{folder} is not a folder", hint="Give the folder that `save_pretrained` wrote.")
        )
    entries = sorted(path for path in folder.iterdir() if path.is_file())
    files = [path for path in entries if _belongs_to_model(path)]
    if not any(path.suffix == ".safetensors" for path in files):
        raise _without_weights(folder, entries)
    if not any(path.name == "config.json" for path in files):
        raise LocalFileError(f"{folder} has no config.json", hint="Give the folder that `save_pretrained` wrote.")
    check_whole(folder, files)
    return ModelFolder(files, [path for path in entries if path not in files])


def sha256_of(path: Path, advance: Advance | None = None) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    for chunk in chunks(path, advance):
        digest.update(chunk)
    return digest.hexdigest()


def chunks(path: Path, advance: Advance | None = None, *, start: int = 0) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` on in pieces of 1 MiB.

    Raises:
        LocalFileError: it can not be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
                if advance is not None:
                    advance(len(chunk))
    except OSError as error:
        raise LocalFileError(f"{path} can not be read: {error.strerror}") from error


def part(path: Path, start: int, length: int, size: int) -> Iterator[bytes]:
    """Yield `length` bytes from `start` on of a file that is to have `size` bytes.

    Raises:
        FileChangedError: it has not, or no longer.
        LocalFileError: it can not be read.
    """
    if path.stat().st_size > size:
        raise FileChangedError(f"{path} grew while it was sent")
    left = length
    for chunk in chunks(path, start=start):
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return
    if left > 0:
        raise FileChangedError(f"{path} shrank while it was sent: {start + length - left} of {size} bytes")


def _belongs_to_model(path: Path) -> bool:
    named = path.suffix in MODEL_SUFFIXES or path.name in MODEL_NAMES
    return named and _NAME.fullmatch(path.name) is not None


def _without_weights(folder: Path, entries: list[Path]) -> LocalFileError:
    pickles = [path.name for path in entries if path.suffix in PICKLE_SUFFIXES]
    if pickles:
        return LocalFileError(
            f"{folder} has its weights as pickle files only ({', '.join(pickles[:3])}); loading those runs code",
            hint="Save the model again with `save_pretrained(..., safe_serialization=True)` and give that folder.",
        )
    return LocalFileError(f"{folder} has no .safetensors file", hint="Give the folder that `save_pretrained` wrote.")
