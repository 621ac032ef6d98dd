"""Child that proves the artifacts: `python -m worker.runner_check JOB_FOLDER`, a process that did not write them.

"It loads" is a stage (architecture): checksums, every matrix against the source, one forward pass compared with what
the runner computed. It has as little as the runner: no network, no database, no secrets.
"""

from __future__ import annotations

import json
from pathlib import Path

from nupes_core.check import Check, verify_artifact
from nupes_core.errors import LoadCheckError, NupesError
from nupes_core.probe import Probe
from worker.childmain import run_child
from worker.emitter import Emitter
from worker.workfolder import JobFolder

_HINT = "Check that config.json fits the weights, or report the job id. Nothing was published."
_OF_THE_MACHINE = (OSError, MemoryError)


def run(folder: JobFolder, emitter: Emitter) -> None:
    """Verify the artifact of each format."""
    expected = json.loads(folder.outputs.read_bytes()) if folder.outputs.is_file() else {}
    for name in folder.read_orders()["formats"]:
        outputs = Probe.from_dict(expected[name]) if name in expected else None
        check = _verified(folder.out / name, folder.model, outputs)
        forward = "one forward pass" if check.forward else f"no forward pass ({check.reason})"
        emitter.log(f"{name}: {check.files} files, {check.matrices} matrices and {forward} are as written")


def _verified(artifact: Path, source: Path, expected: Probe | None) -> Check:
    try:
        return verify_artifact(artifact, source=source, expected=expected)
    except NupesError as error:
        raise LoadCheckError(f"format {artifact.name}: {error.message}", hint=error.hint or _HINT) from error
    except _OF_THE_MACHINE:
        raise
    except Exception as error:
        raise LoadCheckError(f"format {artifact.name} did not load: {type(error).__name__}", hint=_HINT) from error


if __name__ == "__main__":
    run_child(run)
