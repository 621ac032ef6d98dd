"""Every route of the service, and what it takes to call each: a route that is not described here fails its tests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.core.ids import new_id
from app.db.tables import Job
from app.jobs import outcomes
from tests.app.api import Api
from tests.app.jobrows import claim, make_file, make_layer, make_result

PUBLIC = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json", "/login", "/login/link", "/logout", "/static"})
"""Answer without a key."""

ANY_KEY = frozenset({"/v1/capabilities", "/v1/usage", "/v1/keys/login-links", "/usage", "/docs"})
"""Answer to every key, whatever its scopes."""

REQUESTS: dict[str, dict[str, Any]] = {
    "PATCH /v1/jobs/{job_id}": {"json": {"priority": 1}, "headers": {"If-Match": "*"}},
    "PUT /v1/uploads/{upload_id}/content": {"content": b"x"},
    "PATCH /v1/webhooks/{webhook_id}": {"json": {"name": "mine"}},
    "HEAD /v1/uploads/{upload_id}": {"headers": {"Tus-Resumable": "1.0.0"}},
    "PATCH /v1/uploads/{upload_id}": {
        "content": b"",
        "headers": {
            "Tus-Resumable": "1.0.0",
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": "0",
        },
    },
    "POST /v1/keys/{key_id}/rotate": {"json": {"overlap_s": 0}},
}
"""What a route wants beyond its path, so that nothing but the id can be wrong. Here belongs every route with an id and
a required body or header."""

REFERENCES: dict[str, dict[str, Any]] = {
    "POST /v1/jobs model.id": {"json": {"model": {"id": "{model_id}"}, "evaluation": None}},
    "POST /v1/plans model.id": {"json": {"model": {"id": "{model_id}"}, "evaluation": None}},
    "POST /v1/jobs evaluation.text.upload_id": {
        "json": {"model": {"id": "{own_model_id}"}, "evaluation": {"text": {"upload_id": "{upload_id}"}}}
    },
    "POST /v1/plans evaluation.text.upload_id": {
        "json": {"model": {"id": "{own_model_id}"}, "evaluation": {"text": {"upload_id": "{upload_id}"}}}
    },
    "POST /v1/jobs calibration.text.upload_id": {
        "json": {
            "model": {"id": "{own_model_id}"},
            "evaluation": None,
            "optimize": {"mode": "data_driven"},
            "calibration": {"text": {"upload_id": "{upload_id}"}},
        }
    },
    "POST /v1/models source.files.upload_id": {
        "json": {"source": {"type": "upload", "files": [{"path": "model.safetensors", "upload_id": "{upload_id}"}]}}
    },
}
"""Requests that name another thing in their body."""


@dataclass(frozen=True)
class Route:
    """One method of one path."""

    method: str
    path: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"\{(\w+)(?::\w+)?\}", self.path)

    @property
    def options(self) -> dict[str, Any]:
        return REQUESTS.get(self.name, {})

    def url(self, names: dict[str, str]) -> str:
        return re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: names[match[1]], self.path)


def routes(app: FastAPI) -> list[Route]:
    """All routes, those that the OpenAPI document leaves out too."""
    found = list(iter_route_contexts(app.routes))
    return [Route(method, str(route.path)) for route in found for method in sorted(route.methods or ["GET"])]


def documented(app: FastAPI) -> set[Route]:
    """Those of the OpenAPI document."""
    return {Route(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}


def make_things(api: Api) -> dict[str, str]:
    """Make one of everything that has an id; by the name of the path parameter."""
    return {name: make(api) for name, make in _MAKERS.items()}


def _upload(api: Api) -> str:
    upload = api.post("/v1/uploads", json={"filename": "text.txt", "size": 5}).json()
    assert api("PUT", f"/v1/uploads/{upload['id']}/content", content=b"words").status_code == 200
    return str(upload["id"])


def _job(api: Api) -> str:
    """One that has ended and left everything a job can leave."""
    job_id = api.add_job(labels={"secret": "yes"})
    fence = claim(api.database, job_id)
    file = make_file(sha256=hashlib.sha256(job_id.encode()).hexdigest())
    with api.database.write() as session:
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), [make_layer()], [file])
    return job_id


def _artifact(api: Api) -> str:
    return str(api.get(f"/v1/jobs/{_job(api)}/artifacts").json()["data"][0]["id"])


def _key(api: Api) -> str:
    return str(api.post("/v1/keys", json={"name": "sample", "scopes": ["jobs:read"]}).json()["id"])


def _webhook(api: Api) -> str:
    return str(api.post("/v1/webhooks", json={"url": "https://receiver.example/"}).json()["id"])


def _secret(api: Api) -> str:
    body = {"name": new_id("hub"), "value": "hf_sample"}
    return str(api.post("/v1/secrets", json=body).json()["name"])


def _delivery(api: Api) -> str:
    return str(api.post(f"/v1/webhooks/{_webhook(api)}/test").json()["id"])


_MAKERS: dict[str, Callable[[Api], str]] = {
    "upload_id": _upload,
    "model_id": lambda api: api.add_model(),
    "job_id": _job,
    "artifact_id": _artifact,
    "key_id": _key,
    "secret_name": _secret,
    "webhook_id": _webhook,
    "delivery_id": _delivery,
}
"""Here belongs every name of a path parameter."""


def fill(value: Any, names: dict[str, str]) -> Any:
    """Put ids into a request that names them."""
    if isinstance(value, dict):
        return {key: fill(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [fill(inner, names) for inner in value]
    return re.sub(r"\{(\w+)\}", lambda m: names[m[1]], value) if isinstance(value, str) else value


def references(app: FastAPI) -> set[str]:
    """Where bodies of the OpenAPI document name other things: fields `id` and `…_id`, `METHOD path field.field`."""
    document = app.openapi()
    found = set()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                fields = _id_fields(document, media.get("schema", {}), ())
                found |= {f"{method.upper()} {path} {'.'.join(field)}" for field in fields}
    return found


def _id_fields(document: dict[str, Any], schema: dict[str, Any], place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if reference := schema.get("$ref"):
        schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    for name, inner in schema.get("properties", {}).items():
        if (name == "id" or name.endswith(("_id", "_ids"))) and name not in NOT_OURS:
            yield (*place, name)
        yield from _id_fields(document, inner, (*place, name))
    for inner in (
        *schema.get("anyOf", ()),
        *schema.get("oneOf", ()),
        *([schema["items"]] if "items" in schema else ()),
    ):
        yield from _id_fields(document, inner, place)


NOT_OURS = frozenset({"repo_id"})
"""Ids of other services."""
