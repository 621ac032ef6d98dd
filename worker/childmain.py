"""The main function of our children: read the orders, do the work, say why not."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from worker.emitter import DONE, Emitter
from worker.reasons import describe
from worker.workfolder import JobFolder

Work = Callable[[JobFolder, Emitter], None]


def run_child(work: Work) -> None:
    """Run `work` on the job folder named by the one argument; exit 1 with an `error` event when it raises."""
    _run(work, Path(sys.argv[1]), Emitter())


def run_told(work: Work) -> None:
    """Run `work` on each folder named by a line of standard input and say so after it; exit 1 when it raises."""
    emitter = Emitter()
    for line in sys.stdin:
        _run(work, Path(line.removesuffix("\n")), emitter)
        emitter.send(DONE)


def _run(work: Work, path: Path, emitter: Emitter) -> None:
    folder = JobFolder(path)
    try:
        work(folder, emitter)
    except Exception as error:  # noqa: BLE001 - every end has a reason that the user can read
        emitter.send("error", **describe(error, folder.path, folder.shared))
        with contextlib.suppress(OSError):  # the log may be on the very disk that is full
            traceback.print_exc()
        sys.exit(1)
