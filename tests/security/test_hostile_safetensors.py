"""Hostile files over HTTP: a clean 422 each, nothing executed, nothing broken; other tenants' things do not exist."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.app.conftest import (  # noqa: F401  # the fixtures of the service
    Sender,
    anonymous,
    app,
    as_key,
    client,
    database,
    make_key,
    send,
    stranger,
)
from tests.app.test_problems import problem
from tests.safetensors_files import CONFIG, folder, good, safetensors, sharded


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What is special here is the content."""
    return sqlite_url


def tensor(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE_WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "shorter than its length": b"\x01\x02",
    "length beyond the file": safetensors({}, length=10**6),
    "length of all ones": b"\xff" * 16,
    "huge header announced": struct.pack("<Q", 2**40) + b"{}",
    "not JSON": safetensors(b"{not json"),
    "JSON of another kind": safetensors(b"[1, 2, 3]"),
    "deep JSON": safetensors(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "duplicate names": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\x00" * 4,
    ),
    "overlapping tensors": safetensors({"a": tensor(), "b": tensor(offsets=(2, 6))}, b"\x00" * 6),
    "the same bytes twice": safetensors({"a": tensor(), "b": tensor()}, b"\x00" * 4),
    "gap between tensors": safetensors({"a": tensor(), "b": tensor(offsets=(8, 12))}, b"\x00" * 12),
    "bytes behind the tensors": safetensors({"a": tensor()}, b"\x00" * 8),
    "cut short": good()[:-1],
    "offsets beyond the file": safetensors({"a": tensor(offsets=(0, 2**62), shape=(2**60,))}, b"\x00" * 4),
    "offsets that fall": safetensors({"a": tensor(offsets=(4, 0))}, b"\x00" * 4),
    "negative offsets": safetensors({"a": tensor(offsets=(-4, 0))}, b"\x00" * 4),
    "offsets that are no numbers": safetensors({"a": tensor(offsets=("0", "4"))}, b"\x00" * 4),
    "a true offset": safetensors({"a": tensor(offsets=(False, 4))}, b"\x00" * 4),
    "shape that does not fit": safetensors({"a": tensor(shape=(3,))}, b"\x00" * 4),
    "shape that overflows": safetensors({"a": tensor(shape=(2**33, 2**33))}, b"\x00" * 4),
    "negative shape": safetensors({"a": tensor(shape=(-1, -1))}, b"\x00" * 4),
    "unknown dtype": safetensors({"a": tensor(dtype="OBJECT")}, b"\x00" * 4),
    "dtype that is no text": safetensors({"a": tensor() | {"dtype": 7}}, b"\x00" * 4),
    "metadata that is no text": safetensors({"__metadata__": {"a": {"b": 1}}, "a": tensor()}, b"\x00" * 4),
    "a pickle under another name": pickle.dumps({"a": 1}),
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 24\n",
}


def zipped() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"\x80\x04.")
    return buffer.getvalue()


HOSTILE_FOLDERS: dict[str, dict[str, bytes]] = {
    "pickle beside safetensors": folder(pytorch_model__bin=pickle.dumps({})),
    "checkpoint": folder(weights__ckpt=b"x"),
    "code": folder() | {"modeling_evil.py": b"import os; os.system('id')"},
    "library": folder() | {"kernel.so": b"\x7fELF"},
    "auto_map": folder(config__json=json.dumps({**CONFIG, "auto_map": {"AutoModel": "evil.Model"}}).encode()),
    "auto_map in a part": folder(config__json=json.dumps({**CONFIG, "text_config": {"auto_map": {}}}).encode()),
    "auto_map of the tokenizer": folder()
    | {"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["e.T", null]}}'},
    "pickle named as a tokenizer": folder() | {"tokenizer.model": pickle.dumps({})},
    "archive named as a tokenizer": folder() | {"tokenizer.json": zipped()},
    "configuration that is no JSON": folder(config__json=b"{"),
    "configuration that is a list": folder(config__json=b"[]"),
    "deep configuration": folder(config__json=b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "model_type that is a path": folder(config__json=b'{"model_type": "../../etc"}'),
    "model_type that is no text": folder(config__json=b'{"model_type": {"a": 1}}'),
    "no weights": {"config.json": b"{}"},
    "two weight files and no index": {"a.safetensors": good(), "b.safetensors": good()},
    "index that leads outside": {
        **sharded(1),
        "model.safetensors.index.json": b'{"weight_map": {"a": "../../../etc/passwd.safetensors"}}',
    },
    "index of nothing": {**sharded(1), "model.safetensors.index.json": b'{"weight_map": {}}'},
    "index that lies": {
        **sharded(2),
        "model.safetensors.index.json": b'{"weight_map": {"other": "model-00001-of-00002.safetensors"}}',
    },
    "the same tensor in two shards": {
        "a.safetensors": good(("a",)),
        "b.safetensors": good(("a", "b")),
        "model.safetensors.index.json": b'{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}',
    },
}


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_hostile_weights_are_refused(name: str, send: Sender, client: TestClient) -> None:  # noqa: F811
    refused = problem(send.model(folder(model__safetensors=HOSTILE_WEIGHTS[name])), 422, "unsafe_file")
    assert "model.safetensors" in refused.detail
    assert len(refused.detail) < 1000
    assert refused.hint
    assert client.get("/v1/models").json()["data"] == []


@pytest.mark.parametrize("name", HOSTILE_FOLDERS)
def test_hostile_folders_are_refused(name: str, send: Sender, client: TestClient) -> None:  # noqa: F811
    problem(send.model(HOSTILE_FOLDERS[name]), 422, "unsafe_file")
    assert client.get("/v1/models").json()["data"] == []


def test_a_header_of_many_tensors_is_read_in_time(send: Sender) -> None:  # noqa: F811
    import time

    content = good(tuple(f"layer.{number}.weight" for number in range(20_000)), shape=(1,))
    started = time.monotonic()
    assert send.model(folder(model__safetensors=content)).status_code == 201
    assert time.monotonic() - started < 15


def own_things(send: Sender) -> Iterator[tuple[str, str]]:  # noqa: F811
    """Method and path of every route of uploads, models and keys that names a thing, for things of the first tenant."""
    upload = send.upload(b"x")["id"]
    pending = send.announce(b"x")["id"]
    model = send.model(folder()).json()["id"]
    key = send.client.get("/v1/keys").json()["data"][0]["id"]
    yield from [(method, f"/v1/uploads/{upload}") for method in ("GET", "DELETE")]
    yield from [("PUT", f"/v1/uploads/{name}/content") for name in (upload, pending)]
    yield from [(method, f"/v1/models/{model}") for method in ("GET", "DELETE")]
    yield from [(method, f"/v1/keys/{key}") for method in ("GET", "DELETE")]


def test_things_of_another_tenant_do_not_exist(send: Sender, stranger: TestClient) -> None:  # noqa: F811
    for method, path in own_things(send):
        foreign = problem(stranger.request(method, path, content=b"x" if method == "PUT" else None), 404, "not_found")
        name = path.split("/")[3]
        missing = problem(
            stranger.request(
                method, path.replace(name, name[:4] + "0" * 26), content=b"x" if method == "PUT" else None
            ),
            404,
            "not_found",
        )
        assert foreign.detail.replace(name, "") == missing.detail.replace(name[:4] + "0" * 26, "")
        assert foreign.hint == missing.hint
    for path in ("/v1/models", "/v1/keys"):
        shown = stranger.get(path).json()["data"]
        assert all(entry["name"] == "test" for entry in shown)


def test_every_route_of_the_service_wants_a_key(client: TestClient, anonymous: TestClient) -> None:  # noqa: F811
    open_routes = {"/livez", "/readyz", "/metrics"}
    for path, item in client.get("/openapi.json").json()["paths"].items():
        for method in item:
            if path not in open_routes:
                url = path.replace("{", "").replace("}", "")
                response = anonymous.request(method, url, json={})
                assert response.status_code == 401, (method, path, response.text)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a\x1b[31m", "x" * 255, "CON", "名前.safetensors"])
def test_a_file_name_is_for_people_only(name: str, send: Sender, settings: Any) -> None:  # noqa: F811
    before = {path.name for path in settings.data_dir.parent.iterdir()}
    assert send.upload(b"x", name)["filename"] == name
    assert {path.name for path in settings.data_dir.parent.iterdir()} == before
    assert all(len(path.name) == 64 for path in (settings.data_dir / "blobs").glob("??/*"))


def test_ids_with_odd_characters_do_not_exist(client: TestClient, make_key: Callable[..., str]) -> None:  # noqa: F811
    for odd in ("%00", "%F0%9F%98%80", "..%2f..%2fetc", "'; DROP TABLE models; --", "a" * 5000):
        assert client.get(f"/v1/models/{odd}").status_code in {404, 422}
