"""The command line as scripts see it: exit codes, stdout, stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nupes_client.cli import output
from nupes_client.cli.application import run
from nupes_client.cli.options import GATES
from nupes_client.client import Client
from nupes_client.schemas.jobs import GatesSpec, JobCreate, ModelRef
from tests.client import work
from tests.client.conftest import RunningService

NUPES = Path(sys.executable).with_name("nupes")
pytestmark = pytest.mark.usefixtures("as_user")


@pytest.fixture
def job_id(client: Client, booklm: Path) -> str:
    model = client.models.from_folder(booklm)
    return client.jobs.create(JobCreate(model=ModelRef(id=model.id))).id


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = "import sys, nupes_client.cli.application as a; a._add_plugins(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "httpx", "fastapi", "sqlalchemy", "nupes_client.schemas"):
        assert f"'{heavy}'" not in loaded
    began = time.monotonic()
    shown = subprocess.run([NUPES, "--help"], capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - began < 3  # alone on a core: 0.4 s
    assert all(command in shown for command in ("quantize", "upload", "artifacts", "up"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize"],
        ["quantize", "mdl_x", "--bits", "9"],
        ["quantize", "mdl_x", "--bits", "1"],
        ["quantize", "mdl_x", "--group-size", "0"],
        ["quantize", "mdl_x", "--gate", "no_such_gate=1"],
        ["quantize", "mdl_x", "--gate", "max_perplexity_increase_pct=2"],
        ["quantize", "mdl_x", "--gate", "max_kl"],
        ["quantize", "mdl_x", "--exponent", "9"],
        ["quantize", "./no/such/folder"],
        ["quantize", "mdl_unknown"],
        ["job", "job_unknown"],
        ["upload", "no-such-file"],
        ["no-such-command"],
        ["jobs", "--no-such-option"],
        ["keys", "--create", "ci"],
    ],
)
def test_wrong_usage_exits_6_with_words_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 6
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gate", "max_loss=1"], ["--gate max_loss", "max_kl", "min_coverage_pct"]),
        (["--gate", "max_perplexity_increase_pct=1"], ["--eval-text FILE"]),
        (["--gate", "max_kl=1", "--no-eval"], ["leave --no-eval out"]),
        (["--gate", "max_kl=low"], ["--gate max_kl: "]),
        (["--group-size", "0"], ["--group-size: "]),
        (["--exponent", "9"], ["--exponent: "]),
        (["--exclude", "["], ["--exclude: ", "regular expression"]),
        (["--exponent-scope", "group", "--scale-bits", "5"], ["scale_bits must be 6"]),
    ],
)
def test_a_wrong_wish_is_refused_in_the_words_of_the_command_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quantize", "mdl_x", *arguments]) == 6
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


def test_help_names_every_gate_and_default() -> None:
    assert set(GATES) == GatesSpec.model_fields.keys()
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    for command, words in {
        "quantize": [*GATES, "org/name@revision", "[default: (lm_head)]", "[default: (nupes)]"],
        "up": ["NUPES_DATA_DIR or ~/.nupes", "NUPES_PORT or 8000"],
    }.items():
        shown = subprocess.run([NUPES, command, "-h"], capture_output=True, text=True, check=True, env=environment)
        flat = " ".join(shown.stdout.replace("│", " ").split())
        assert all(word in flat for word in words), shown.stdout


def test_a_mistyped_path_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(["quantize", "models/typo"]) == 6
    assert "no such file or folder" in capsys.readouterr().err
    assert run(["quantize", "models/typo@main"]) == 6
    assert "hub" in capsys.readouterr().err


def test_nothing_need_be_excluded(booklm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", str(booklm), "--exclude", "", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["layers"]["exclude"] == []


def test_errors_are_json_too_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["job", "job_unknown", "--json"]) == 6
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["code"] == "not_found"
    assert "request req_" in printed.err


def test_a_wrong_key_exits_6_and_says_where_keys_come_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUPES_API_KEY", "nupes_wrong")
    assert run(["jobs"]) == 6
    assert "NUPES_API_KEY" in capsys.readouterr().err


def test_no_service_exits_6_and_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUPES_URL", "http://127.0.0.1:9")
    assert run(["jobs"]) == 6
    assert "nupes up" in capsys.readouterr().err


def test_a_folder_sent_twice_prints_the_same_model(booklm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upload", str(booklm)]) == 0
    first = capsys.readouterr().out.strip()
    assert first.startswith("mdl_")
    assert run(["upload", str(booklm), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == first


def test_what_the_service_has_is_not_said_to_be_sent(booklm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run(["upload", str(booklm)]), run(["upload", str(booklm)])] == [0, 0]
    said = capsys.readouterr().err
    assert said.count("sent: 12.0 MB") == 1
    assert said.count("sent: nothing new") == 1


def test_a_single_file_prints_its_upload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("words")
    assert run(["upload", str(tmp_path / "text.txt")]) == 0
    assert capsys.readouterr().out.startswith("upl_")


def test_quantize_prints_the_job_and_the_same_wish_finds_it_again(
    booklm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words to measure on")
    wish = ["quantize", str(booklm), "--bits", "3", "--eval-text", str(text), "--gate", "max_perplexity_increase_pct=2"]
    wish += ["--label", "pipeline=nightly", "--format", "nupes", "--format", "dense"]
    assert run(wish) == 0
    job_id = capsys.readouterr().out.strip()
    assert run([*wish, "--json"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert job["id"] == job_id
    assert job["config"]["weights"]["bits"] == 3
    assert job["config"]["formats"] == ["nupes", "dense"]
    assert job["config"]["gates"]["max_perplexity_increase_pct"] == 2
    assert job["labels"] == {"pipeline": "nightly"}
    assert run(["jobs", "--label", "pipeline=nightly", "--json"]) == 0
    assert [item["id"] for item in json.loads(capsys.readouterr().out)] == [job_id]


def test_plan_says_what_it_would_cost(booklm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(booklm), "--bits", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["artifact_bytes"] > 0
    assert run(["plan", str(booklm), "--bits", "4"]) == 0
    assert "bits per weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("outcome", "code"), [("succeeded", 0), ("gate", 2), ("failed", 3), ("cancelled", 4), ("waiting", 5)]
)
def test_the_exit_code_says_how_the_job_ended(
    service: RunningService, job_id: str, outcome: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    endings = {
        "succeeded": lambda: work.succeed(service.database, job_id),
        "gate": lambda: work.succeed(service.database, job_id, gate_passed=False),
        "failed": lambda: work.fail(service.database, job_id),
        "cancelled": lambda: run(["cancel", job_id]),
        "waiting": lambda: None,
    }
    ending = threading.Timer(0.5, endings[outcome])
    ending.start()
    assert run(["job", job_id, "--wait", "--timeout", "2" if outcome == "waiting" else "20"]) == code
    ending.join()
    printed = capsys.readouterr()
    assert ("1.0 MB" in printed.out) == (outcome in ("succeeded", "gate"))
    assert ("disk_full" in printed.err) == (outcome == "failed")
    assert ("FAILED" in printed.out) == (outcome == "gate")


def test_waiting_with_json_keeps_stdout_for_the_machine(
    service: RunningService, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work.succeed(service.database, job_id)
    assert run(["job", job_id, "--wait", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == "succeeded"
    assert "succeeded" in printed.err


def test_a_ci_step_gets_its_summary(
    service: RunningService, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    work.succeed(service.database, job_id, gate_passed=True)
    assert run(["job", job_id, "--wait"]) == 0
    assert "| size | 1.0 MB | 300.0 kB | -70.0% |" in (tmp_path / "summary.md").read_text()


def test_ctrl_c_while_waiting_leaves_the_job_running(job_id: str, client: Client) -> None:
    process = subprocess.Popen(
        [NUPES, "job", job_id, "--wait"], stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "queued" in first
    process.send_signal(2)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"nupes job {job_id} --wait" in rest
    assert client.jobs.get(job_id).status.value == "queued"


def test_cancel_twice_is_fine(job_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run(["cancel", job_id]), run(["cancel", job_id])] == [0, 0]
    assert capsys.readouterr().out.count("cancelled") == 2


def test_an_ended_job_is_retried_as_a_new_one(
    service: RunningService, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["retry", job_id]) == 6
    assert "only an ended job" in capsys.readouterr().err
    work.fail(service.database, job_id)
    assert [run(["retry", job_id]), run(["retry", job_id])] == [0, 0]
    printed = capsys.readouterr().out.split()
    assert printed[0] == printed[1] != job_id


def test_a_narrow_pipe_cuts_no_ids(job_id: str) -> None:
    shown = subprocess.run(
        [NUPES, "jobs"], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "40"}
    )
    assert job_id in shown.stdout


@pytest.mark.parametrize(
    ("value", "shown"), [(3412345.0, "3,412,345"), (2.1689, "2.169"), (0.00617807, "0.006178"), (10, "10"), (None, "–")]
)
def test_figures_are_readable_whatever_their_size(value: float | None, shown: str) -> None:
    assert output.number(value) == shown
