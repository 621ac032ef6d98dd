"""Models: manifests of single files, from uploads or from a hub."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from nupes_client.schemas.base import Request, Response, Sha256, Timestamp

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
FilePath = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=rf"^{_NAME}(/{_NAME})?$")]
RepoId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)?$")]


class UploadedFile(Request):
    """A complete upload that takes a place in a model folder."""

    path: FilePath
    upload_id: str
    sha256: Sha256 | None = None


class UploadSource(Request):
    """A model put together from uploads."""

    type: Literal["upload"]
    files: list[UploadedFile] = Field(min_length=1, max_length=2000)


class HubSource(Request):
    """A model on the hub the service is set to (`HF_ENDPOINT`), resolved to a commit."""

    type: Literal["hub"]
    repo_id: RepoId
    revision: str | None = Field(None, max_length=200)


class ModelCreate(Request):
    """Register a model. The bytes are looked at (headers, config), nothing is executed."""

    source: Annotated[UploadSource | HubSource, Field(discriminator="type")]
    name: str | None = Field(None, min_length=1, max_length=200)


class ModelFile(Response):
    """One file of a model."""

    path: str
    size: int
    sha256: str | None = Field(None, description="None for hub files the service has not fetched yet.")


class Finding(Response):
    """What the scan of a model noticed, e.g. a dropped `auto_map` or an ignored pickle file."""

    code: str
    path: str | None
    message: str


class Model(Response):
    """A registered model."""

    id: str
    name: str
    source: dict[str, Any] = Field(description="Where it came from; for hub models `commit` is the resolved hash.")
    architecture: str | None
    model_type: str | None
    params: int
    bytes: int
    dtype: str | None
    license: str | None
    files: list[ModelFile]
    findings: list[Finding]
    created_at: Timestamp
