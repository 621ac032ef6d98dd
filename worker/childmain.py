"""The main function of our children: read the orders, do the work, say why not."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from worker.emitter import Emitter
from worker.reasons import describe
from worker.workfolder import JobFolder

Work = Callable[[JobFolder, Emitter], None]


def run_child(work: Work) -> None:
    """Run `work` on the job folder named by the one argument; exit 1 with an `error` event when it raises."""
    emitter = Emitter()
    folder = JobFolder(Path(sys.argv[1]))
    try:
        work(folder, emitter)
    except Exception as error:  # noqa: BLE001 - every end has a reason that the user can read
        traceback.print_exc()
        emitter.send("error", **describe(error, folder.path))
        sys.exit(1)
