"""API keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nupes_client.resources.paging import every
from nupes_client.schemas.keys import Key, KeyCreate, KeyCreated, Scope
from nupes_client.transport import Transport


class Keys:
    """`/v1/keys`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, scopes: Sequence[Scope]) -> KeyCreated:
        """Make a key; its secret is in this answer and never shown again."""
        body = KeyCreate(name=name, scopes=[*scopes]).model_dump(mode="json")
        return KeyCreated.model_validate_json(self._transport.request("POST", "/v1/keys", json=body).content)

    def list(self) -> Iterator[Key]:
        """Yield the keys, newest first."""
        return every(self._transport, "/v1/keys", Key)

    def revoke(self, key_id: str) -> None:
        """Make a key useless."""
        self._transport.request("DELETE", f"/v1/keys/{key_id}")
