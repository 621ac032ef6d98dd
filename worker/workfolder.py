"""The folder of one job on this worker: what each attempt has for itself, what all attempts share, and where it is.

```
jobs/JOB/                  model/ text.txt calibration pieces/ finished/     shared: whole files, renamed into place
jobs/JOB/attempts/001/     orders.json out/ outputs.json scratch/ incoming   of one attempt alone
```

A worker that was stopped may wake up while the next attempt works beside it (docs/decisions/014).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARD = "shard"
"""What lies in `out` of the work on one file of a sharded model."""

_ATTEMPTS = "attempts"


@dataclass(frozen=True)
class JobFolder:
    """The folder of one attempt, `SHARED/attempts/NUMBER`; what is shared outlives it, so that the next one resumes."""

    path: Path

    @property
    def shared(self) -> Path:
        """The folder of all attempts. What is in it appears whole or not at all, and never changes after that."""
        return self.path.parents[1]

    @property
    def model(self) -> Path:
        """The model's files; shared."""
        return self.shared / "model"

    @property
    def text(self) -> Path:
        """The text to evaluate on, when the job has one; shared."""
        return self.shared / "text.txt"

    @property
    def calibration(self) -> Path:
        """The file to calibrate on, when the job has one: text, JSONL, or a file of a data set; shared."""
        return self.shared / "calibration"

    @property
    def pieces(self) -> Path:
        """Quantized tensors committed so far; shared."""
        return self.shared / "pieces"

    @property
    def finished(self) -> Path:
        """What workers left of the files of a sharded model, one folder per position; shared."""
        return self.shared / "finished"

    @property
    def out(self) -> Path:
        """One folder per format."""
        return self.path / "out"

    @property
    def pushed(self) -> Path:
        """The files of a repository on the hub, laid out as they are to be there."""
        return self.path / "pushed"

    @property
    def outputs(self) -> Path:
        """Some outputs of what was evaluated, by format, to compare with after loading."""
        return self.path / "outputs.json"

    @property
    def incoming(self) -> Path:
        """A file that is being fetched."""
        return self.path / "incoming"

    @property
    def scratch(self) -> Path:
        """For temporary files of libraries."""
        return self.path / "scratch"

    @property
    def log(self) -> Path:
        """Standard error of the children."""
        return self.path / "children.log"

    @property
    def orders(self) -> Path:
        """What the children are to do."""
        return self.path / "orders.json"

    def prepare(self, orders: dict[str, Any]) -> None:
        """Make the folders and write the orders; earlier attempts give their room back."""
        for folder in (self.path, self.model, self.out, self.scratch):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for attempt in self.path.parent.iterdir():
            if attempt.name < self.path.name:
                shutil.rmtree(attempt, ignore_errors=True)
        self.orders.write_text(json.dumps(orders), encoding="utf-8")

    def read_orders(self) -> dict[str, Any]:
        """Return what was written by `prepare`."""
        orders: dict[str, Any] = json.loads(self.orders.read_text(encoding="utf-8"))
        return orders


def jobs_dir(work_dir: Path) -> Path:
    """Where the folders of all jobs are."""
    return work_dir / "jobs"


def job_home(work_dir: Path, job_id: str) -> Path:
    """Return the folder of all that is here of a job; the reaper removes it."""
    return jobs_dir(work_dir).absolute() / job_id


def job_folder(work_dir: Path, job_id: str, attempt: int) -> JobFolder:
    """Return the folder of an attempt at a job."""
    return JobFolder(job_home(work_dir, job_id) / _ATTEMPTS / f"{attempt:03}")


def shard_folder(work_dir: Path, job_id: str, position: int, *attempts: int) -> JobFolder:
    """Return the folder of an attempt at one file of a sharded job, inside that of the job.

    Args:
        work_dir: of this worker.
        job_id: of the job.
        position: of the file.
        attempts: number of the attempt at the job, and in it of the attempt at the file.
    """
    name = "-".join(f"{each:03}" for each in attempts)
    return JobFolder(job_home(work_dir, job_id) / "shards" / f"{position:05}" / _ATTEMPTS / name)


def shard_runner_folder(work_dir: Path, job_id: str) -> JobFolder:
    """Return the folder of the process that does files of a sharded job one after the other: its log and scratch."""
    return JobFolder(job_home(work_dir, job_id) / "shards" / "runner")
