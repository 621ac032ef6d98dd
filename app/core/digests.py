"""Digest fields (RFC 9530)."""

from __future__ import annotations

import base64


def repr_digest(sha256: str) -> str:
    """`Repr-Digest` of a content with this SHA-256 in hex."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"
