"""The command line as scripts see it: exit codes, stdout, stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, get_type_hints
from xml.etree import ElementTree

import pytest
from pydantic import BaseModel
from rich.console import Console

from nupes_client.cli import histogram, output
from nupes_client.cli.application import run
from nupes_client.cli.exits import ExitCode, NupesExit
from nupes_client.cli.following import Keepsakes, follow
from nupes_client.cli.groups import ActivationOptions, CalibrationOptions, LearningOptions
from nupes_client.cli.options import GATES, Optimize
from nupes_client.cli.wish import Wish
from nupes_client.client import Client
from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.specs import (
    ActivationSpec,
    CalibrationSpec,
    DatasetRef,
    GatesSpec,
    JobCreate,
    JobSpec,
    ModelRef,
    OptimizeSpec,
    WeightSpec,
)
from tests.app.jobrows import make_layer
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
    shown = subprocess.run([NUPES, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(command in shown for command in ("quantize", "upload", "artifacts", "up"))
    # 0.4 s alone on a core, and slower where all is: held against the libraries that it can not do without.
    assert _quickest([NUPES, "--help"]) < 5 * _quickest([sys.executable, "-c", "import typer, rich.table"])


def _quickest(command: list[str]) -> float:
    """The least of three runs, in seconds."""
    spans = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run(command, capture_output=True, check=True)
        spans.append(time.monotonic() - began)
    return min(spans)


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
        ["metrics", "job_unknown"],
        ["keys", "create", "ci"],
        ["keys", "create", "ci", "--scope", "everything"],
        ["keys", "create", "ci", "--scope", "jobs:read", "--expires-in", "soon"],
        ["keys", "rotate", "key_unknown"],
        ["workers", "no-such-argument"],
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
        (["--exponent", "0.5", "--exponent-scope", "row"], ["--exponent 0.5", "--exponent-scope", "Leave one"]),
        (["--steps", "0"], ["--steps says", "--optimize data-driven"]),
        (["--no-learn-codes"], ["--no-learn-codes says", "--optimize data-driven"]),
        (["--optimize", "data-driven", "--learning-rate", "2"], ["--learning-rate: "]),
        (["--calibration-samples", "9"], ["--calibration: ", "--optimize data-driven"]),
        (["--calibration-column", "body"], ["--calibration-column", "--calibration FILE"]),
        (["--optimize", "data-driven", "--calibration-dataset", "a b"], ["REPO@REVISION:FILE", "org/name@main"]),
        (["--activation-grid", "power"], ["--activation-grid is about", "--activation-bits 8"]),
        (["--activation-bits", "8", "--activation-scaling", "static"], ["--calibration: ", "--calibration FILE"]),
        (["--activation-bits", "8", "--activation-range", "percentile"], ["--activation-scaling static"]),
        (
            ["--format", "compressed-tensors", "--bits", "5"],
            ["--format: compressed-tensors holds weights of 4 or 8 bits", "asks for 5", "another --format"],
        ),
        (
            ["--format", "nupes", "--format", "gguf", "--activation-bits", "8"],
            ["--format: gguf holds weights alone", "leave --activation-bits out"],
        ),
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
        "quantize": [*GATES, "org/name@revision", "[default: (lm_head)]", "[default: (nupes)]", "Learning on data"],
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
    complaint = capsys.readouterr().err
    assert "no such file or folder" in complaint
    assert "models/typo@main" in complaint
    for path in ("./typo", "../typo", "/typo", "models/deep/typo", "typo/"):
        assert run(["quantize", path]) == 6
        complaint = capsys.readouterr().err
        assert "Check the path." in complaint
        assert "@main" not in complaint
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


def wished(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The resolved configuration of the job that `nupes quantize` makes."""
    assert run(["quantize", *arguments, "--json"]) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out)["config"])


def test_a_wish_without_options_is_the_default_of_the_service(
    booklm: Path, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    config = wished([str(booklm)], capsys)
    default = JobSpec(model=ModelRef(id=config["model"]["id"]))
    assert config == default.model_dump(mode="json")
    learnt = wished([str(booklm), "--optimize", "data-driven", "--activation-bits", "8"], capsys)
    assert learnt["optimize"] == OptimizeSpec(mode="data_driven").model_dump(mode="json")
    assert learnt["calibration"] == CalibrationSpec().model_dump(mode="json")
    assert learnt["activations"] == ActivationSpec().model_dump(mode="json")


def test_every_option_of_learning_on_data_reaches_the_job(
    booklm: Path, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.jsonl").write_text('{"body": "some words"}\n')
    learning = "--optimize data-driven --steps 7 --learning-rate 0.25 --batch-size 3 --no-error-feedback "
    learning += "--no-learn-codes --no-learn-exponent --no-learn-scales --tweak-norms"
    data = f"--calibration {tmp_path}/data.jsonl --calibration-column body --calibration-samples 9 "
    data += "--calibration-length 33"
    activations = "--activation-bits 6 --activation-grid power --activation-scaling static "
    activations += "--activation-range percentile --no-smooth"
    config = wished([str(booklm), *f"{learning} {data} {activations}".split()], capsys)
    assert config["optimize"] == {
        "mode": "data_driven",
        "error_feedback": False,
        "learn_codes": False,
        "learn_exponent": False,
        "learn_scales": False,
        "tweak_norms": True,
        "steps": 7,
        "learning_rate": 0.25,
        "batch_size": 3,
    }
    upload = client.uploads.send(tmp_path / "data.jsonl")
    assert config["calibration"] == {
        "text": {"upload_id": upload.id},
        "dataset": None,
        "column": "body",
        "samples": 9,
        "length": 33,
    }
    assert config["activations"] == {
        "bits": 6,
        "grid": "power",
        "scaling": "static",
        "range": "percentile",
        "smooth": False,
    }


@pytest.mark.parametrize(
    ("group", "prefix", "schema"),
    [
        (LearningOptions, "", OptimizeSpec),
        (CalibrationOptions, "calibration_", CalibrationSpec),
        (ActivationOptions, "activation_", ActivationSpec),
    ],
)
def test_help_tells_the_defaults_of_the_service(group: type, prefix: str, schema: type[BaseModel]) -> None:
    told = {
        name.removeprefix(prefix): hint.__metadata__[0].show_default
        for name, hint in get_type_hints(group, include_extras=True).items()
    }
    strings = {name: shown for name, shown in told.items() if isinstance(shown, str) and name in schema.model_fields}
    defaults = {name: str(schema.model_fields[name].default) for name in strings if name != "bits"}
    assert {name: shown for name, shown in strings.items() if name != "bits"} == defaults
    assert len(defaults) == 3


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("wiki", {"repo_id": "wiki", "revision": "main", "file": None}),
        ("org/wiki", {"repo_id": "org/wiki", "revision": "main", "file": None}),
        ("org/wiki@refs/pr/1", {"repo_id": "org/wiki", "revision": "refs/pr/1", "file": None}),
        ("org/wiki:a/b c.jsonl", {"repo_id": "org/wiki", "revision": "main", "file": "a/b c.jsonl"}),
        ("org/wiki@v1.0:train.csv", {"repo_id": "org/wiki", "revision": "v1.0", "file": "train.csv"}),
    ],
)
def test_a_data_set_of_the_hub_is_named_with_revision_and_file(argument: str, expected: dict[str, Any]) -> None:
    options = CalibrationOptions(calibration_dataset=argument, calibration_column="body", calibration_samples=5)
    wish = Wish((LearningOptions(optimize=Optimize.DATA_DRIVEN), options))
    calibration = wish.body("mdl_x", {}).calibration
    assert calibration is not None
    assert calibration.dataset == DatasetRef(**expected, column="body")
    assert calibration.samples == 5


def test_a_file_that_is_no_text_is_refused_before_a_job_is_made(
    booklm: Path, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n")
    for command in ("plan", "quantize"):
        arguments = [command, str(booklm), "--optimize", "data-driven", "--calibration", str(tmp_path / "picture")]
        assert run(arguments) == 6
        assert "UTF-8" in capsys.readouterr().err
    assert list(client.jobs.list()) == []


def test_plan_says_what_learning_on_data_would_cost(booklm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(booklm), "--optimize", "data-driven", "--steps", "5", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["config"]["optimize"]["steps"] == 5
    assert planned["config"]["calibration"]["samples"] == 128


def test_curves_are_told_in_a_line_each(
    service: RunningService, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fence = work.start(service.database, job_id)
    work.measure(service.database, job_id, fence, "loss/model.layers.0", [4.0, 1.0, 2.5])
    work.measure(service.database, job_id, fence, "loss/model.layers.1", [8.0])
    assert run(["metrics", job_id]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["loss/model.layers.0", "3", "4", "1", "2.5"]
    assert second.split() == ["loss/model.layers.1", "1", "8", "8", "8"]
    assert run(["metrics", job_id, "--series", "loss/model.layers.1", "--json"]) == 0
    (series,) = json.loads(capsys.readouterr().out)
    assert series["points"] == [{"step": 0, "value": 8.0}]


def test_a_job_without_curves_has_none_to_show(job_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["metrics", job_id]) == 0
    assert "nothing of this job was learnt" in capsys.readouterr().err


@pytest.mark.parametrize("learnt", [True, False])
def test_layers_show_what_learning_moved_where_there_was_any(
    service: RunningService, job_id: str, learnt: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"codes_moved": 0.125, "activation_bits": 8} if learnt else {}
    work.succeed(service.database, job_id, layers=[make_layer("a", **figures), make_layer("b")])
    assert run(["layers", job_id]) == 0
    shown = capsys.readouterr().out
    assert ("codes moved" in shown) == ("12.5%" in shown) == learnt


HISTOGRAM = [0] * 16 + [100] * 16 + [50] * 16 + [1] + [0] * 15


def test_layers_draws_the_histogram_of_one_layer_with_the_levels_of_its_grid(
    service: RunningService, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = make_layer("a", bits=3, layout="midrise", exponent=1.0, histogram=HISTOGRAM)
    work.succeed(service.database, job_id, layers=[counted, make_layer("b"), make_layer("c", bits=None)])
    assert run(["layers", job_id, "--histogram", "a"]) == 0
    table, _, drawing = capsys.readouterr().out.partition("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["layer", "a"]
    bars, marks = drawing.splitlines()[: histogram.ROWS], drawing.splitlines()[histogram.ROWS]
    assert bars[0] == " " * 16 + "█" * 16
    assert bars[-1] == " " * 16 + "█" * 32 + "▁"
    assert [place for place, mark in enumerate(marks) if mark == "│"] == [0, 9, 18, 27, 36, 45, 54, 63]
    assert "8 levels, exponent 1.000, layout midrise" in drawing
    assert "2,401 weights" in drawing


def test_a_histogram_is_in_the_json_of_who_asks_for_it_and_other_json_stays_as_it_was(
    service: RunningService, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work.succeed(service.database, job_id, layers=[make_layer("a", histogram=HISTOGRAM), make_layer("b")])
    assert run(["layers", job_id, "--json"]) == 0
    assert [(each["name"], each["histogram"]) for each in json.loads(capsys.readouterr().out)] == [
        ("a", None),
        ("b", None),
    ]
    assert run(["layers", job_id, "--histogram", "a", "--json"]) == 0
    assert [each["histogram"] for each in json.loads(capsys.readouterr().out)] == [HISTOGRAM]


def test_a_layer_without_a_histogram_says_why_and_an_unknown_one_where_to_look(
    service: RunningService, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left = make_layer("head", bits=None, exponent=None, layout=None, skipped_reason="excluded by a pattern")
    work.succeed(service.database, job_id, layers=[left, make_layer("old")])
    for name, why in (("head", "excluded by a pattern"), ("old", "none was counted")):
        assert run(["layers", job_id, "--histogram", name]) == 0
        assert f"no histogram: {why}" in capsys.readouterr().err
    assert run(["layers", job_id, "--histogram", "none"]) != 0
    told = capsys.readouterr().err
    assert "no layer none" in told
    assert f"nupes layers {job_id}" in told


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
    assert ("gate max_bytes (nupes): 2 (limit 1) FAILED" in printed.out) == (outcome == "gate")


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


@pytest.mark.parametrize(("passed", "code", "failures"), [(True, 0, "0"), (False, 2, "1")])
def test_a_pipeline_gets_a_test_case_for_each_gate(
    service: RunningService, job_id: str, tmp_path: Path, passed: bool, code: int, failures: str
) -> None:
    work.succeed(service.database, job_id, gate_passed=passed)
    assert run(["job", job_id, "--junit", str(tmp_path / "reports" / "nupes.xml")]) == code
    suite = ElementTree.parse(tmp_path / "reports" / "nupes.xml").getroot()
    assert sum(int(each.get("failures", "0")) for each in suite.iter("testsuite")) == int(failures)
    assert any("max_bytes" in str(case.get("name")) for case in suite.iter("testcase"))


def test_a_pipeline_that_waited_too_long_has_a_report_with_the_id_of_the_job(job_id: str, tmp_path: Path) -> None:
    target = tmp_path / "nupes.xml"
    assert run(["job", job_id, "--wait", "--timeout", "0.2", "--junit", str(target)]) == 5
    (suite,) = ElementTree.parse(target).getroot()
    (error,) = suite.iter("error")
    assert (error.get("type"), suite.get("errors")) == ("job_queued", "1")
    assert job_id in str(error.get("message"))
    assert {each.get("name"): each.get("value") for each in suite.iter("property")}["job"] == job_id


def test_a_service_that_goes_away_while_one_waits_does_not_take_the_id_along(
    client: Client, job_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = client.jobs.get(job_id)
    with Client("http://127.0.0.1:9", "npk_none", attempts=1) as gone, pytest.raises(NupesExit) as left:
        follow(gone, job, timeout_s=5, keep=Keepsakes(junit=tmp_path / "nupes.xml"), as_json=True)
    assert left.value.code is ExitCode.USAGE
    printed = capsys.readouterr()
    assert json.loads(printed.out)["id"] == job_id
    assert f"nupes job {job_id} --wait" in printed.err
    assert job_id in (tmp_path / "nupes.xml").read_text()


def test_ctrl_c_while_waiting_leaves_the_job_running(job_id: str, client: Client) -> None:
    process = subprocess.Popen(
        [NUPES, "job", job_id, "--wait"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # a shell that starts the tests in the background hands them an ignored SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "queued" in first
    process.send_signal(signal.SIGINT)
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


def test_keys_are_made_shown_rotated_and_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "create", "ci", "--scope", "jobs:read", "--expires-in", "90d"]) == 0
    shown = capsys.readouterr()
    secret, key_id = shown.out.strip(), shown.err.split()[1].rstrip(";")
    assert secret.startswith("nupes_")
    assert run(["keys", "rotate", key_id, "--overlap", "15m", "--json"]) == 0
    rotated = json.loads(capsys.readouterr().out)
    assert rotated["secret"] != secret
    assert rotated["previous_until"]
    assert rotated["expires_at"]
    assert run(["keys", "show", key_id]) == 0
    assert "jobs:read" in capsys.readouterr().out
    assert run(["keys", "revoke", key_id]) == 0
    capsys.readouterr()
    assert run(["keys", "--json"]) == 0
    listed = {key["id"]: key for key in json.loads(capsys.readouterr().out)}
    assert listed[key_id]["revoked_at"]
    assert "secret" not in listed[key_id]
    assert run(["keys", "list"]) == 0
    own = next(key for key in listed if key != key_id)
    assert key_id in capsys.readouterr().out
    assert run(["keys", "revoke", own]) == 6
    assert "keys:manage" in capsys.readouterr().err


def test_usage_and_audit_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "create", "ci", "--scope", "jobs:read"]) == 0
    capsys.readouterr()
    assert run(["usage"]) == 0
    assert "requests per minute" in capsys.readouterr().out
    assert run(["audit", "--json"]) == 0
    assert [entry["action"] for entry in json.loads(capsys.readouterr().out)] == ["key.created"]
    assert run(["audit"]) == 0
    assert "key.created" in capsys.readouterr().out


def test_a_report_goes_to_stdout_or_into_a_file(
    service: RunningService,
    job_id: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(["report", job_id]) == 6
    assert "only an ended job" in capsys.readouterr().err
    work.succeed(service.database, job_id, gate_passed=False)
    assert run(["report", job_id]) == 0
    assert "| max\\_bytes |" in capsys.readouterr().out
    with monkeypatch.context() as terminal:
        terminal.setattr(output, "stdout", lambda: Console(force_terminal=True, width=100))
        assert run(["report", job_id]) == 0
    rendered = capsys.readouterr().out
    assert "max_bytes" in rendered
    assert "\\_" not in rendered
    assert run(["report", job_id, "--format", "junit", "-o", str(tmp_path / "gates.xml")]) == 0
    assert capsys.readouterr().out == ""
    suite = ElementTree.parse(tmp_path / "gates.xml").getroot()
    assert [case.get("name") for case in suite.iter("testcase")] == ["max_bytes (nupes)"]
    assert run(["report", job_id, "-o", str(tmp_path / "gates.xml" / "below-a-file")]) == 6


def test_logs_are_shown_in_part_or_followed_to_the_end(
    service: RunningService, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fence = work.start(service.database, job_id)
    assert run(["logs", job_id]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[2:4] for line in shown.splitlines()] == [["status", "queued"], ["status", "running"]]
    assert run(["logs", job_id, "--tail", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["to"] == "running"
    ending = threading.Timer(0.5, lambda: work.end(service.database, job_id, JobStatus.FAILED, fence))
    ending.start()
    assert run(["logs", job_id, "--follow"]) == 0
    ending.join()
    followed = capsys.readouterr().out
    assert followed.startswith(shown)
    assert [line.split()[3] for line in followed.splitlines()] == ["queued", "running", "failed"]


def test_jobs_are_put_side_by_side(
    service: RunningService, client: Client, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work.succeed(service.database, job_id, layers=[make_layer("blocks.0", sqnr_db=20.5)])
    other = client.jobs.create(JobCreate(model=client.jobs.get(job_id).config.model, weights=WeightSpec(bits=3)))
    assert run(["compare", job_id, other.id]) == 0
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert shown["weights:"] == ["bits", "4", "3"]
    assert shown["status"] == ["succeeded", "queued"]
    assert shown["blocks.0"] == ["4,", "20.50", "–"]
    assert run(["compare", job_id, other.id, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert [job["id"] for job in compared["jobs"]] == [job_id, other.id]
    assert compared["cautions"] == ["2 of 2 jobs have no measure of quality, and no dot in the chart of it."]
    assert run(["compare", job_id]) == 6


def test_layers_that_are_alike_in_all_jobs_are_left_out_unless_asked_for(
    service: RunningService, client: Client, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = client.jobs.create(JobCreate(model=client.jobs.get(job_id).config.model, weights=WeightSpec(bits=3)))
    for each, sqnr_db in ((job_id, 20.0), (other.id, 9.0)):
        layers = [make_layer("alike", sqnr_db=20.5), make_layer("unlike", sqnr_db=sqnr_db)]
        work.succeed(service.database, each, layers=layers)
    assert run(["compare", job_id, other.id]) == 0
    printed = capsys.readouterr()
    assert "unlike" in printed.out
    assert "alike" not in printed.out
    assert "1 of 2 layers are alike" in printed.err
    assert run(["compare", job_id, other.id, "--all-layers"]) == 0
    assert "alike" in capsys.readouterr().out


def test_jobs_are_listed_by_the_names_of_their_models(
    client: Client, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = client.models.get(client.jobs.get(job_id).config.model.id)
    assert run(["jobs"]) == 0
    assert f" {model.name} " in capsys.readouterr().out
    assert run(["jobs", "--status", "failed"]) == 0
    assert capsys.readouterr() == ("", "no such jobs\n")


def test_a_retry_names_the_job_it_repeats(
    service: RunningService, client: Client, job_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work.fail(service.database, job_id)
    assert run(["retry", job_id]) == 0
    assert client.jobs.get(capsys.readouterr().out.strip()).retry_of == job_id


def test_how_long_to_wait_and_whether_to_compute_again_reach_the_job(
    booklm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quantize", str(booklm), "--queue-timeout", "90", "--no-cache", "--json"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert (job["queue_timeout_s"], job["cache"]) == (90, False)
