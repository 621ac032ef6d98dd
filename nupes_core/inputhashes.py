"""Checksums of what went into an artifact, with progress in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nupes_core.manifest import hash_file
from nupes_core.modelfolder import CONFIG_NAME, INDEX_NAME, ModelFolder
from nupes_core.report import Progress, ProgressCallback
from nupes_core.sharded import FinishedShard


class ByteCounter:
    """Reports hashed bytes as progress of a phase."""

    def __init__(self, phase: str, total: int, progress: ProgressCallback | None) -> None:
        self._phase, self._total, self._progress = phase, total, progress
        self._done = 0

    def __call__(self, name: str, count: int) -> None:
        """Count so many more bytes, of the file with that name."""
        self._done += count
        if self._progress:
            total = max(self._total, self._done)
            self._progress(Progress(self._phase, self._done, total, "bytes", name))


def hash_inputs(
    folder: ModelFolder, finished: Mapping[str, FinishedShard], progress: ProgressCallback | None
) -> dict[str, dict[str, Any]]:
    """Return what a manifest says of each file of the source by name; of `finished` files, what was found then."""
    own = [name for name in (CONFIG_NAME, INDEX_NAME) if (folder.path / name).is_file()]
    names = sorted({*own, *folder.headers, *folder.carried})
    hashed = [name for name in names if name not in finished]
    on_bytes = ByteCounter("validating", sum((folder.path / name).stat().st_size for name in hashed), progress)
    known = {name: done.source for name, done in finished.items()}
    return {name: dict(known.get(name) or hash_file(folder.path / name, on_bytes)) for name in names}
