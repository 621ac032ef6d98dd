"""Start a child on a leash, then become it: `python -I -S launch.py PARENT_PID PROGRAM ARGS…`.

Run by path with the bare standard library, so that it costs a few milliseconds. Doing this in the child itself, after
exec, is safe where the supervisor has threads; code between fork and exec is not.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
OOM_SCORE = b"600"


def die_with(parent: int) -> None:
    """Ask the kernel to KILL this process when the thread that started it ends; end now if it is already gone."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def limit() -> None:
    """No core dumps (they hold model and memory), and first in line when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:  # noqa: PTH123
            file.write(OOM_SCORE)
    except OSError:
        return  # a hardened kernel: the order of killing stays as it is


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    limit()
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606
