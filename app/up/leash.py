"""Put this process on a leash, then become a program: `python -I -S leash.py PARENT_PID PROGRAM ARGS…`.

Run by path with the bare standard library: a few milliseconds, and nothing runs between fork and exec, where a parent
with threads must not run code.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Ask the kernel for a TERM when the thread that started this process ends; leave now if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606
