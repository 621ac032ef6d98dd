"""The order of things: folder, lock, socket, database, key, children, ready, tend, stop."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.core.clock import now
from app.db.migrate import upgrade
from app.db.session import Database
from app.settings import Settings
from app.up.children import Family, Program
from app.up.firstkey import make_key, make_login_link, usable
from app.up.folder import CURL_CONFIG, FolderLock, UpError, leave_for_clients, prepare, write_ready_file
from app.up.readiness import api_answers, workers_alive
from app.workers.memory import usable_memory
from nupes_client.credentials import FILE_NAME, Credentials, load

READY_S = 90.0
TEND_S = 0.1
FATAL_DEATHS = 3
"""Deaths of one child before the service was ever ready: waiting longer would not help."""
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Service:
    """One run of `nupes up`. Options that are None come from `NUPES_*` settings."""

    def __init__(
        self, *, data_dir: Path | None, host: str | None, port: int | None, workers: int, ready_file: Path | None
    ) -> None:
        given: dict[str, Any] = {"data_dir": data_dir, "host": host, "port": port}
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
        self._settings = settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})
        self._workers = workers
        self._ready_file = ready_file
        self._signals = 0

    def run(self) -> None:
        """Run until a signal says stop.

        Raises:
            UpError: it could not be started.
        """
        folder = self._settings.data_dir
        prepare(folder)
        lock = FolderLock(folder)
        lock.acquire()
        sys.stderr.write(f"starting NUPES on {folder} ...\n")
        others = os.umask(0o077)  # whatever we or our children write is for the owner alone, the database too
        try:
            with _listen(self._settings.host, self._settings.port) as listener:
                self._serve(lock, listener)
        finally:
            lock.release()
            os.umask(others)

    def _serve(self, lock: FolderLock, listener: socket.socket) -> None:
        port = int(listener.getsockname()[1])
        url = _url(self._settings.host, port)
        database = _migrated(self._settings.resolved_database_url)
        credentials, fresh = self._credentials(database, url)
        leave_for_clients(self._settings.data_dir, credentials)
        family = Family(self._programs(listener, port))
        restore = self._catch_signals()
        try:
            since = now()
            family.start()
            self._await_ready(family, lambda: self._is_ready(database, port, since))
            if not self._signals:
                lock.describe(f"pid {os.getpid()}, {url}")
                self._announce(credentials, fresh, self._login_link(database, credentials))
            while not self._signals:
                family.tend()
                time.sleep(TEND_S)
        finally:
            asked = self._signals
            sys.stderr.write("stopping\n")
            family.stop(impatient=lambda: self._signals > max(asked, 1))
            database.dispose()
            if self._ready_file is not None:
                self._ready_file.unlink(missing_ok=True)
            restore()

    def _programs(self, listener: socket.socket, port: int) -> list[Program]:
        environment = {
            "NUPES_LOG_JSON": "false",
            **os.environ,
            "NUPES_DATA_DIR": str(self._settings.data_dir),
            "NUPES_HOST": self._settings.host,
            "NUPES_PORT": str(port),
            "PYTHONUNBUFFERED": "1",
        }
        serve = [sys.executable, "-P", "-m", "app.up.serve", str(listener.fileno())]
        names = ["worker"] if self._workers == 1 else [f"worker {index + 1}" for index in range(self._workers)]
        work = [sys.executable, "-P", "-m", "worker"]
        share = self._settings.memory_bytes or usable_memory(self._settings) // max(self._workers, 1)
        return [
            Program("api", serve, environment, descriptors=[listener.fileno()]),
            *(Program(name, work, environment | {"NUPES_MEMORY_BYTES": str(share)}) for name in names),
        ]

    def _credentials(self, database: Database, url: str) -> tuple[Credentials, bool]:
        stored = load(self._settings.data_dir / FILE_NAME)
        if stored is not None and usable(database, self._settings, stored.api_key):
            return Credentials(url, stored.api_key), False
        return Credentials(url, make_key(database, self._settings)), True

    def _login_link(self, database: Database, credentials: Credentials) -> str:
        assert credentials.api_key, "stored or just made"
        return make_login_link(database, self._settings, credentials.api_key)

    def _is_ready(self, database: Database, port: int, since: Any) -> bool:
        host = ANY_ADDRESS.get(self._settings.host, self._settings.host)
        return api_answers(host, port) and workers_alive(database, since) >= self._workers

    def _await_ready(self, family: Family, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not self._signals and not is_ready():
            family.tend()
            for child in family.children:
                if child.deaths >= FATAL_DEATHS:
                    raise UpError(
                        f"the {child.program.name} does not start; its last words:\n" + "\n".join(child.lines)
                    )
            if time.monotonic() > deadline:
                raise UpError(f"not ready after {READY_S:g} s; the lines above say what happened")
            time.sleep(TEND_S)

    def _announce(self, credentials: Credentials, fresh: bool, login_link: str) -> None:
        folder = self._settings.data_dir
        kept = folder / FILE_NAME
        key = f"{credentials.api_key}   (shown this once, kept in {kept})" if fresh else f"in {kept}"
        # The key is read from a file, so that it shows in no process list.
        curl = f"curl -K {shlex.quote(str(folder / CURL_CONFIG))} {credentials.url}/v1/capabilities"
        sign_in = f"{credentials.url}{login_link}   (once, within ten minutes; another: nupes login-link)"
        lines = [
            f"NUPES is ready at {credentials.url}",
            f"  sign in  {sign_in}",
            f"  API key  {key}",
            f"  try      {curl}",
        ]
        if self._settings.host not in LOOPBACK:
            lines.append("  note     reachable from other machines without TLS: put a TLS proxy before it")
        lines.append("  stop     Ctrl-C")
        print("\n".join(lines), flush=True)  # noqa: T201
        if self._ready_file is not None:
            write_ready_file(self._ready_file, credentials)

    def _catch_signals(self) -> Callable[[], None]:
        def note(_number: int, _frame: FrameType | None) -> None:
            self._signals += 1

        caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in caught}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except PermissionError as error:
        raise UpError(f"port {port} may not be opened by this user\n  try: --port with a number above 1023") from error
    except OSError as error:
        raise UpError(
            f"can not listen on {host}:{port}: {error.strerror or error}\n"
            "  try: --port 0 for any free port, or stop what uses this one"
        ) from error


def _url(host: str, port: int) -> str:
    shown = ANY_ADDRESS.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _migrated(url: str) -> Database:
    try:
        upgrade(url)
        return Database(url)
    except SQLAlchemyError as error:
        raise UpError(f"the database can not be used: {error}\n  try: check NUPES_DATABASE_URL") from error
