"""The GitHub Action and the GitLab template: their own steps, run as a runner does, against a real service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from nupes_client.client import Client
from tests.client import work
from tests.client.conftest import RunningService
from tests.servers import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text())
INSTALL, QUANTIZE = ACTION["runs"]["steps"]
TEMPLATE = yaml.safe_load((REPOSITORY / "examples" / "ci" / "gitlab.yml").read_text())[".nupes"]
WORKFLOW = yaml.safe_load((REPOSITORY / "examples" / "ci" / "github.yml").read_text())
_INPUT = re.compile(r"\$\{\{ inputs\.([\w-]+) \}\}")


@contextmanager
def a_worker(service: RunningService, client: Client, *, gate_passed: bool) -> Iterator[None]:
    """End the tenant's next job as a worker would."""

    def wait_and_end() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if waiting := list(client.jobs.list()):
                work.succeed(service.database, waiting[0].id, gate_passed=gate_passed)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait_and_end)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


def environment(tmp_path: Path, extra: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NUPES_")}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return {**kept, "PATH": path, "NUPES_DATA_DIR": str(tmp_path / "none"), **extra}


def act(tmp_path: Path, inputs: Mapping[str, str]) -> tuple[int, dict[str, str], str]:
    """Run the action's main step in a workspace; return exit code, outputs and what it printed."""
    given = {name: spec.get("default") for name, spec in ACTION["inputs"].items()} | dict(inputs)
    assert None not in given.values(), "a required input is missing"
    step_env = {name: _INPUT.sub(lambda match: given[match[1]], value) for name, value in QUANTIZE["env"].items()}
    files = {"GITHUB_OUTPUT": tmp_path / "outputs", "GITHUB_STEP_SUMMARY": tmp_path / "summary.md"}
    for file in files.values():
        file.touch()
    runner = {"RUNNER_TEMP": str(tmp_path), **{name: str(file) for name, file in files.items()}}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", QUANTIZE["run"]],
        cwd=tmp_path,
        env=environment(tmp_path, {**step_env, **runner}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    return done.returncode, outputs, done.stdout + done.stderr


@pytest.mark.parametrize(("passed", "code", "verdict"), [(True, 0, "passed"), (False, 2, "failed")])
def test_the_action_ends_as_the_gates_do_and_leaves_outputs_report_and_summary(
    service: RunningService,
    client: Client,
    key: str,
    booklm: Path,
    tmp_path: Path,
    passed: bool,
    code: int,
    verdict: str,
) -> None:
    inputs = {"url": service.url, "api-key": key, "model": str(booklm), "gates": "max_bytes=1\n", "bits": "3"}
    with a_worker(service, client, gate_passed=passed):
        returned, outputs, said = act(tmp_path, {**inputs, "options": "--group-size 32\n'--name=from a pipeline'"})
    assert returned == code, said
    (job,) = client.jobs.list()
    assert outputs == {"job-id": job.id, "status": "succeeded", "verdict": verdict, "bytes-after": "300000"}
    assert (job.config.weights.bits, job.config.weights.group_size, job.name) == (3, 32, "from a pipeline")
    cases = ElementTree.parse(tmp_path / "nupes-report.xml").getroot().iter("testcase")
    assert "max_bytes (nupes)" in [case.get("name") for case in cases]
    assert "### NUPES" in (tmp_path / "summary.md").read_text()


def test_a_key_of_the_scopes_that_the_action_names_is_enough_and_a_timeout_still_names_the_job(
    service: RunningService, client: Client, booklm: Path, tmp_path: Path
) -> None:
    scopes = re.findall(r"--scope (\S+)", ACTION["inputs"]["api-key"]["description"])
    key = client.keys.create("pipeline", scopes).secret
    inputs = {"url": service.url, "api-key": key, "model": str(booklm), "timeout": "1"}
    returned, outputs, said = act(tmp_path, inputs)
    (job,) = client.jobs.list()
    assert returned == 5, said
    assert outputs == {"job-id": job.id, "status": "queued", "verdict": "", "bytes-after": ""}
    assert job.id in (tmp_path / "summary.md").read_text()


def test_what_an_input_says_is_never_run(service: RunningService, key: str, tmp_path: Path) -> None:
    evil = '"; touch evil; echo $(touch evil) `touch evil`'
    inputs = {"url": service.url, "api-key": key, "model": evil, "gates": evil, "options": evil, "bits": evil}
    returned, outputs, _ = act(tmp_path, inputs)
    assert returned == 6
    assert outputs["job-id"] == ""
    assert not (tmp_path / "evil").exists()
    assert "${{" not in QUANTIZE["run"] + INSTALL["run"]


def test_an_absent_service_is_told_in_words(key: str, booklm: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    returned, _, said = act(tmp_path, {"url": url, "api-key": key, "model": str(booklm)})
    assert returned == 6
    assert url in said


def test_every_output_of_the_action_is_one_of_its_step() -> None:
    assert all(spec["value"] == f"${{{{ steps.quantize.outputs.{name} }}}}" for name, spec in ACTION["outputs"].items())
    assert {match for value in QUANTIZE["env"].values() for match in _INPUT.findall(value)} == set(ACTION["inputs"])


def test_the_example_workflow_gives_the_action_what_it_asks_for() -> None:
    (step,) = [each for each in WORKFLOW["jobs"]["quantize"]["steps"] if each.get("id") == "nupes"]
    required = {name for name, spec in ACTION["inputs"].items() if spec.get("required")}
    assert required <= set(step["with"]) <= set(ACTION["inputs"])


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 2)])
def test_the_gitlab_template_fails_with_the_gates_and_reports_them(
    service: RunningService, client: Client, key: str, booklm: Path, tmp_path: Path, passed: bool, code: int
) -> None:
    variables: dict[str, Any] = {
        **TEMPLATE["variables"],
        "NUPES_URL": service.url,
        "NUPES_API_KEY": key,
        "NUPES_MODEL": str(booklm),
        "NUPES_GATES": "max_bytes=1 min_coverage_pct=1",
        "NUPES_OPTIONS": "--name gitlab",
    }
    script = "\n".join(["set -e", *TEMPLATE["script"]])
    with a_worker(service, client, gate_passed=passed):
        done = subprocess.run(
            ["sh", "-c", script], cwd=tmp_path, env=environment(tmp_path, variables), timeout=120, check=False
        )
    assert done.returncode == code
    (job,) = client.jobs.list()
    assert job.name == "gitlab"
    assert {gate for gate, limit in job.config.gates if limit is not None} == {"max_bytes", "min_coverage_pct"}
    assert (tmp_path / TEMPLATE["artifacts"]["reports"]["junit"]).is_file()
