"""Artifacts: what a succeeded job leaves to download."""

from __future__ import annotations

from pydantic import Field

from nupes_client.schemas.base import Response, Timestamp


class Artifact(Response):
    """One file of a result."""

    id: str
    job_id: str
    format: str = Field(description="`nupes`, `dense`, `compressed-tensors`, `gguf`, `onnx`.")
    path: str = Field(description="Place inside the format's folder.")
    size: int
    sha256: str
    media_type: str
    created_at: Timestamp
    expired_at: Timestamp | None = Field(None, description="When the service deleted its bytes: 410 since then.")
    content_url: str
