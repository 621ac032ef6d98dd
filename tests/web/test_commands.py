"""The form and the commands are as good as the schema: what they say means the same wish."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from app.web.commands import commands
from app.web.presets import PRESETS, Preset
from app.web.schema_form import Field, Group, job_form
from nupes_client.cli.application import app as cli
from nupes_client.schemas.jobs import Job
from nupes_client.schemas.specs import JobCreate
from tests.web.conftest import Site

MODEL = {"model": {"id": "mdl_1"}}
WISHES: list[dict[str, Any]] = [
    {},
    {"weights": {"bits": 3, "group_size": -1, "exponent": {"scope": "row"}, "layout": "paper", "scale_bits": 10}},
    {"weights": {"exponent": {"mode": "fixed", "value": 0.5}}, "layers": {"exclude": [], "embeddings": True}},
    {"optimize": {"mode": "data_driven", "learn_codes": False, "tweak_norms": True, "steps": 9}},
    {"optimize": {"mode": "data_driven"}, "calibration": {"samples": 7}},
    {
        "activations": {"bits": 4, "scaling": "static", "range": "percentile", "smooth": False},
        "calibration": {"length": 32},
    },
    {"evaluation": None, "formats": ["nupes", "dense"], "cache": False, "device": "gpu"},
    {"gates": {"max_kl": 0.1, "max_bytes": 5}, "labels": {"a": "b c"}, "name": "it's", "priority": -3, "seed": 2},
    {"timeout_s": 5, "queue_timeout_s": 6},
    {"push_to_hub": {"repo": "team/tiny", "secret": "team"}},
    {
        "formats": ["nupes", "dense"],
        "push_to_hub": {
            "repo": "team/tiny",
            "secret": "team",
            "private": False,
            "revision": "4-bit",
            "formats": ["dense"],
        },
    },
]


def wish(body: dict[str, Any]) -> JobCreate:
    return JobCreate.model_validate({**MODEL, **body})


@pytest.mark.parametrize("body", WISHES, ids=str)
def test_the_command_line_makes_the_same_job(site: Site, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]) -> None:
    wish = JobCreate.model_validate({"model": {"id": site.sample.model}, **body})
    monkeypatch.setenv("NUPES_URL", site.url)
    monkeypatch.setenv("NUPES_API_KEY", site.sample.secret)
    command = commands(wish, site.url).cli.removesuffix(" --wait")
    done = CliRunner().invoke(cli, [*shlex.split(command)[1:], "--json"])
    assert done.exit_code == 0, done.output
    made = Job.model_validate_json(done.stdout)
    about = {name: getattr(made, name) for name in ("device", "timeout_s", "queue_timeout_s", "cache")}
    said = {**made.config.model_dump(), "name": made.name, "labels": made.labels, "priority": made.priority, **about}
    assert JobCreate.model_validate(said) == wish


def test_files_and_data_sets_are_named_for_the_command_line() -> None:
    data = {"dataset": {"repo_id": "a/b", "revision": "r", "file": "f.csv", "column": "c"}}
    learnt = commands(wish({"optimize": {"mode": "data_driven"}, "calibration": data}), "http://service").cli
    assert "--calibration-dataset a/b@r:f.csv --calibration-column c" in learnt
    body = {"evaluation": {"metrics": ["fidelity", "perplexity"], "text": {"upload_id": "upl_1"}}}
    assert "--eval-text upl_1.txt" in commands(wish(body), "http://service").cli


def test_curl_and_the_pipeline_step_quote_what_users_write() -> None:
    said = commands(wish({"name": "it's $HOME"}), "http://service")
    words = shlex.split(said.curl.replace("\\\n", ""))
    assert JobCreate.model_validate_json(words[-1]) == wish({"name": "it's $HOME"})
    options = said.action.split("options: |\n")[1]
    assert "--name=it's $HOME" in shlex.split(options)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.title)
def test_every_preset_is_a_wish(preset: Preset) -> None:
    assert wish(preset.body)


def fields(group: Group) -> Iterator[Field]:
    for part in group.parts:
        yield from [part] if isinstance(part, Field) else fields(part)


def leaves(value: Any, pointer: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{pointer}/{name}")
    else:
        yield pointer


def test_the_form_has_a_field_for_all_that_can_be_wished() -> None:
    everything = wish(
        {
            "activations": {},
            "optimize": {"mode": "data_driven"},
            "calibration": {"dataset": {"repo_id": "a/b"}},
            "evaluation": {"metrics": ["perplexity"], "text": {"upload_id": "upl_1"}},
            "gates": {},
            "push_to_hub": {"repo": "team/tiny", "secret": "team"},
        }
    ).model_dump(mode="json")
    known = {field.pointer for field in fields(job_form())}
    elsewhere = {"/model/id", "/method", "/target", "/calibration/text"}
    assert set(leaves(everything)) - elsewhere <= known


def test_the_form_of_a_job_shows_its_wish() -> None:
    body = wish({"weights": {"bits": 3}, "evaluation": None, "labels": {"a": "b"}, "layers": {"exclude": ["x", "y"]}})
    form = job_form(body.model_dump(mode="json"))
    shown = {field.pointer: field.value for field in fields(form)}
    assert shown["/weights/bits"] == "3"
    assert shown["/labels"] == "a=b"
    assert shown["/layers/exclude"] == "x\ny"
    assert not next(part for part in form.parts if isinstance(part, Group) and part.pointer == "/evaluation").on
