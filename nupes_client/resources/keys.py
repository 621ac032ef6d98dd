"""API keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from nupes_client.resources.paging import every
from nupes_client.schemas.keys import Key, KeyCreate, KeyCreated, KeyRotate, LoginLink, Scope
from nupes_client.transport import Transport


class Keys:
    """`/v1/keys`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, scopes: Sequence[Scope], *, expires_at: datetime | None = None) -> KeyCreated:
        """Make a key; its secret is in this answer and never shown again."""
        body = KeyCreate(name=name, scopes=[*scopes], expires_at=expires_at).model_dump(mode="json")
        return KeyCreated.model_validate_json(self._transport.request("POST", "/v1/keys", json=body).content)

    def get(self, key_id: str) -> Key:
        """One key, without its secret."""
        return Key.model_validate_json(self._transport.request("GET", f"/v1/keys/{key_id}").content)

    def rotate(self, key_id: str, *, overlap_s: int = 24 * 3600) -> KeyCreated:
        """Give a key a new secret; the present one stays valid for `overlap_s` seconds."""
        body = KeyRotate(overlap_s=overlap_s).model_dump(mode="json")
        answer = self._transport.request("POST", f"/v1/keys/{key_id}/rotate", json=body)
        return KeyCreated.model_validate_json(answer.content)

    def list(self) -> Iterator[Key]:
        """Yield the keys, newest first."""
        return every(self._transport, "/v1/keys", Key)

    def revoke(self, key_id: str) -> None:
        """Make a key useless."""
        self._transport.request("DELETE", f"/v1/keys/{key_id}")

    def login_link(self) -> LoginLink:
        """Make a link that signs a browser in with this client's key, once and within minutes."""
        return LoginLink.model_validate_json(self._transport.request("POST", "/v1/keys/login-links").content)
