"""Links of the OpenAPI document (OAS 3.1 §4.8.20): where the id that an answer holds can be used next."""

from __future__ import annotations

import re
from typing import Any

_ONE = re.compile(r"(?P<collection>.+)/\{(?P<parameter>\w+)\}(?P<rest>(/[^{}]+)*)")
_IDS = {"post": "$response.body#/id", "get": "$response.body#/data/0/id"}
"""Where the id stands: in what a `POST` to a collection made, in what a `GET` of it lists."""
_ELSEWHERE = {("/v1/webhooks/{webhook_id}/test", "post"): "/v1/webhooks/{webhook_id}/deliveries"}
"""Operations that make a thing of another collection than their own path."""


def add_links(document: dict[str, Any]) -> None:
    """Link every answer that holds ids of a collection to all operations on one member of it."""
    for path, item in document["paths"].items():
        for method, expression in _IDS.items():
            if method in item:
                links = _links(document, path, _ELSEWHERE.get((path, method), path), expression)
                _attach(item[method], links)


def _links(document: dict[str, Any], source: str, collection: str, expression: str) -> dict[str, Any]:
    links: dict[str, Any] = {}
    for path, item in document["paths"].items():
        match = _ONE.fullmatch(path)
        if match and match["collection"] == collection:
            given = {name: f"$request.path.{name}" for name in re.findall(r"\{(\w+)\}", source)}
            parameters = {**given, match["parameter"]: expression}
            links |= {
                each["operationId"]: {"operationId": each["operationId"], "parameters": parameters}
                for each in item.values()
            }
    return links


def _attach(operation: dict[str, Any], links: dict[str, Any]) -> None:
    if links:
        success = next(status for status in operation["responses"] if status.startswith("2"))
        operation["responses"][success]["links"] = links
