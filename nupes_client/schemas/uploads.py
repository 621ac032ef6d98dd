"""Uploads: one file each, sent as a raw body."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from nupes_client.schemas.base import Request, Response, Sha256, Timestamp


class UploadStatus(StrEnum):
    """`pending` waits for its bytes, `complete` has them all and their checksum."""

    PENDING = "pending"
    COMPLETE = "complete"


class UploadCreate(Request):
    """Announce a file before its bytes are sent."""

    filename: str = Field(min_length=1, max_length=255, description="For people; never used as a path.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: Sha256 | None = Field(None, description="Checked against what arrives when given.")


class Upload(Response):
    """A file on the service, or the promise of one."""

    id: str
    filename: str
    size: int
    offset: int = Field(0, description="Bytes that arrived and are safe; send the rest from here on.")
    status: UploadStatus
    sha256: str | None
    created_at: Timestamp
    expires_at: Timestamp | None
