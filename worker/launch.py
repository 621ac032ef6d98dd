"""Start a child on a leash, then become it: `python -I -S launch.py PARENT_PID NETWORK PROGRAM ARGS…`.

NETWORK is `shared`, or `none` for a network namespace of its own with nothing in it. Run by path with the bare standard
library, so that it costs a few milliseconds. Doing this in the child itself, after exec, is safe where the supervisor
has threads; code between fork and exec is not.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG, PR_CAPBSET_DROP = 1, 24
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
WAYS_BACK = (16, 19, 21)
"""CAP_SYS_MODULE, CAP_SYS_PTRACE, CAP_SYS_ADMIN: with them root could leave its namespace again."""

OOM_SCORE = b"600"
OPEN_FILES = 4096

libc = ctypes.CDLL(None, use_errno=True)


def leave_network() -> None:
    """Move into an empty network namespace: by the right to do so, else inside a user namespace that gives it.

    A child that can not is not started: what computes must not have a network where its worker says so.
    """
    if libc.unshare(CLONE_NEWNET) != 0:
        leave_network_as_user()
    for capability in WAYS_BACK:
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def leave_network_as_user() -> None:
    """Keep the ids of user and group, so that files stay ours; all rights in the new namespace go with exec."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        sys.exit(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    for name, content in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(content)


def die_with(parent: int) -> None:
    """Ask the kernel to KILL this process when the thread that started it ends; end now if it is already gone."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def limit() -> None:
    """No core dumps (they hold model and memory), a bound on open files, and first in line when memory runs out.

    Address space is not limited: torch reserves several times what it uses, with a GPU a hundred times.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    try:
        with open("/proc/self/oom_score_adj", "wb") as file:  # noqa: PTH123
            file.write(OOM_SCORE)
    except OSError:
        return  # a hardened kernel: the order of killing stays as it is


if __name__ == "__main__":
    if sys.argv[2] == "none":
        leave_network()
    limit()
    die_with(int(sys.argv[1]))  # after the namespaces: new rights clear it
    os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606
