from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.db.session import Database
from app.db.tables import Job, Model
from app.models import headers, service
from app.storage import BlobStore
from nupes_core.header import parse_header
from tests.app.conftest import Sender
from tests.app.test_problems import problem
from tests.safetensors_files import CONFIG, folder, good, sharded


def test_a_model_is_made_of_uploads_and_described(send: Sender, client: TestClient) -> None:
    response = send.model(folder(tokenizer__json=b"{}", README__md=b"# hi"), name="mine")
    assert response.status_code == 201
    model = response.json()
    assert response.headers["Location"] == f"/v1/models/{model['id']}"
    assert model["name"] == "mine"
    assert (model["architecture"], model["model_type"]) == ("LlamaForCausalLM", "llama")
    assert (model["params"], model["dtype"]) == (6, "float32")
    assert model["bytes"] == len(good())
    assert {file["path"] for file in model["files"]} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    assert all(len(file["sha256"]) == 64 for file in model["files"])
    assert model["findings"] == []
    assert client.get(f"/v1/models/{model['id']}").json() == model
    assert client.get("/v1/models").json()["data"] == [model]


def test_the_bundled_model_is_accepted(send: Sender, booklm: Path) -> None:
    model = send.model({path.name: path.read_bytes() for path in booklm.iterdir()}).json()
    assert model["params"] == 5_868_800
    assert model["dtype"] == "bfloat16"
    assert model["model_type"] == "llama"


def test_shards_and_their_index_are_one_model(send: Sender) -> None:
    model = send.model(sharded(3)).json()
    assert model["params"] == 18
    assert model["dtype"] == "bfloat16"


def test_a_missing_shard_is_named(send: Sender) -> None:
    files = sharded(2)
    del files["model-00002-of-00002.safetensors"]
    refused = problem(send.model(files), 422, "unsafe_file")
    assert "model-00002-of-00002.safetensors" in refused.detail


def test_an_unknown_architecture_is_taken_on_the_level_of_tensors(send: Sender) -> None:
    response = send.model(folder(config__json=b'{"model_type": "brand-new", "architectures": ["Whatever"]}'))
    assert response.status_code == 201
    assert response.json()["model_type"] == "brand-new"


def test_a_model_without_configuration_is_taken_with_a_finding(send: Sender) -> None:
    model = send.model({"weights.safetensors": good()}).json()
    assert model["model_type"] is None
    assert [finding["code"] for finding in model["findings"]] == ["no_config"]


def test_keys_that_could_name_code_are_dropped_with_a_finding(send: Sender) -> None:
    config = {**CONFIG, "_name_or_path": "/x", "attn_implementation": "evil/kernel"}
    model = send.model(folder(config__json=json.dumps(config).encode())).json()
    messages = {finding["message"] for finding in model["findings"]}
    assert messages == {"dropped _name_or_path", "dropped attn_implementation"}


def test_the_stored_headers_are_the_headers_of_the_files(send: Sender, database: Database) -> None:
    files = sharded(2)
    model = send.model(files).json()
    with database.read() as session:
        stored, config = service.blueprint(session, model["id"])
    shards = {
        name: parse_header(content, len(content)) for name, content in files.items() if "safetensors" in name[-12:]
    }
    assert stored == shards
    assert config["model_type"] == "llama"
    assert headers.from_json(json.loads(json.dumps(headers.to_json(shards)))) == shards


def test_uploads_that_do_not_fit_are_named_by_their_place(client: TestClient, send: Sender) -> None:
    done, pending = send.upload(good())["id"], send.announce(b"x")["id"]

    def refusal(*files: dict[str, str]) -> tuple[str, str]:
        response = client.post("/v1/models", json={"source": {"type": "upload", "files": list(files)}})
        body = response.json()
        assert response.status_code == 422
        return body["code"], body["errors"][0]["pointer"]

    fine = {"path": "model.safetensors", "upload_id": done}
    assert refusal(fine, {"path": "a.json", "upload_id": "upl_none"}) == (
        "upload_not_found",
        "/source/files/1/upload_id",
    )
    assert refusal({"path": "a.json", "upload_id": pending}) == ("upload_pending", "/source/files/0/upload_id")
    assert refusal({**fine, "sha256": "0" * 64}) == ("checksum_mismatch", "/source/files/0/sha256")
    assert refusal(fine, fine) == ("validation_error", "/source/files/1/path")


def test_another_tenants_upload_does_not_exist(send: Sender, stranger: TestClient) -> None:
    files = [{"path": "model.safetensors", "upload_id": send.upload(good())["id"]}]
    response = stranger.post("/v1/models", json={"source": {"type": "upload", "files": files}})
    problem(response, 422, "upload_not_found")


def test_a_model_outlives_its_uploads(client: TestClient, send: Sender, store: BlobStore) -> None:
    upload = send.upload(good())
    files = [{"path": "model.safetensors", "upload_id": upload["id"]}]
    model = client.post("/v1/models", json={"source": {"type": "upload", "files": files}}).json()
    assert client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
    assert client.get(f"/v1/models/{model['id']}").status_code == 200
    assert store.exists(model["files"][0]["sha256"])


def test_a_model_is_deleted_unless_jobs_use_it(client: TestClient, send: Sender, database: Database) -> None:
    free, used = send.model(folder()).json()["id"], send.model(folder()).json()["id"]
    with database.write() as session:
        tenant_id = session.get_one(Model, used).tenant_id
        job = Job(
            tenant_id=tenant_id, model_id=used, config={}, config_hash="x", labels={}, status="succeeded", gates=[]
        )
        session.add(job)
        session.flush()
        job_id = job.id
    assert client.delete(f"/v1/models/{free}").status_code == 204
    problem(client.get(f"/v1/models/{free}"), 404, "not_found")
    assert job_id in problem(client.delete(f"/v1/models/{used}"), 409, "model_in_use").detail


def test_models_page(client: TestClient, send: Sender) -> None:
    ids = [send.model(folder()).json()["id"] for _ in range(3)]
    first = client.get("/v1/models?limit=2").json()
    second = client.get("/v1/models", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [model["id"] for model in first["data"] + second["data"]] == ids[::-1]
    assert not second["has_more"]


def test_bytes_that_are_gone_are_a_typed_error(send: Sender, client: TestClient, store: BlobStore) -> None:
    upload = send.upload(good())
    store.doom(upload["sha256"])
    store.purge(upload["sha256"])
    files = [{"path": "model.safetensors", "upload_id": upload["id"]}]
    problem(client.post("/v1/models", json={"source": {"type": "upload", "files": files}}), 410, "content_gone")


def test_a_read_key_can_not_write(
    as_key: Callable[[str], TestClient], make_key: Callable[..., str], send: Sender
) -> None:
    reader = as_key(make_key("models:read"))
    model = send.model(folder()).json()
    assert reader.get(f"/v1/models/{model['id']}").status_code == 200
    problem(reader.delete(f"/v1/models/{model['id']}"), 403, "insufficient_scope")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/b/c", ".hidden", "a\\b", "", "a" * 256, "C:x", "a/../b"])
def test_a_path_is_a_name_never_a_path(client: TestClient, path: str) -> None:
    files = [{"path": path, "upload_id": "upl_x"}]
    response = client.post("/v1/models", json={"source": {"type": "upload", "files": files}})
    errors = problem(response, 422, "validation_error").errors
    assert errors
    assert errors[0].pointer == "/source/files/0/path"
