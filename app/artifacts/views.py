"""Rows to wire models."""

from __future__ import annotations

from app.db import tables
from nupes_client.schemas.artifacts import Artifact

ARTIFACTS_PATH = "/v1/artifacts"


def artifact_view(artifact: tables.Artifact) -> Artifact:
    """The artifact as clients see it."""
    fields = {name: getattr(artifact, name) for name in Artifact.model_fields if name != "content_url"}
    return Artifact(**fields, content_url=f"{ARTIFACTS_PATH}/{artifact.id}/content")
