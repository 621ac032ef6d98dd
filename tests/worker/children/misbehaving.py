"""A child that does what children do on bad days: `python -m tests.worker.children.misbehaving HOW [FILE]`."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from worker.emitter import DONE, Emitter
from worker.reasons import describe


def talk(emitter: Emitter) -> None:
    print("a library prints this")
    print('{"type": "forged"}', file=sys.stderr)
    for current in range(3):
        emitter.progress("quantizing", current, 3, "params")
    emitter.send("result", answer=42)


def sleep(emitter: Emitter) -> None:
    emitter.log("ready")
    time.sleep(60)


def ignore_term(emitter: Emitter) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep(emitter)


def fork_and_ignore_term(emitter: Emitter) -> None:
    """The grandchild keeps the pipe open and ignores TERM as well."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[emitter._pipe.fileno()]
    )
    emitter.send("grandchild", pid=grandchild.pid)
    sleep(emitter)


def fork_and_leave(emitter: Emitter) -> None:
    """The child ends, its grandchild lives on with the pipe open."""
    grandchild = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[emitter._pipe.fileno()]
    )
    emitter.send("grandchild", pid=grandchild.pid)


def kill_itself(emitter: Emitter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_pid_and_sleep(emitter: Emitter) -> None:
    Path(sys.argv[2]).write_text(str(os.getpid()))
    sleep(emitter)


def connect(emitter: Emitter) -> None:
    """Go back to the network namespace of the supervisor if that can be done, then connect to a port of it."""
    went_back = _goes_back(Path(f"/proc/{os.getppid()}/ns/net"))
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=5).close()
    except OSError as error:
        emitter.send("result", connected=False, went_back=went_back, why=error.errno)
    else:
        emitter.send("result", connected=True)


def _goes_back(namespace: Path) -> bool:
    try:
        with namespace.open() as network:
            return ctypes.CDLL(None).setns(network.fileno(), 0) == 0
    except PermissionError:
        return False


def write_much(emitter: Emitter) -> None:
    """Plan a tiny model, then write a file of 4 GiB with a hole."""
    from nupes_core.config import QuantizationConfig
    from nupes_core.plan import plan_headers
    from worker.limits import limit_files

    limit_files(plan_headers({}, {}, QuantizationConfig()))
    with Path(sys.argv[2]).open("wb") as file:
        file.truncate(1 << 20)
        try:
            file.truncate(1 << 32)
        except OSError as error:
            emitter.send("error", **describe(error, Path(sys.argv[2]).parent))


def answer(emitter: Emitter) -> None:
    """Do one thing after the other as told."""
    for line in sys.stdin:
        emitter.send("result", answer=line.strip(), pid=os.getpid())
        if line.startswith("fail"):
            sys.exit(1)
        emitter.send(DONE)


if __name__ == "__main__":
    globals()[sys.argv[1]](Emitter())
