"""Secrets that jobs may use."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from nupes_client.resources.paging import every
from nupes_client.schemas.secrets import Secret, SecretKind
from nupes_client.transport import Transport

PATH = "/v1/secrets"


class Secrets:
    """`/v1/secrets`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def set(self, name: str, value: str, *, kind: SecretKind = "hub_token") -> Secret:
        """Store a secret under a name, or replace the one that has it; no answer ever holds the value."""
        body = {"name": name, "kind": kind, "value": value}
        return Secret.model_validate_json(self._transport.request("POST", PATH, json=body, repeatable=True).content)

    def get(self, name: str) -> Secret:
        """Return one secret, without its value."""
        return Secret.model_validate_json(self._transport.request("GET", _path(name)).content)

    def list(self) -> Iterator[Secret]:
        """Yield the secrets, newest first, without their values."""
        return every(self._transport, PATH, Secret)

    def delete(self, name: str) -> None:
        """Delete a secret; jobs that name it fail when they need it."""
        self._transport.request("DELETE", _path(name))


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"
