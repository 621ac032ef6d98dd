"""`nupes workers`."""

from __future__ import annotations

from nupes_client.cli import options as o


def workers(json: o.Json = False) -> None:
    """List workers."""
    from nupes_client.cli import output
    from nupes_client.client import Client

    with Client() as client:
        found = list(client.workers.list())
    if json:
        output.print_json(found)
        return
    output.print_table(
        ("worker", "class", "status", "job", "memory", "isolation", "seen (UTC)"),
        [
            (
                worker.id,
                worker.device_class,
                worker.status,
                worker.job_id or "",
                output.size(worker.memory_bytes) if worker.memory_bytes else "",
                worker.isolation or "",
                f"{worker.heartbeat_at:%H:%M:%S}",
            )
            for worker in found
        ],
        numbers=("memory",),
        empty="no worker is up, so jobs wait; nupes up brings its own, python -m worker starts one",
    )
