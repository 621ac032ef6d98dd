"""A child that does what children do on bad days: `python -m tests.worker.children.misbehaving HOW [FILE]`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from worker.emitter import Emitter


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


if __name__ == "__main__":
    globals()[sys.argv[1]](Emitter())
