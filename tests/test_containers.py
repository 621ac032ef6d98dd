"""The container files name things that exist: modules, targets, settings."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]


def modules() -> set[str]:
    """Every `python -m MODULE` of both files, the usage comments included."""
    text = DOCKERFILE + (ROOT / "docker-compose.yml").read_text()
    return set(re.findall(r'(?:"-m", "|python -m )([\w.]+)', text)) - {"venv"}


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_that_is_started_exists(module: str) -> None:
    spec = find_spec(module)
    assert spec is not None
    if spec.submodule_search_locations is not None:
        assert find_spec(f"{module}.__main__") is not None


def test_every_service_is_there_and_built_from_a_target_of_the_dockerfile() -> None:
    assert {"api", "worker-cpu", "worker-gpu", "redis", "postgres"} <= SERVICES.keys()
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} <= targets
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]


def test_every_setting_handed_to_a_container_is_one_of_ours() -> None:
    known = {f"NUPES_{name.upper()}" for name in Settings.model_fields}
    given = {name for service in SERVICES.values() for name in service.get("environment", {})}
    assert {name for name in given if name.startswith("NUPES_")} <= known


def test_what_env_leaves_out_is_as_if_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    # Compose hands such variables over empty; an empty NUPES_S3_ENDPOINT_URL would be an address for boto3.
    default = Settings()
    left_out = re.findall(r"(NUPES_\w+): \$\{\w+:-\}", (ROOT / "docker-compose.yml").read_text())
    assert "NUPES_S3_ENDPOINT_URL" in left_out
    for name in left_out:
        monkeypatch.setenv(name, "")
    assert Settings() == default


def test_secrets_have_no_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for secret in ("POSTGRES_PASSWORD", "NUPES_SECRET_KEY"):
        uses = re.findall(rf"\$\{{{secret}[^}}]*\}}", text)
        assert uses
        assert all(use.startswith(f"${{{secret}:?") for use in uses)


def test_secrets_of_the_example_are_not_those_of_everybody() -> None:
    given = dict(line.split("=", 1) for line in (ROOT / "env.example").read_text().splitlines() if line[:1].isalpha())
    assert {name: given[name] for name in ("POSTGRES_PASSWORD", "NUPES_SECRET_KEY")} == {
        "POSTGRES_PASSWORD": "",
        "NUPES_SECRET_KEY": "",
    }, "compose refuses to start until they are chosen"


def test_no_hub_chosen_means_the_public_one() -> None:
    # An empty HF_ENDPOINT is an address for huggingface_hub, and one that never answers.
    endpoints = {service.get("environment", {}).get("HF_ENDPOINT") for service in SERVICES.values()} - {None}
    assert endpoints == {"${HF_ENDPOINT:-https://huggingface.co}"}


def test_images_run_without_root_and_say_how_they_are() -> None:
    for target in ("api", "worker"):
        stage = re.split(rf"^FROM runtime AS {target}$", DOCKERFILE, flags=re.MULTILINE)[1].split("\nFROM ")[0]
        assert "HEALTHCHECK" in stage
    assert re.search(r"^USER \d+$", DOCKERFILE, re.MULTILINE)
    for service in (service for service in SERVICES.values() if "build" in service):
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for backing in ("redis", "postgres"):
        assert "healthcheck" in SERVICES[backing]


def test_build_arguments_reach_the_stages_that_use_them() -> None:
    # Docker lets a stage inherit those of the one it is based on; other builders do not, and say nothing.
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE):
        declared = set(re.findall(r"^ARG (\w+)", stage, re.MULTILINE))
        assert set(re.findall(r"\$\{(\w+)\}", stage)) <= declared
