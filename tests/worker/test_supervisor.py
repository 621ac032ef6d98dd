"""Children on a leash: what they say, how they end, and that nothing of them stays."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.worker.factory import REPOSITORY, wait_for
from worker.child import Child, Command, Network
from worker.isolation import isolation
from worker.supervisor import Stop, StoppedError, attend, supervise

Event = dict[str, Any]


def _command(tmp_path: Path, *args: str) -> Command:
    env = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]}
    return Command("tests.worker.children.misbehaving", args, env, tmp_path, tmp_path / "log")


def _run(tmp_path: Path, how: str, *, grace_s: float = 0.3, stop: Stop | None = None) -> tuple[int, list[Event]]:
    """Run a child; `stop` ends it once it said that it is ready."""
    events: list[Event] = []

    def watch() -> Stop | None:
        return stop if any(event["type"] == "log" for event in events) else None

    status = supervise(_command(tmp_path, how), events.append, watch, grace_s)
    return status, events


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_events_arrive_in_order_and_stray_output_goes_to_the_log(tmp_path: Path) -> None:
    status, events = _run(tmp_path, "talk")
    assert status == 0
    assert [event["type"] for event in events] == ["progress"] * 3 + ["result"]
    assert events[-1]["answer"] == 42
    assert "a library prints this" in (tmp_path / "log").read_text()


def test_a_child_ended_by_signal_9_is_told_apart(tmp_path: Path) -> None:
    assert _run(tmp_path, "kill_itself")[0] == -signal.SIGKILL


@pytest.mark.parametrize("how", ["sleep", "ignore_term"])
def test_a_stopped_child_is_gone_soon_whether_it_heeds_term_or_not(tmp_path: Path, how: str) -> None:
    started = time.monotonic()
    with pytest.raises(StoppedError) as stopped:
        _run(tmp_path, how, stop=Stop.CANCELLED)
    assert stopped.value.reason is Stop.CANCELLED
    assert time.monotonic() - started < 5


def test_the_grandchildren_of_a_stopped_child_end_with_it(tmp_path: Path) -> None:
    events: list[Event] = []

    def watch() -> Stop | None:
        return Stop.CANCELLED if any(event["type"] == "log" for event in events) else None

    with pytest.raises(StoppedError):
        supervise(_command(tmp_path, "fork_and_ignore_term"), events.append, watch, 0.3)
    assert not _runs(events[0]["pid"])


def test_a_grandchild_that_outlives_its_parent_holds_nothing_up_and_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    status, events = _run(tmp_path, "fork_and_leave")
    assert status == 0
    assert time.monotonic() - started < 5
    assert not _runs(events[0]["pid"])


def test_a_lost_lease_kills_without_grace(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(StoppedError):
        _run(tmp_path, "ignore_term", grace_s=30, stop=Stop.LEASE_LOST)
    assert time.monotonic() - started < 10


def test_an_error_while_an_event_is_taken_ends_the_child(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def refuse(_event: Event) -> None:
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        supervise(_command(tmp_path, "write_pid_and_sleep", str(pid_file)), refuse, lambda: None, 0.3)
    assert not _runs(int(pid_file.read_text()))


SUPERVISOR = """
import os, sys
from pathlib import Path
from worker.child import Command
from worker.supervisor import supervise
folder = Path(sys.argv[1])
env = {"PYTHONPATH": os.getcwd(), "PATH": os.environ["PATH"]}
args = ["write_pid_and_sleep", str(folder / "pid")]
command = Command("tests.worker.children.misbehaving", args, env, folder, folder / "log")
supervise(command, lambda event: None, lambda: None, 1.0)
"""


def _await_end_of_child_when_killed(supervisor_code: str, folder: Path) -> None:
    """Start a supervisor, kill it once its child runs, and wait for the end of the child."""
    supervisor = subprocess.Popen([sys.executable, "-c", supervisor_code, str(folder)], cwd=REPOSITORY)
    pid_file = folder / "pid"
    try:
        wait_for(lambda: pid_file.is_file() and pid_file.read_text(), 60, "start of the child")
    finally:
        supervisor.kill()
        supervisor.wait()
    pid = int(pid_file.read_text())
    wait_for(lambda: not _runs(pid), 20, "end of the child")


def test_a_child_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    _await_end_of_child_when_killed(SUPERVISOR, tmp_path)


@pytest.mark.parametrize("network", ["shared", "none"])
def test_a_child_without_network_reaches_no_listener_of_this_machine_and_can_not_go_back(
    tmp_path: Path, network: Network
) -> None:
    events: list[Event] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = _command(tmp_path, "connect", str(listener.getsockname()[1]))
        status = supervise(replace(command, network=network), events.append, lambda: None, 0.3)
    if network == "shared":
        assert (status, events[0]["connected"]) == (0, True)
    elif isolation() == "namespace":
        assert (status, events[0]["connected"], events[0]["went_back"]) == (0, False, False)
        assert events[0]["why"] == errno.ENETUNREACH
    else:  # not started rather than started with a network
        assert (status, events) == (1, [])


def test_a_child_without_network_dies_with_its_supervisor_too(tmp_path: Path) -> None:
    network: Network = "none" if isolation() == "namespace" else "shared"
    code = SUPERVISOR.replace('folder / "log")', f'folder / "log", network="{network}")')
    assert code != SUPERVISOR
    _await_end_of_child_when_killed(code, tmp_path)


def test_a_file_can_not_grow_far_beyond_the_plan(tmp_path: Path) -> None:
    events: list[Event] = []
    command = _command(tmp_path, "write_much", str(tmp_path / "large"))
    assert supervise(command, events.append, lambda: None, 0.3) == 0
    assert [event["message"] for event in events] == ["a file grew far beyond what was planned for the job"]
    assert (tmp_path / "large").stat().st_size == 1 << 20


def test_a_child_that_is_told_what_to_do_lives_on_until_it_is_closed(tmp_path: Path) -> None:
    events: list[Event] = []
    child = Child(replace(_command(tmp_path, "answer"), told=True))
    statuses = []
    for line in ("first", "second", "fail"):
        child.tell(line)
        statuses.append(attend(child, events.append, lambda: None, 0.3))
    child.tell("to nobody")
    child.close()
    assert statuses == [0, 0, 1]
    assert [event["answer"] for event in events] == ["first", "second", "fail"]
    assert len({event["pid"] for event in events}) == 1
