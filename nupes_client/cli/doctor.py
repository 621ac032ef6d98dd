"""`nupes doctor`."""

from __future__ import annotations

from nupes_client.cli import options as o

_SIGNS = {"ok": "ok", "warning": "look", "problem": "BAD"}


def doctor(json: o.Json = False) -> None:
    """Look at everything the commands and the service need on this machine. Exit code 6 when something is missing."""
    from dataclasses import asdict

    from nupes_client.cli import output
    from nupes_client.cli.exits import ExitCode, leave
    from nupes_client.findings import examine

    found = []
    for finding in examine():
        found.append(finding)
        if not json:
            output.print_line(f"{_SIGNS[finding.status]:<5} {finding.name:<11} {finding.detail}")
            if finding.status != "ok" and finding.hint:
                output.print_line(f"{'':<17} -> {finding.hint}")
    if json:
        output.print_json({"findings": [asdict(finding) for finding in found]})
    if any(finding.status == "problem" for finding in found):
        leave(ExitCode.USAGE)
