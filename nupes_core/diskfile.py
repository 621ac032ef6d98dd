"""Files that are whole or not there, and a typed error for a full disk. Torch-free."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nupes_core.errors import DiskFullError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_file(path: Path, content: bytes) -> None:
    """Write a small file: under a temporary name, flushed, then renamed.

    Raises:
        DiskFullError: no room left; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def place_file(source: Path, target: Path) -> None:
    """Give a finished file a second name, or copy it where links can not be made; neither is written to afterwards.

    Raises:
        DiskFullError: no room left.
    """
    try:
        os.link(source, target)
    except OSError:
        with disk_errors(target):
            shutil.copyfile(source, target)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's ways to say "no room" into `DiskFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM or isinstance(error, DiskFullError):
            raise
        raise DiskFullError(
            f"no room to write {path.name}: {os.strerror(error.errno)}",
            hint="Free some space, or give a folder on another disk.",
        ) from error
