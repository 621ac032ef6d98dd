"""A bound on what a child may write, from the plan of its job."""

from __future__ import annotations

import resource

from nupes_core.plan import Plan

FACTOR = 2
FLOOR_BYTES = 2**30
"""For what a plan of a small model only estimates, and for logs."""


def limit_files(plan: Plan) -> None:
    """Let no file grow beyond twice what the plan says of all files together: a runaway must not fill the disk."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    most = FLOOR_BYTES + FACTOR * plan.disk_bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
