"""`nupes up` as a user meets it: start, second start, deaths, stop, and never an orphan."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from nupes_client.credentials import Credentials, load

NUPES = Path(sys.executable).with_name("nupes")
START_S = 90
STOP_S = 30


@dataclass
class Running:
    """A `nupes up` that is ready."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    log: Path
    url: str
    api_key: str

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, words: str) -> psutil.Process:
        """The direct child whose command line holds `words`."""
        return next(child for child in psutil.Process(self.process.pid).children() if words in command_line(child))

    def get(self, path: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.get(self.url + path, headers=headers, trust_env=False, timeout=30)


def command_line(process: psutil.Process) -> str:
    """What it runs; nothing for one that is ending."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def launch(data_dir: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [NUPES, "up", "--data-dir", str(data_dir), *options]
    with data_dir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def start(data_dir: Path) -> Running:
    ready = data_dir.with_suffix(".ready")
    process = launch(data_dir, "--port", "0", "--ready-file", str(ready))
    until(lambda: ready.exists() or process.poll() is not None, START_S)
    log = data_dir.with_suffix(".log")
    assert process.poll() is None, log.read_text()
    assert ready.stat().st_mode & 0o777 == 0o600
    content = json.loads(ready.read_text())
    return Running(process, data_dir, log, content["url"], content["api_key"])


def stop(running: Running, number: signal.Signals = signal.SIGTERM) -> None:
    """Stop and make sure nothing is left, whatever the test did."""
    family = running.family() if running.process.poll() is None else []
    running.process.send_signal(number)
    try:
        running.process.wait(STOP_S)
    finally:
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start(tmp_path_factory.mktemp("up") / "data")
    yield running
    stop(running)


def test_the_service_answers_and_a_worker_has_reported_in(running: Running) -> None:
    assert running.get("/readyz").json()["status"] == "ok"
    assert [worker["status"] for worker in running.get("/v1/workers").json()["data"]] == ["idle"]


def test_a_key_is_needed_even_here(running: Running) -> None:
    assert httpx.get(f"{running.url}/v1/jobs", trust_env=False).status_code == 401


def test_secrets_are_for_their_owner_alone(running: Running) -> None:
    assert running.data_dir.stat().st_mode & 0o777 == 0o700
    for name in ("secret.key", "credentials.json", "curl.conf", "up.lock", "nupes.db"):
        assert (running.data_dir / name).stat().st_mode & 0o777 == 0o600, name


def test_the_key_shows_once_and_in_no_command_line(running: Running) -> None:
    assert running.log.read_text().count(running.api_key) == 1
    assert not any(running.api_key in command_line(process) for process in running.family())


def test_the_link_it_prints_signs_a_browser_in_once(running: Running) -> None:
    (path,) = re.findall(rf"sign in  {re.escape(running.url)}(\S+)", running.log.read_text())
    with httpx.Client(base_url=running.url, trust_env=False, timeout=30) as browser:
        assert "with the key" in browser.get(path).text
        data = {"token": path.split("=")[1]}
        assert browser.post("/login/link", data=data).status_code == 303
        assert browser.get("/v1/jobs").status_code == 200
        assert browser.post("/login/link", data=data).status_code == 410


def test_the_command_line_makes_another_link(running: Running) -> None:
    environment = {**os.environ, "NUPES_DATA_DIR": str(running.data_dir)}
    made = subprocess.run([NUPES, "login-link"], env=environment, capture_output=True, text=True, check=True)
    assert "Sign this browser in" in httpx.get(made.stdout.strip(), trust_env=False, timeout=30).text


def test_the_command_line_finds_the_service_by_the_data_folder_alone(running: Running) -> None:
    environment = {**os.environ, "NUPES_DATA_DIR": str(running.data_dir)}
    shown = subprocess.run([NUPES, "jobs", "--json"], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(shown.stdout) == []
    assert load(running.data_dir / "credentials.json") == Credentials(running.url, running.api_key)


def test_a_second_start_on_the_same_folder_says_who_is_there(running: Running) -> None:
    command = [NUPES, "up", "--data-dir", str(running.data_dir), "--port", "0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert "already running" in second.stderr
    assert running.url in second.stderr
    assert str(running.process.pid) in second.stderr
    assert running.get("/livez").status_code == 200


@pytest.mark.parametrize("words", ["app.up.serve", "-m worker"])
def test_a_child_that_is_killed_comes_back_at_the_same_address(running: Running, words: str) -> None:
    killed = running.child(words)
    grandchildren = killed.children(recursive=True)
    killed.kill()
    until(lambda: any(words in command_line(child) for child in running.family() if child != killed), 30)
    until(lambda: running.get("/readyz").json()["status"] == "ok", 60)
    assert not psutil.wait_procs(grandchildren, timeout=10)[1]


def test_a_port_in_use_is_said_with_a_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [NUPES, "up", "--data-dir", str(tmp_path / "data"), "--port", port]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert port in refused.stderr
    assert "--port 0" in refused.stderr


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    mode = tmp_path.stat().st_mode
    command = [NUPES, "up", "--data-dir", str(tmp_path), "--port", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "not empty" in refused.stderr
    assert tmp_path.stat().st_mode == mode
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_stop_and_start_again_keeps_key_and_data_and_leaves_no_process(tmp_path: Path) -> None:
    first = start(tmp_path / "data")
    family = first.family()
    assert len(family) >= 2
    stop(first)
    assert first.process.returncode == 0
    assert not [process for process in family if process.is_running()]
    assert not (tmp_path / "data.ready").exists()
    second = start(tmp_path / "data")
    try:
        assert second.api_key == first.api_key
        assert second.get("/v1/jobs").json()["data"] == []
        assert second.log.read_text().count(first.api_key) == 1
    finally:
        stop(second, signal.SIGINT)


def test_when_it_is_killed_its_children_end_with_it(tmp_path: Path) -> None:
    running = start(tmp_path / "data")
    family = running.family()
    running.process.kill()
    running.process.wait()
    _gone, alive = psutil.wait_procs(family, timeout=20)
    for process in alive:
        process.kill()
    assert not alive
    stop(start(tmp_path / "data"))  # the lock died with it


def test_a_stop_during_the_start_is_obeyed(tmp_path: Path) -> None:
    process = launch(tmp_path / "data", "--port", "0")
    until(lambda: bool(psutil.Process(process.pid).children()), START_S)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(STOP_S) == 0
    assert not psutil.wait_procs(family, timeout=5)[1]
