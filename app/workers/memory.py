"""Memory that a worker's job may use: what the settings say, else its control group, else the machine."""

from __future__ import annotations

import os
from pathlib import Path

from app.settings import Settings

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_KINDS = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}
"""Controllers of a line in `_MEMBERSHIP` -> where version 2 and version 1 keep the limit of a group."""


def usable_memory(settings: Settings) -> int:
    """Return bytes that a job on this worker may use."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return settings.memory_bytes or min([machine, *group_limits(_ROOT, _MEMBERSHIP)])


def group_limits(root: Path, membership: Path) -> list[int]:
    """Return the limits of this process's control groups and of the groups around them, version 1 and 2."""
    limits = []
    for line in membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in _KINDS:
            folder, name = _KINDS[controllers]
            inner = root / folder / path.lstrip("/")
            limits += [_limit(group / name) for group in (inner, *inner.parents) if group.is_relative_to(root)]
    return [limit for limit in limits if limit is not None]


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:  # inside a container the path is often that of the machine outside
        return None
    return int(text) if text.isdecimal() else None
