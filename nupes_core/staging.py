"""Folders that appear whole or not at all, and folders that nobody keeps."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nupes_core.errors import DiskFullError, InvalidConfigError


@contextmanager
def staged(dst: Path, size: int) -> Iterator[Path]:
    """Yield a folder beside `dst` that takes its place when all went well, and is removed when not.

    Args:
        dst: new or empty folder.
        size: bytes that it will hold.

    Raises:
        InvalidConfigError: `dst` is in use.
        DiskFullError: so many bytes are not free there.
    """
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise InvalidConfigError(f"{dst} exists and is not empty", hint="Give a new folder for the result.")
    dst.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(dst.parent).free
    if free < size:
        raise DiskFullError(f"the result takes {size} bytes; {free} are free at {dst.parent}", hint="Free some space.")
    staging = Path(tempfile.mkdtemp(prefix=f".{dst.name}.", suffix=".partial", dir=dst.parent))
    try:
        yield staging
        staging.chmod(0o755)
        staging.replace(dst)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def scratch(dst: Path) -> Iterator[Path]:
    """Yield a folder beside `dst` for finished blocks, which nobody wants to keep."""
    with tempfile.TemporaryDirectory(prefix=f".{dst.name}.", suffix=".blocks", dir=dst.parent) as path:
        yield Path(path)
