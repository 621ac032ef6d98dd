from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.main import create_app
from app.settings import Settings
from tests.app.test_problems import problem
from tests.hubserver import Hub, hub_server
from tests.safetensors_files import CONFIG, folder, good, safetensors, sharded

REPO = "somebody/small-model"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What is special here is the hub."""
    return sqlite_url


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the service is set to."""
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("app.models.hub.TIMEOUT_S", 2.0)
        yield hub


def register(client: TestClient, repo_id: str = REPO, revision: str | None = None) -> Any:
    return client.post("/v1/models", json={"source": {"type": "hub", "repo_id": repo_id, "revision": revision}})


def test_a_model_is_resolved_to_a_commit(client: TestClient, hub: Hub) -> None:
    repository = hub.add(REPO, folder(tokenizer__json=b"{}"), card={"license": "apache-2.0"}, branches=("main", "v1"))
    for revision in (None, "main", "v1", repository.commit):
        model = register(client, revision=revision).json()
        assert model["source"]["commit"] == repository.commit
        assert model["source"]["revision"] == revision
    assert model["name"] == REPO
    assert model["license"] == "apache-2.0"
    assert (model["architecture"], model["params"], model["dtype"]) == ("LlamaForCausalLM", 6, "float32")
    assert {file["path"] for file in model["files"]} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert all(file["sha256"] is None for file in model["files"])


def test_weights_are_looked_at_and_not_downloaded(client: TestClient, hub: Hub) -> None:
    weights = good(dtype="F32", shape=(1024, 1024))
    hub.add(REPO, folder(model__safetensors=weights, tokenizer__json=b" " * 1_000_000))
    model = register(client).json()
    assert model["params"] == 1024 * 1024
    assert hub.bytes_sent < 200_000
    assert set(model["source"]["digests"]) == {"model.safetensors", "tokenizer.json"}
    ranges = {path: span for method, path, span in hub.requests if method == "GET" and "safetensors" in path}
    assert all(span for span in ranges.values())


def test_a_long_header_takes_a_second_request(client: TestClient, hub: Hub) -> None:
    names = tuple(f"model.layers.{number}.some.very.long.name.weight" for number in range(2000))
    hub.add(REPO, folder(model__safetensors=good(names)))
    assert register(client).json()["params"] == 12_000


def test_a_hub_that_ignores_ranges_is_read_no_further_than_needed(client: TestClient, hub: Hub) -> None:
    hub.ignore_ranges = True
    names = tuple(f"model.layers.{number}.some.very.long.name.weight" for number in range(2000))
    hub.add(REPO, folder(model__safetensors=good(names)))
    assert register(client).json()["params"] == 12_000


def test_shards_are_read_by_their_index(client: TestClient, hub: Hub) -> None:
    hub.add(REPO, sharded(3))
    assert register(client).json()["params"] == 18


def test_pickles_and_code_beside_safetensors_are_ignored_with_findings(client: TestClient, hub: Hub) -> None:
    config = {**CONFIG, "auto_map": {"AutoModel": "modeling.Model"}}
    extra = {
        "pytorch_model.bin": b"\x80\x04",
        "modeling.py": b"import os",
        ".gitattributes": b"",
        "onnx/model.bin": b"",
    }
    hub.add(REPO, folder(config__json=json.dumps(config).encode()) | extra)
    model = register(client).json()
    found = {(finding["code"], finding["path"]) for finding in model["findings"]}
    assert found == {
        ("file_ignored", "pytorch_model.bin"),
        ("file_ignored", "modeling.py"),
        ("key_dropped", "config.json"),
    }
    assert {file["path"] for file in model["files"]} == {"config.json", "model.safetensors"}


def test_a_repository_of_pickles_alone_is_refused(client: TestClient, hub: Hub) -> None:
    hub.add(REPO, {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04"})
    assert "pytorch_model.bin" in problem(register(client), 422, "unsafe_file").detail


def test_broken_safetensors_on_the_hub_are_refused(client: TestClient, hub: Hub) -> None:
    hub.add(REPO, folder(model__safetensors=safetensors({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}})))
    problem(register(client), 422, "unsafe_file")


def test_unknown_models_and_revisions_are_not_found(client: TestClient, hub: Hub) -> None:
    hub.add(REPO, folder())
    hub.add("somebody/private", folder(), token="hf_other")
    for repo_id in ("somebody/else", "somebody/private"):
        refused = problem(register(client, repo_id), 422, "model_not_found")
        assert refused.errors
        assert refused.errors[0].pointer == "/source/repo_id"
    refused = problem(register(client, revision="v9"), 422, "model_not_found")
    assert refused.errors
    assert refused.errors[0].pointer == "/source/revision"


@pytest.mark.parametrize("repo_id", ["a--b/c..d", "a/b/c", "../x", "-bad-", "a" * 201, "http://evil/x"])
def test_names_that_are_none_are_refused(client: TestClient, hub: Hub, repo_id: str) -> None:
    response = register(client, repo_id)
    assert response.status_code == 422
    assert all("evil" not in path for _, path, _ in hub.requests)


def test_a_gated_model_says_so(client: TestClient, hub: Hub) -> None:
    hub.add(REPO, folder(), gated=True)
    assert "NUPES_HUB_TOKEN" in str(problem(register(client), 422, "model_gated").hint)


def test_the_token_of_the_service_opens_gated_and_private_models(
    hub: Hub, settings: Settings, make_key: Callable[..., str]
) -> None:
    hub.add(REPO, folder(), gated=True, token="hf_ours")
    hub.add("somebody/private", folder(), token="hf_ours")
    with TestClient(create_app(settings.model_copy(update={"hub_token": SecretStr("hf_ours")}))) as client:
        client.headers["Authorization"] = f"Bearer {make_key()}"
        for repo_id in (REPO, "somebody/private"):
            response = register(client, repo_id)
            assert response.status_code == 201
            assert "hf_ours" not in response.text


def test_the_operators_own_token_is_not_used(client: TestClient, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    hub.add(REPO, folder(), token="hf_private")
    problem(register(client), 422, "model_not_found")


@pytest.mark.parametrize(("status", "answer"), [(429, 503), (500, 502), (503, 502)])
def test_a_hub_in_trouble_is_a_retryable_error(client: TestClient, hub: Hub, status: int, answer: int) -> None:
    hub.add(REPO, folder())
    hub.status = status
    response = register(client)
    assert problem(response, answer, "download_failed").retryable
    assert response.headers["Retry-After"] == "7"
    hub.status = None
    assert register(client).status_code == 201


def test_an_unreachable_hub_is_a_retryable_error(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    found = problem(register(client), 502, "download_failed")
    assert found.retryable
    assert found.hint is not None
    assert "upload" in found.hint


def test_an_answer_that_is_cut_short_is_a_retryable_error(client: TestClient, hub: Hub) -> None:
    hub.add(REPO, folder())
    hub.cut_bodies = True
    assert problem(register(client), 502, "download_failed").retryable


def test_a_service_can_do_without_a_hub(settings: Settings, make_key: Callable[..., str], hub: Hub) -> None:
    app: FastAPI = create_app(settings.model_copy(update={"hub": False}))
    with TestClient(app) as client:
        client.headers["Authorization"] = f"Bearer {make_key()}"
        problem(register(client), 403, "hub_disabled")
        assert client.get("/v1/capabilities").json()["hub"] is False
    assert hub.requests == []


DATASET = "somebody/words"


def calibrated_on(client: TestClient, hub: Hub, **dataset: Any) -> Callable[[str], Any]:
    """Ask for a job on this data set."""
    hub.add(REPO, folder())
    model_id = register(client).json()["id"]
    calibration = {"dataset": {"repo_id": DATASET, **dataset}}
    body = {"model": {"id": model_id}, "optimize": {"mode": "data_driven"}, "calibration": calibration}
    return lambda path: client.post(path, json=body)


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/jobs"])
def test_a_data_set_is_pinned_to_its_commit(client: TestClient, hub: Hub, path: str) -> None:
    repository = hub.add(f"datasets/{DATASET}", {"train.jsonl": b"{}"}, branches=("main", "v1"))
    answer = calibrated_on(client, hub, revision="v1", file="train.jsonl", column="body")(path).json()
    assert answer["config"]["calibration"]["dataset"] == {
        "repo_id": DATASET,
        "revision": repository.commit,
        "file": "train.jsonl",
        "column": "body",
    }
    asked = len(hub.requests)
    again = client.post(path, json=answer["config"]).json()
    assert again["config"] == answer["config"]
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("repository", "dataset", "code", "place"),
    [
        (None, {}, "dataset_not_found", "repo_id"),
        ({}, {"revision": "nope"}, "dataset_not_found", "revision"),
        ({}, {"file": "test.csv"}, "file_not_found", "file"),
        ({}, {"repo_id": "a/b/c"}, "string_pattern_mismatch", "repo_id"),
    ],
)
def test_a_data_set_that_can_not_be_read_is_refused_before_any_work(
    client: TestClient, hub: Hub, repository: dict[str, Any] | None, dataset: dict[str, str], code: str, place: str
) -> None:
    if repository is not None:
        hub.add(f"datasets/{DATASET}", {"train.jsonl": b"{}"}, **repository)
    submit = calibrated_on(client, hub, **dataset)
    for path in ("/v1/plans", "/v1/jobs"):
        response = submit(path)
        assert response.status_code == 422, response.text
        errors = [(error["code"], error["pointer"]) for error in response.json()["errors"]]
        assert errors == [(code, f"/calibration/dataset/{place}")]
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_hub_that_is_away_makes_no_job_and_says_what_to_do(client: TestClient, hub: Hub) -> None:
    submit = calibrated_on(client, hub)
    hub.status = 418
    refused = problem(submit("/v1/jobs"), 502, "download_failed")
    assert refused.retryable


def test_a_service_without_a_hub_takes_no_data_set(
    make_settings: Callable[..., Settings], database_url: str, make_key: Callable[..., str]
) -> None:
    secret = make_key()
    app = create_app(make_settings(database_url=database_url, hub=False))
    with TestClient(app, headers={"Authorization": f"Bearer {secret}"}) as client:
        body = {"model": {"id": "mdl_x"}, "optimize": {"mode": "data_driven"}}
        response = client.post("/v1/jobs", json={**body, "calibration": {"dataset": {"repo_id": DATASET}}})
    problem(response, 403, "hub_disabled")
