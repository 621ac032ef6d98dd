"""The folder of one job on this worker: what is in it, and where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class JobFolder:
    """Paths below one folder. It outlives an attempt, so that the next one resumes; the reaper removes it."""

    path: Path

    @property
    def model(self) -> Path:
        """The model's files."""
        return self.path / "model"

    @property
    def text(self) -> Path:
        """The text to evaluate on, when the job has one."""
        return self.path / "text.txt"

    @property
    def calibration(self) -> Path:
        """The file to calibrate on, when the job has one: text, JSONL, or a file of a data set."""
        return self.path / "calibration"

    @property
    def pieces(self) -> Path:
        """Quantized tensors committed so far."""
        return self.path / "pieces"

    @property
    def out(self) -> Path:
        """One folder per format."""
        return self.path / "out"

    @property
    def outputs(self) -> Path:
        """Some outputs of the evaluated model, to compare with after loading."""
        return self.path / "outputs.json"

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
        """Make the folders and write the orders."""
        for folder in (self.path, self.model, self.out, self.scratch):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.orders.write_text(json.dumps(orders), encoding="utf-8")

    def read_orders(self) -> dict[str, Any]:
        """Return what was written by `prepare`."""
        orders: dict[str, Any] = json.loads(self.orders.read_text(encoding="utf-8"))
        return orders


def jobs_dir(work_dir: Path) -> Path:
    """Where the folders of all jobs are."""
    return work_dir / "jobs"


def job_folder(work_dir: Path, job_id: str) -> JobFolder:
    """Return the folder of a job."""
    return JobFolder(jobs_dir(work_dir).absolute() / job_id)
