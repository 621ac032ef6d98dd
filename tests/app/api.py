"""The service in this process with an authenticated client, and further tenants on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.core.ids import new_id
from app.db.session import Database
from app.keys import service as keys
from app.main import create_app
from app.models.headers import to_json
from app.settings import Settings
from nupes_core.header import TensorSpec, build_header
from tests.app.jobrows import add_job, add_model

LLAMA = {"model_type": "llama", "hidden_size": 64, "vocab_size": 128, "tie_word_embeddings": False}
TENSORS = (
    TensorSpec("model.embed_tokens.weight", "BF16", (128, 64)),
    TensorSpec("model.layers.0.self_attn.q_proj.weight", "BF16", (64, 64)),
    TensorSpec("model.layers.0.mlp.up_proj.weight", "BF16", (192, 64)),
    TensorSpec("model.layers.0.input_layernorm.weight", "BF16", (64,)),
    TensorSpec("lm_head.weight", "BF16", (128, 64)),
)


class Api:
    """One tenant's view of the service."""

    def __init__(self, client: TestClient, tenant_id: str, secret: str) -> None:
        self.client = client
        self.tenant_id = tenant_id
        self.headers = {"Authorization": f"Bearer {secret}"}

    @property
    def app(self) -> FastAPI:
        app = self.client.app
        assert isinstance(app, FastAPI)
        return app

    @property
    def database(self) -> Database:
        database: Database = self.app.state.database
        return database

    def __call__(self, method: str, path: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        return self.client.request(method, path, headers={**self.headers, **(headers or {})}, **options)

    def get(self, path: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        return self("GET", path, headers, **options)

    def post(self, path: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        return self("POST", path, headers, **options)

    def another_tenant(self, scopes: Sequence[str] = ("admin",)) -> Api:
        return make_tenant(self.client, scopes)

    def add_model(self, tensors: Sequence[TensorSpec] = TENSORS, **columns: Any) -> str:
        return add_model(self.database, self.tenant_id, **{**model_columns(tensors), **columns})

    def add_job(self, model_id: str | None = None, **columns: Any) -> str:
        return add_job(self.database, self.tenant_id, model_id or self.add_model(), **columns)

    def body(self, model_id: str | None = None, **fields: Any) -> dict[str, Any]:
        return {"model": {"id": model_id or self.add_model()}, "evaluation": None, **fields}


@contextmanager
def open_api(settings: Settings, scopes: Sequence[str] = ("admin",)) -> Iterator[Api]:
    with TestClient(create_app(settings), follow_redirects=False) as client:
        yield make_tenant(client, scopes)


def make_tenant(client: TestClient, scopes: Sequence[str]) -> Api:
    state = client.app.state  # type: ignore[attr-defined]
    with state.database.write() as session:
        tenant = keys.ensure_tenant(session, new_id("name"))
        _, secret = keys.add_key(session, state.pepper, tenant.id, "test", scopes)
        return Api(client, tenant.id, secret)


def model_columns(tensors: Sequence[TensorSpec]) -> dict[str, Any]:
    """What registering a model of these tensors would store."""
    _, header = build_header(tensors, {})
    return {
        "config": LLAMA,
        "headers": to_json({"model.safetensors": header}),
        "params": sum(t.params for t in header.tensors),
        "bytes": header.file_bytes,
        "dtype": "BF16",
    }
