"""Secrets stay with the processes that need them: canaries are set, a real job runs, and all it leaves is searched."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.core.secret_key import load_pepper
from app.db.tables import Secret
from app.secrets.sealing import sealer
from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus
from tests.hubserver import hub_server
from tests.worker.factory import wait_for_end, worker_log, worker_process, write_tiny_llama
from tests.worker.test_worker import Bench

CANARY = "canary5f1c"
SECRETS = {
    "NUPES_SECRET_KEY": f"{CANARY}-pepper",
    "NUPES_HUB_TOKEN": f"{CANARY}-hub",
    "HF_TOKEN": f"{CANARY}-shell",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-aws",
    "PGPASSWORD": f"{CANARY}-database",
}
TOKEN = f"hf_{CANARY}-users"
"""That a user stored to have the result pushed."""

COMPUTES = ("worker.runner", "worker.runner_check")
"""Children that run code on a stranger's files."""


class Watcher:
    """Reads command line, environment and orders of the children of a job while they live."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.environments: dict[str, str] = {}
        self.orders: set[str] = set()

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            for process in psutil.process_iter():
                self._look(process)
            for orders in self._work_dir.glob("jobs/*/attempts/*/orders.json"):
                with contextlib.suppress(OSError):  # removed meanwhile
                    self.orders.add(orders.read_text())

    def _look(self, process: psutil.Process) -> None:
        try:
            command = process.cmdline()
            if any(str(self._work_dir) in word for word in command):
                self.environments[" ".join(command)] = json.dumps(process.environ())
        except (psutil.Error, OSError):
            return


@pytest.fixture
def bench(
    make_settings: Callable[..., Settings], sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    settings = make_settings(database_url=sqlite_url, poll_s=0.5, log_level="debug")
    bench = Bench(settings, write_tiny_llama(tmp_path / "model"))
    with bench.database.write() as session:
        sealed = sealer(load_pepper(settings)).seal(TOKEN)
        session.add(Secret(tenant_id=bench.tenant_id, name="team", kind="hub_token", sealed=sealed))
    with hub_server() as hub:
        hub.accounts = {TOKEN: {"team"}}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield bench
    bench.database.dispose()


def test_no_secret_reaches_logs_events_command_lines_or_the_children_that_compute(bench: Bench) -> None:
    with worker_process(bench.settings), Watcher(bench.settings.work_dir) as seen:
        spec = {"evaluation": None, "push_to_hub": {"repo": "team/model", "secret": "team"}}
        job = wait_for_end(bench.database, bench.submit(spec=spec))
    assert job.status == JobStatus.SUCCEEDED, job.error
    computing = {command: env for command, env in seen.environments.items() if any(m in command for m in COMPUTES)}
    assert {module for module in COMPUTES for command in computing if f"-m {module} " in command} == set(COMPUTES)
    for command, environment in computing.items():
        assert CANARY not in environment, command
        assert '"HF_HUB_OFFLINE": "1"' in environment
        assert '"TRANSFORMERS_OFFLINE": "1"' in environment
    pushers = [env for command, env in seen.environments.items() if "-m worker.pusher " in command]
    assert pushers
    assert f"{CANARY}-hub" not in "".join(pushers), "the operator's token is no token of a user"
    assert TOKEN not in "".join(seen.environments.values())
    public = [worker_log(bench.settings), *seen.orders, *seen.environments]
    public += [json.dumps(event.data) for event in bench.events(job.id)]
    public += [json.dumps([job.config, job.result, job.error, job.pushed])]
    assert any("team/model" in orders for orders in seen.orders)
    assert not [text for text in public if CANARY in text]
