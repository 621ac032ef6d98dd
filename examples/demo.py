"""The whole way once, as a user would go it: start the service, quantize the bundled model, check and use the result.

Run by `make demo`. Everything it writes lies in `.demo/`; everything it starts is stopped, whatever happens.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / ".demo"
READY = DEMO / "ready.json"
LOG = DEMO / "service.log"
RESULT = DEMO / "result"
READY_S = 90
STOP_S = 20
WAIT_S = 300

QUANTIZE = [
    *("nupes", "quantize", "examples/booklm", "--bits", "4", "--group-size", "64"),
    *("--eval-text", "examples/text/lamplighter.txt", "--gate", "max_perplexity_increase_pct=5"),
    *("--wait", "--timeout", str(WAIT_S), "--download", ".demo/result"),
]
GENERATE = """
import sys
import nupes_core
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
folder = sys.argv[1]
model = nupes_core.load(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("The old man looked at the sea and", return_tensors="pt")
tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False, repetition_penalty=1.3)
print(tokenizer.decode(tokens[0], skip_special_tokens=True).strip())
"""


class DemoError(Exception):
    """The demo can not go on."""


def main() -> int:
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the service is stopped
    try:
        shutil.rmtree(DEMO, ignore_errors=True)
        DEMO.mkdir(mode=0o700)
        with service() as environment:
            step("quantize it over HTTP: upload, job, live progress, measured quality, download")
            run(QUANTIZE, environment)
            step("check the files against SHA256SUMS")
            print(f"{check_sums(RESULT / 'nupes')} files are what the service says they are")
            step("load the artifact in a fresh process and let it write")
            run([sys.executable, "-c", GENERATE, str(RESULT / "nupes")], environment, shown="nupes_core.load(...)")
        print(f"\ndone in {time.monotonic() - began:.0f} s; the artifact is in {RESULT.relative_to(ROOT)}")
    except DemoError as error:
        print(f"\nthe demo failed: {error}\n{service_log_tail()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextmanager
def service() -> Iterator[dict[str, str]]:
    """The embedded service on a free port; yields the environment in which `nupes` finds it."""
    step("start the service")
    command = [program("nupes"), "up", "--data-dir", str(DEMO / "data"), "--port", "0", "--ready-file", str(READY)]
    with LOG.open("wb") as log:
        # Its own session: Ctrl-C reaches the demo alone, which then stops the service in order.
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
    try:
        ready = await_ready(process)
        print(f"ready at {ready['url']} (log: {LOG.relative_to(ROOT)})")
        yield {**os.environ, "NUPES_URL": ready["url"], "NUPES_API_KEY": ready["api_key"]}
        step("stop the service")
    finally:
        stop(process)


def await_ready(process: subprocess.Popen[bytes]) -> dict[str, str]:
    deadline = time.monotonic() + READY_S
    while not READY.exists():
        if process.poll() is not None:
            raise DemoError(f"the service ended with code {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise DemoError(f"the service was not ready after {READY_S} s")
        time.sleep(0.05)
    content: dict[str, str] = json.loads(READY.read_text())
    return content


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its children end with it
        process.wait()


def run(command: list[str], environment: dict[str, str], shown: str | None = None) -> None:
    print(f"$ {shown or shlex.join(command)}", flush=True)
    code = subprocess.run([program(command[0]), *command[1:]], env=environment, cwd=ROOT, check=False).returncode
    if code:
        raise DemoError(f"`{shown or shlex.join(command[:2])}` ended with exit code {code}")


def check_sums(folder: Path) -> int:
    """Compare every file named in SHA256SUMS, and return how many there are."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        expected, name = line.split(maxsplit=1)
        found = hashlib.sha256((folder / name.lstrip("*")).read_bytes()).hexdigest()
        if found != expected:
            raise DemoError(f"{name} has sha256 {found}, SHA256SUMS says {expected}")
    return len(lines)


def program(name: str) -> str:
    """`nupes` of the environment this script runs in."""
    return str(Path(sys.executable).with_name(name)) if name == "nupes" else name


def step(title: str) -> None:
    print(f"\n== {title}", flush=True)


def service_log_tail() -> str:
    if not LOG.exists():
        return ""
    return f"last lines of {LOG.relative_to(ROOT)}:\n" + "\n".join(LOG.read_text(errors="replace").splitlines()[-25:])


if __name__ == "__main__":
    sys.exit(main())
