"""Progress on stderr: bars on a terminal, a line now and then anywhere else, nothing when asked to be quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from nupes_client.cli import output

if TYPE_CHECKING:
    from nupes_client.schemas.jobs import Job

LINE_EVERY_S = 10.0
LINE_EVERY_FRACTION = 0.25


@contextmanager
def transfer(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show bytes on their way; yields the function to be told of more. Without any, they were there already."""
    console = output.stderr()
    began, done = time.monotonic(), _Sum()
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(label, total=total)

            def advance(count: int) -> None:
                done.add(count)
                progress.advance(task, count)

            yield advance
    else:
        yield done.add
    seconds = time.monotonic() - began
    console.print(f"{label}: {output.size(done.value)} in {seconds:.1f} s" if done.value else f"{label}: nothing new")


@contextmanager
def job_progress() -> Iterator[Callable[[Job], None]]:
    """Show a job on its way; yields the function to be told of each new state."""
    console = output.stderr()
    if not console.is_terminal:
        yield _PlainJob(console).update
        return
    columns: tuple[ProgressColumn, ...] = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("queued", total=1.0, detail="")

        def update(job: Job) -> None:
            progress.update(task, description=_standing(job), completed=_fraction(job), detail=_detail(job))

        yield update


class _Sum:
    def __init__(self) -> None:
        self.value = 0

    def add(self, count: int) -> None:
        self.value += count


class _PlainJob:
    """A line when the phase changes, when a quarter more is done, and every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._standing = ""
        self._fraction = 0.0
        self._said_at = 0.0

    def update(self, job: Job) -> None:
        standing, fraction = _standing(job), _fraction(job)
        moved = fraction - self._fraction
        overdue = moved > 0 and time.monotonic() - self._said_at >= LINE_EVERY_S
        if standing == self._standing and moved < LINE_EVERY_FRACTION and not overdue:
            return
        self._standing, self._fraction, self._said_at = standing, fraction, time.monotonic()
        detail = _detail(job)
        self._console.print(f"{job.id} {standing} {fraction:.0%}{'  ' if detail else ''}{detail}")


def _standing(job: Job) -> str:
    return job.phase.value if job.phase and job.status.value == "running" else job.status.value


def _fraction(job: Job) -> float:
    return 1.0 if job.status.value == "succeeded" else job.progress.fraction


def _detail(job: Job) -> str:
    progress = job.progress
    if job.is_terminal or progress.current >= progress.total:  # not counted, or left over from the phase before
        return ""
    if progress.unit == "bytes":
        return f"{output.size(progress.current)} of {output.size(progress.total)}"
    return f"{progress.current:,} of {progress.total:,} {progress.unit}"
