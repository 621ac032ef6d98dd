"""From a wish to a job on the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nupes_client.cli import output
from nupes_client.cli.following import Keepsakes, follow
from nupes_client.cli.model_argument import check_model, model_bytes, resolve_model
from nupes_client.cli.progress import transfer
from nupes_client.client import Client

if TYPE_CHECKING:
    from nupes_client.cli.wish import Wish
    from nupes_client.schemas.models import Model


def submit(model: str, wish: Wish, *, wait: bool, timeout_s: float | None, keep: Keepsakes, as_json: bool) -> None:
    """Send what has to be sent, create the job, and follow it when asked to.

    Raises:
        NupesError: anything wrong on the way; the wish and the folder are checked before a byte is sent.
        NupesExit: the job did not simply succeed.
    """
    wish.check()
    check_model(model)
    with Client() as client:
        registered = registered_model(client, model)
        job = client.jobs.create(wish.body(registered.id, sent_files(client, wish)))
        if job.is_terminal:
            output.note("the same wish was submitted before; this is its job")
        if wait:
            output.note(f"job {job.id}")
            follow(client, job, timeout_s=timeout_s, keep=keep, as_json=as_json)
        elif as_json:
            output.print_json(job)
        else:
            output.print_line(job.id)
            output.note(f"follow it: nupes job {job.id} --wait")


def sent_files(client: Client, wish: Wish) -> dict[str, str]:
    """Send the texts and data of a wish; return the ids of the uploads by what they are for."""
    return {purpose: client.uploads.send(path).id for purpose, path in wish.files.items()}


def registered_model(client: Client, argument: str) -> Model:
    """Resolve MODEL, with progress when files go out."""
    total = model_bytes(argument)
    if not total:
        return resolve_model(client, argument)
    with transfer("sent", total) as advance:
        return resolve_model(client, argument, advance)
