"""`nupes logs`, `report`, `compare`: what came of jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nupes_client.cli import options as o
from nupes_client.wording import NOTHING, plain, setting

if TYPE_CHECKING:
    from nupes_client.client import Client
    from nupes_client.schemas.reports import ComparedJob, ComparedLayer, JobComparison

FOLLOW_S = 20


class Report(StrEnum):
    """What a report is written as."""

    MARKDOWN = "markdown"
    HTML = "html"
    JUNIT = "junit"
    JSON = "json"


def logs(
    job_id: o.JobId,
    tail: Annotated[int | None, typer.Option("--tail", min=1, help="Only so many lines, the last.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show what happened to a job, a line each."""
    from nupes_client.client import Client

    with Client() as client:
        if follow:
            _follow(client, job_id, as_json=json)
        else:
            _write(client.jobs.logs(job_id, tail=tail, format="jsonl" if json else "text"))


def report(
    job_id: o.JobId,
    format_: Annotated[Report, typer.Option("--format", help="What to write.")] = Report.MARKDOWN,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.", dir_okay=False)
    ] = None,
) -> None:
    """Report on an ended job; JUnit has a test case for each gate. A terminal shows Markdown rendered."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        content = client.jobs.report(job_id, format_.value)
    if target is not None:
        output.write_file(target, content)
    elif format_ is Report.MARKDOWN and output.stdout().is_terminal:
        output.print_markdown(content.decode())
    else:
        _write(content)


def compare(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB...", help="2 to 8 job ids.", show_default=False)],
    all_layers: Annotated[bool, typer.Option("--all-layers", help="Also layers that are alike in all jobs.")] = False,
    json: o.Json = False,
) -> None:
    """Put jobs side by side: settings that differ, sizes, quality, layers that differ."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = client.jobs.compare(job_ids)
    if json:
        output.print_json(found)
        return
    for caution in found.cautions:
        output.note(f"note: {caution}")
    heads = [job.name or job.id for job in found.jobs]
    output.print_table(("", *heads), [*_figure_rows(found), *_setting_rows(found)])
    _print_layers(found, heads, all_layers=all_layers)


def _figure_rows(found: JobComparison) -> list[tuple[str, ...]]:
    return [(name, *map(shown, found.jobs)) for name, shown in _FIGURES.items()]


def _setting_rows(found: JobComparison) -> list[tuple[str, ...]]:
    return [(setting(each.pointer), *map(plain, each.values)) for each in found.config]


def _print_layers(found: JobComparison, heads: list[str], *, all_layers: bool) -> None:
    from nupes_client.cli import output

    rows = [(each.name, *_cells(each)) for each in found.layers]
    shown = [row for row in rows if all_layers or len(set(row[1:])) > 1]
    if shown:
        output.print_line("")
        output.print_table(("layer: bits, SQNR dB", *heads), shown)
    if len(shown) < len(rows):
        output.note(f"{len(rows) - len(shown)} of {len(rows)} layers are alike in all jobs; --all-layers shows them")


def _follow(client: Client, job_id: str, *, as_json: bool) -> None:
    """Print the log as it grows; the last look comes after the end, so that nothing is missed."""
    read, etag, ended = 0, None, False
    while not ended:
        snapshot = client.jobs.poll(job_id, etag=etag, wait_s=FOLLOW_S if etag else None)
        if snapshot is not None:
            ended, etag = snapshot.job.is_terminal, snapshot.etag
        news = client.jobs.logs(job_id, start=read, format="jsonl" if as_json else "text")
        _write(news)
        read += len(news)


def _write(content: bytes) -> None:
    sys.stdout.write(content.decode())
    sys.stdout.flush()


def _cells(each: ComparedLayer) -> list[str]:
    from nupes_client.cli import output

    return [
        NOTHING if layer is None else f"{output.number(layer.bits)}, {output.fixed(layer.sqnr_db, 2)}"
        for layer in each.layers
    ]


def _size(job: ComparedJob) -> str:
    from nupes_client.cli import output

    return output.size(job.result.bytes_after) if job.result else NOTHING


def _quality(name: str, job: ComparedJob) -> str:
    from nupes_client.cli import output

    metrics = job.result.metrics if job.result else None
    if metrics is None:
        return NOTHING
    sampled = name == "perplexity" and metrics.text_origin == "sampled"
    return output.number(getattr(metrics.quantized, name)) + (" on sampled text" if sampled else "")


_FIGURES: dict[str, Callable[[ComparedJob], str]] = {
    "status": lambda job: job.status.value,
    "gates": lambda job: job.verdict or NOTHING,
    "size": _size,
    "perplexity": lambda job: _quality("perplexity", job),
    "KL per token (nats)": lambda job: _quality("kl", job),
    "same top token": lambda job: _quality("top1_agreement", job),
}
"""Rows of a comparison, by what they are called."""
