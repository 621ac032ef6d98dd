"""`nupes artifacts`."""

from __future__ import annotations

from nupes_client.cli import options as o


def artifacts(job_id: o.JobId, download: o.Fetch = None, json: o.Json = False) -> None:
    """List the files a job left; with --download fetch them, resumed where an earlier try broke off."""
    from nupes_client.cli import output
    from nupes_client.cli.following import fetch
    from nupes_client.client import Client

    with Client() as client:
        found = list(client.artifacts.list(job_id))
        if download is not None:
            fetch(client, job_id, download)
    if json:
        output.print_json(found)
        return
    output.print_table(
        ("file", "size", "sha256 begins", "artifact"),
        [(f"{item.format}/{item.path}", output.size(item.size), item.sha256[:12], item.id) for item in found],
        numbers=("size",),
        empty="no files: the job has not written any",
    )
    if download is not None:
        output.print_line(f"files in {download}")
