"""The OpenAPI document: every error a route can answer is in it, as a problem."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.core.links import add_links
from app.core.problems import MEDIA_TYPE
from nupes_client.schemas.problems import Problem

_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})
_OWN_PHRASES = {460: "Checksum Mismatch"}
"""Statuses of protocols that the registry of HTTP does not know: 460 is of tus."""
_REF = {"$ref": "#/components/schemas/Problem"}
_TITLE = "NUPES"
_DESCRIPTION = (
    "Quantization as a service. Send a model and a wish, get back a checksummed artifact and what it cost in quality. "
    "Every error is `application/problem+json` (RFC 9457)."
)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route: errors beyond those every route has."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    phrase = _OWN_PHRASES.get(status) or HTTPStatus(status).phrase
    return {"description": phrase, "content": {MEDIA_TYPE: {"schema": _REF}}}


def install(app: FastAPI) -> None:
    """Make `app.openapi()` complete the document that FastAPI derives from the routes."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _build(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=_TITLE, version=app.version, description=_DESCRIPTION, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {})
    schemas["Problem"] = problem
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for path, operation in _operations(document):
        for status in _common(path, operation):
            operation["responses"].setdefault(str(status), _problem(status))
    add_links(document)
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                yield path, operation


def _common(path: str, operation: dict[str, Any]) -> list[int]:
    """Statuses that follow from the shape of a route. FastAPI's own 422 has another body: it is replaced."""
    operation["responses"].pop("422", None)
    statuses = [413, 500, 503]
    if operation.get("security"):
        statuses += [401, 403, 429]
    if "{" in path:
        statuses.append(404)
    if operation.get("parameters") or operation.get("requestBody"):
        statuses.append(422)
    if operation.get("requestBody"):
        statuses += [400, 415]
    return sorted(statuses)
