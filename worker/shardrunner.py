"""One process for all files of a job that a worker does in a row: torch is loaded and kernels are compiled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from app.settings import Settings
from worker.child import Child
from worker.commands import computing
from worker.supervisor import Stop, attend
from worker.workfolder import JobFolder, shard_runner_folder

MODULE = "worker.runner_shard"


class ShardRunner:
    """Started for the first file, told of one file after the other, ended on leaving. For one thread: the kernel ties
    the process to the one that started it.
    """  # noqa: D205

    def __init__(self, settings: Settings, job_id: str) -> None:
        self._settings = settings
        self._home = shard_runner_folder(settings.work_dir, job_id)
        self._child: Child | None = None

    def __enter__(self) -> ShardRunner:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._end()

    @property
    def log(self) -> Path:
        """Standard error of the process."""
        return self._home.log

    def run(
        self, folder: JobFolder, on_event: Callable[[dict[str, Any]], None], watch: Callable[[], Stop | None]
    ) -> int:
        """Have the file in `folder` done; returns 0, or the exit status of a process that gave up or was ended.

        Raises:
            StoppedError: the watch said so.
        """
        child = self._running()
        try:
            child.tell(str(folder.path))
            return attend(child, on_event, watch, self._settings.cancel_grace_s)
        except BaseException:
            self._end()
            raise

    def _running(self) -> Child:
        """One that ended, because a file could not be done or somebody killed it, is followed by another."""
        if self._child is not None and self._child.poll() is not None:
            self._end()
        if self._child is None:
            self._home.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._child = Child(computing(self._settings, MODULE, self._home, told=True))
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
