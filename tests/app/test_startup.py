from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from app.db.migrate import upgrade

HEAVY = ("torch", "transformers", "numpy", "numba", "safetensors", "boto3", "alembic", "huggingface_hub", "celery")
STARTUP_LIMIT_S = 2.0
TIMES_THE_LIBRARIES = 3.0
"""Other tests run beside this one. When the machine is so busy that even the libraries alone, whose import nobody can
avoid, take long, the limit is a multiple of theirs."""

_CHILD = """
import sys, uvicorn
sys.stdout.write(",".join(name for name in {heavy!r} if name in sys.modules) + "\\n")
from app.main import create_app
app = create_app()
config = uvicorn.Config(app, fd={fd}, log_config=None)
import threading, time
server = uvicorn.Server(config)
thread = threading.Thread(target=server.run)
thread.start()
while not server.started:
    time.sleep(0.005)
print("started", flush=True)
sys.stdin.readline()
print(",".join(name for name in {heavy!r} if name in sys.modules), flush=True)
server.should_exit = True
thread.join()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    upgrade(f"sqlite:///{tmp_path / 'nupes.db'}")
    return {**os.environ, "NUPES_DATA_DIR": str(tmp_path)}


def test_the_api_starts_fast_stays_small_and_imports_nothing_heavy(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = _CHILD.format(heavy=HEAVY, fd=listener.fileno())
        started = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[listener.fileno()],
        )
        try:
            assert child.stdin
            assert child.stdout
            assert child.stdout.readline().strip() == ""
            assert child.stdout.readline().strip() == "started"
            seconds = time.monotonic() - started
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
                assert httpx.get(url + path, timeout=30).status_code == 200
            memory = psutil.Process(child.pid).memory_info().rss
            child.stdin.write("\n")
            child.stdin.flush()
            heavy = child.stdout.readline().strip()
            assert child.wait(20) == 0
        finally:
            child.kill()
            child.communicate()
    assert heavy == ""
    assert seconds < max(STARTUP_LIMIT_S, TIMES_THE_LIBRARIES * _libraries_s(environment))
    assert memory < 150 * 2**20


def _libraries_s(environment: dict[str, str]) -> float:
    code = "import fastapi, sqlalchemy.orm, uvicorn"
    started = time.monotonic()
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, check=True)
    return time.monotonic() - started


def test_the_factory_is_what_uvicorn_runs(environment: dict[str, str]) -> None:
    code = "from uvicorn.importer import import_from_string as load; print(load('app.main:create_app')().title)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()
