"""Every command of README and docs is run, or checked against what it names; none is only believed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.commands import REPOSITORY, Command, commands
from tests.e2e.test_up import Running, start, stop
from tests.worker.factory import write_tiny_llama

ALL = list(commands())
LIMIT_S = 300
_MAY_END = {"--gate": 2, "nupes retry": 6}
"""By words in a command, besides 0: a gate that does not hold, and a newest job that succeeded, to be tried again."""
_ID = re.compile(r"\b(job|mdl)_[0-9a-z]{26}\b")
_IDS = {"MODEL_ID": "mdl", "JOB_ID": "job"}


class Reader:
    """Somebody who types the commands of the pages, in a folder like a checkout, with a service running."""

    def __init__(self, folder: Path, running: Running) -> None:
        self._folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUPES_")}
        own = {
            "PATH": path,
            "PYTHONPATH": str(REPOSITORY),
            "NUPES_DATA_DIR": str(running.data_dir),
            "NUPES_URL": running.url,
            "NUPES_API_KEY": running.api_key,
        }
        self._environment = {**inherited, **own}
        self._seen: dict[str, list[str]] = {kind: [] for kind in _IDS.values()}
        self._artifacts = 0

    def types(self, text: str) -> subprocess.CompletedProcess[str]:
        text = self._filled_in(text)
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        for found in _ID.finditer(done.stdout + done.stderr):
            if found[0] not in self._seen[found[1]]:
                self._seen[found[1]].append(found[0])
        return done

    def _filled_in(self, text: str) -> str:
        """Put ids and folders where the pages leave them to the reader."""
        self._artifacts += "quantize SRC DST" in text
        fixed = {"SRC": "examples/booklm", "DST": f"out/core-{self._artifacts}", "WORK": "work"}
        ids = {place: reversed(self._seen[kind]) for place, kind in _IDS.items()}  # the newest, then the one before it

        def value(place: str) -> str:
            return next(ids[place], place) if place in ids else fixed.get(place, place)

        return re.sub(r"\b[A-Z_]+\b", lambda match: value(match[0]), text)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """With a small model in the place of the bundled one: what is tested is the words, not the figures."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "examples").mkdir()
    write_tiny_llama(folder / "examples" / "booklm")
    shutil.copytree(REPOSITORY / "examples" / "text", folder / "examples" / "text")
    story = (folder / "examples" / "text" / "lamplighter.txt").read_text("utf-8")
    (folder / "book.txt").write_text(story)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for _ in range(3)))
    running = start(tmp_path_factory.mktemp("up") / "data")
    yield Reader(folder, running)
    stop(running)


def _of(*programs: str) -> list[Command]:
    return [command for command in ALL if command.program in programs]


def _runnable(command: Command) -> bool:
    return command.text not in NOT_RUN


NOT_RUN = {
    "nupes up": "the fixture does",
    "NUPES_WEBHOOK_HTTP=true NUPES_WEBHOOK_NETWORKS=127.0.0.0/8 nupes up": "tests/worker/test_courier.py sets both",
    "nupes webhooks create http://127.0.0.1:9000 --name local": "tests/worker/test_courier.py runs the example",
    "NUPES_DATA_DIR=restored nupes up": "tests/app/test_backup.py restores and starts",
    "python -m app.db.migrate": "every start of the service does",
    "nupes secrets set team --from-env HF_TOKEN": "tests/client/test_secrets.py sets",
    "nupes quantize examples/booklm --format nupes --format gguf --push team/booklm-nupes --push-secret team --wait": (
        "tests/worker/test_push_jobs.py pushes"
    ),
    "python -m app.workers drain WORKER": "tests/app/test_routing.py drains",
}
"""With the test that does it instead."""


def test_the_pages_have_the_commands_that_are_looked_for() -> None:
    assert len(_of("nupes")) >= 15
    assert {command.page for command in ALL} >= {"README.md", "docs/index.md", "docs/how-to/http.md"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_service_does_what_it_says(reader: Reader) -> None:
    """One after the other, as a reader goes through the pages: later ones name the jobs of earlier ones."""
    failures = []
    for command in filter(_runnable, _of("nupes", "curl")):
        done = reader.types(command.text)
        allowed = {0, *(code for words, code in _MAY_END.items() if words in command.text)}
        refused = command.program == "curl" and '"code":' in done.stdout.replace('"code":null', "")
        if done.returncode not in allowed or refused:
            failures.append(f"{command.page}: {command.text}\n-> {done.returncode}\n{done.stdout}{done.stderr}")
    assert not failures, "\n\n".join(failures)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_library_commands_do_what_they_say(reader: Reader) -> None:
    failures = []
    for command in filter(_runnable, _of("python")):
        if "nupes_core" in command.text or "app.backup" in command.text:
            done = reader.types(command.text)
            if done.returncode != 0:
                failures.append(f"{command.page}: {command.text}\n{done.stdout}{done.stderr}")
    assert not failures, "\n\n".join(failures)


CHECKED: dict[str, Callable[[str], bool]] = {
    "make": lambda text: all(
        re.search(rf"^{word}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        for word in re.findall(r"make ([a-z-]+)", text)
    ),
    "cp": lambda text: (REPOSITORY / text.split()[1]).exists(),
    "source": lambda text: text == "source .venv/bin/activate",
    "export": lambda text: text.startswith("export NUPES_"),
    "docker": lambda text: "python -m" not in text or "python -m app.keys create --name" in text,
    "mkdir": lambda text: text.startswith("mkdir -m 700 restored"),
    "pg_dump": lambda text: "--format=custom" in text,
    "aws": lambda text: text.startswith("aws s3 sync"),
    "pip": lambda text: "nupes" in text,
    "python": lambda text: (
        (REPOSITORY / f"{text.split()[2].replace('.', '/')}.py").exists()
        or (REPOSITORY / text.split()[2].replace(".", "/") / "__main__.py").exists()
        if text.split()[1] == "-m"
        else (REPOSITORY / text.split()[1]).exists()
    ),
}
"""What can not be run here, by program: what it names has to be there."""


def test_everything_else_names_things_that_exist() -> None:
    unknown = [command for command in ALL if command.program not in {*CHECKED, "nupes", "curl"}]
    assert not unknown
    wrong = [command for command in ALL if command.program in CHECKED and not CHECKED[command.program](command.text)]
    assert not wrong
