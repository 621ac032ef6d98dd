"""`nupes jobs`, `job`, `cancel`, `retry`, `layers`, `metrics`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from nupes_client.cli import options as o

if TYPE_CHECKING:
    from nupes_client.client import Client
    from nupes_client.schemas.jobs import Layer


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


def jobs(
    status: Annotated[Status | None, typer.Option("--status", help="Only these.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MDL", help="Only of this model id.")] = None,
    label: o.LabelFilter = None,
    limit: o.Limit = 20,
    json: o.Json = False,
) -> None:
    """List jobs, newest first."""
    from nupes_client.cli import output
    from nupes_client.cli.wish import pairs
    from nupes_client.client import Client
    from nupes_client.schemas.jobs import JobStatus

    with Client() as client:
        found = list(
            client.jobs.list(
                status=JobStatus(status.value) if status else None,
                model_id=model,
                labels=pairs("--label", label or ()),
                limit=limit,
            )
        )
        names = {} if json else _names_of_models(client, {job.config.model.id for job in found})
    if json:
        output.print_json(found)
        return
    narrowed = status or model or label
    output.print_table(
        ("job", "status", "verdict", "bits", "model", "created (UTC)", "name"),
        [
            (
                job.id,
                job.status.value,
                job.verdict,
                job.config.weights.bits,
                names.get(job.config.model.id, job.config.model.id),
                f"{job.created_at:%Y-%m-%d %H:%M:%S}",
                job.name or "",
            )
            for job in found
        ],
        empty="no such jobs" if narrowed else "no jobs yet; nupes quantize MODEL makes one",
    )


def _names_of_models(client: Client, ids: set[str]) -> dict[str, str]:
    """Names by id, of those among the newest models; none for a key that may not read models."""
    from nupes_client.errors import ApiError
    from nupes_client.resources.models import RECENT

    if not ids:
        return {}
    try:
        return {model.id: model.name for model in client.models.list(limit=RECENT) if model.id in ids}
    except ApiError:
        return {}


def job(
    job_id: o.JobId,
    wait: o.Wait = False,
    timeout: o.WaitTimeout = None,
    download: o.Download = None,
    junit: o.JUnit = None,
    json: o.Json = False,
) -> None:
    """Show a job; with --wait follow it to its end. The exit code says how it stands."""
    from nupes_client.cli import output
    from nupes_client.cli.exits import ExitCode, code_of, leave
    from nupes_client.cli.following import Keepsakes, follow
    from nupes_client.cli.summary import show
    from nupes_client.client import Client

    keep = Keepsakes(download, junit)
    with Client() as client:
        found = client.jobs.get(job_id)
        if wait or keep:
            follow(client, found, timeout_s=timeout, keep=keep, as_json=json)
            return
    if json:
        output.print_json(found)
    else:
        phase = f", {found.phase.value}" if found.phase and not found.is_terminal else ""
        output.note(f"{found.progress.fraction:.0%}{phase}, attempt {found.attempt} of {found.max_attempts}")
        show(found, None)
    if code_of(found) is not ExitCode.OK:
        leave(code_of(found))


def cancel(job_id: o.JobId, json: o.Json = False) -> None:
    """Ask for a job to stop. Asking again changes nothing."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = client.jobs.cancel(job_id)
    if json:
        output.print_json(found)
    else:
        output.print_line(f"job {found.id} {found.status.value}")


def retry(job_id: o.JobId, json: o.Json = False) -> None:
    """Submit the wish of a job that failed or was cancelled again; prints the new job."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        made = client.jobs.retry(job_id)
    if json:
        output.print_json(made)
    else:
        output.print_line(made.id)


def layers(
    job_id: o.JobId,
    histogram: Annotated[
        str | None,
        typer.Option(
            "--histogram",
            metavar="LAYER",
            help="Only this one, and how its weights spread over the levels of its grid.",
        ),
    ] = None,
    json: o.Json = False,
) -> None:
    """Show every weight of a job's model: bits, exponent, error (once the job has succeeded)."""
    from nupes_client.cli import output
    from nupes_client.cli.wish import WishError
    from nupes_client.client import Client

    with Client() as client:
        names = () if histogram is None else (histogram,)
        found = list(client.jobs.layers(job_id, names=names, histograms=histogram is not None))
    if histogram is not None and not found:
        raise WishError(f"--histogram: the job has no layer {histogram}", hint=f"nupes layers {job_id} lists them.")
    if json:
        output.print_json(found)
        return
    _print_layers(found)
    if histogram is not None:
        _print_histogram(found[0])


def _print_layers(found: list[Layer]) -> None:
    from nupes_client.cli import output

    learnt = any(layer.codes_moved is not None for layer in found)
    coded = any(layer.activation_bits is not None for layer in found)
    further = [*(["codes moved"] if learnt else []), *(["inputs' bits"] if coded else [])]
    output.print_table(
        ("layer", "shape", "bits", "group", "layout", "exponent", "SQNR dB", *further, "left alone because"),
        [
            (
                layer.name,
                "x".join(str(length) for length in layer.shape),
                layer.bits,
                layer.group_size,
                layer.layout,
                output.fixed(layer.exponent, 3),
                output.fixed(layer.sqnr_db, 2),
                *([output.percent(layer.codes_moved)] if learnt else []),
                *([layer.activation_bits] if coded else []),
                layer.skipped_reason or "",
            )
            for layer in found
        ],
        numbers=("bits", "group", "exponent", "SQNR dB", *further),
        empty="no layers yet: they are told once the job has succeeded",
    )


def _print_histogram(layer: Layer) -> None:
    from nupes_client.cli import output
    from nupes_client.cli.histogram import ASCII, BLOCKS, drawn

    if not layer.histogram:
        output.note(f"no histogram: {layer.skipped_reason or 'none was counted'}")
        return
    console = output.stdout()
    output.print_line("")
    for line in drawn(layer, console.width, ASCII if console.options.ascii_only else BLOCKS):
        output.print_line(line)


def metrics(
    job_id: o.JobId,
    series: Annotated[list[str] | None, typer.Option("--series", help="Only this curve; repeatable.")] = None,
    json: o.Json = False,
) -> None:
    """Show the curves of a job, such as losses of training: where each began, its lowest, and where it is now."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = client.jobs.metrics(job_id, series=series or ())
    if json:
        output.print_json(found)
        return
    output.print_table(
        ("series", "points", "first", "best", "last"),
        [
            (
                each.name,
                each.count,
                output.number(each.points[0].value),
                output.number(min((p.value for p in each.points if p.value is not None), default=None)),
                output.number(each.points[-1].value),
            )
            for each in found
        ],
        numbers=("points", "first", "best", "last"),
        empty="no curves: nothing of this job was learnt on data yet",
    )
