"""A disk that can be filled to the last byte: a small tmpfs, where this user may mount one."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BALLAST = "ballast"


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount a small disk on `folder`; yields False, and leaves the folder as it is, where this is not permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "nupes-chaos", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Leave no byte free meanwhile."""
    ballast = folder / BALLAST
    try:
        with ballast.open("wb", buffering=0) as file:
            for chunk in (1 << 20, 1 << 12, 1):
                _write_until_full(file.fileno(), chunk)
        yield
    finally:
        ballast.unlink(missing_ok=True)


def _write_until_full(descriptor: int, chunk: int) -> None:
    try:
        while True:
            os.write(descriptor, b"\0" * chunk)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
