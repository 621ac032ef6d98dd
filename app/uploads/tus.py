"""The words of the tus protocol 1.0.0 (https://tus.io/protocols/resumable-upload): headers in, headers out."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError
from starlette.datastructures import Headers

from app.core.problems import ProblemError
from app.settings import Settings
from nupes_client.schemas.uploads import UploadCreate

if TYPE_CHECKING:
    from hashlib import _Hash

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,checksum,termination"
CHUNK_TYPE = "application/offset+octet-stream"
ALGORITHMS = ("sha1", "sha256")
MAX_METADATA = 4096
_MAX_DIGITS = 18


@dataclass(frozen=True)
class Checksum:
    """What the bytes of one request must hash to."""

    algorithm: str
    expected: bytes

    def start(self) -> _Hash:
        """A new hash of the algorithm."""
        return hashlib.new(self.algorithm, usedforsecurity=False)


@dataclass(frozen=True)
class Chunk:
    """The head of a PATCH: where its bytes go, how many follow (None: not said), what they hash to."""

    offset: int
    length: int | None
    checksum: Checksum | None


def capabilities(settings: Settings) -> dict[str, str]:
    """Headers of the answer to OPTIONS."""
    return {
        "Tus-Resumable": VERSION,
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(settings.max_upload_bytes),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }


def check_version(headers: Headers) -> None:
    """Refuse any version but 1.0.0, and none.

    Raises:
        ProblemError: 412.
    """
    version = headers.get("tus-resumable")
    if version != VERSION:
        said = "no Tus-Resumable header came" if version is None else f"Tus-Resumable is {version!r}"
        raise ProblemError(
            412,
            "tus_version",
            "Precondition failed",
            f"{said}; this service speaks tus {VERSION}",
            hint=f"Send `Tus-Resumable: {VERSION}`.",
            headers={"Tus-Version": VERSION},
        )


def read_creation(headers: Headers) -> UploadCreate:
    """The announcement of a file in `Upload-Length` and `Upload-Metadata` (keys `filename` and `sha256`).

    Raises:
        ProblemError: 400, a header is missing or malformed.
    """
    if "upload-defer-length" in headers:
        raise _malformed("Upload-Defer-Length is not supported", "Send Upload-Length.")
    metadata = _metadata(headers.get("upload-metadata", ""))
    filename = metadata.get("filename") or metadata.get("name") or "upload"
    content = {"filename": filename[-255:], "size": _count(headers, "Upload-Length"), "sha256": metadata.get("sha256")}
    try:
        return UploadCreate.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise _malformed(f"Upload-Metadata: {first['loc'] or 'filename'}: {first['msg']}", "Correct it.") from None


def read_chunk(headers: Headers) -> Chunk:
    """The head of a PATCH.

    Raises:
        ProblemError: 415 for another media type or a compressed body, 400 for a malformed header.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != CHUNK_TYPE:
        raise ProblemError(
            415,
            "unsupported_media_type",
            "Unsupported media type",
            f"Content-Type is {headers.get('content-type')!r}",
            hint=f"Send `Content-Type: {CHUNK_TYPE}`.",
        )
    return Chunk(_count(headers, "Upload-Offset"), body_length(headers), _checksum(headers.get("upload-checksum")))


def body_length(headers: Headers) -> int | None:
    """Bytes of the body by its Content-Length; None when it is sent in pieces of unknown number."""
    length = headers.get("content-length", "")
    return int(length) if length.isdigit() else None


def progress_headers(offset: int, expires_at: datetime | None) -> dict[str, str]:
    """How far an upload is, and until when it waits for more."""
    expiry = {"Upload-Expires": format_datetime(expires_at, usegmt=True)} if expires_at else {}
    return {"Upload-Offset": str(offset), **expiry}


def checksum_mismatch(checksum: Checksum, actual: bytes) -> ProblemError:
    """The refusal of a chunk that is not what its client sent."""
    expected, got = (base64.b64encode(digest).decode() for digest in (checksum.expected, actual))
    return ProblemError(
        460,
        "checksum_mismatch",
        "Checksum mismatch",
        f"the bytes of this request have {checksum.algorithm} {got}; Upload-Checksum says {expected}",
        hint="Nothing of this request was kept: send it again from the same offset.",
        retryable=True,
    )


def _metadata(header: str) -> Mapping[str, str]:
    """Keys and decoded values of `Upload-Metadata`: `key base64,key base64,key`."""
    if len(header) > MAX_METADATA:
        raise _malformed(f"Upload-Metadata has {len(header)} characters", f"At most {MAX_METADATA} are kept.")
    found: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else ():
        key, _, value = pair.strip().partition(" ")
        if not key or key in found:
            raise _malformed(f"Upload-Metadata has the key {key!r} twice or empty", "Send each key once.")
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, ValueError):
            raise _malformed(f"the value of {key!r} in Upload-Metadata is no base64 of UTF-8", "Encode it.") from None
    return found


def _checksum(header: str | None) -> Checksum | None:
    if header is None:
        return None
    algorithm, _, value = header.partition(" ")
    if algorithm not in ALGORITHMS:
        raise _malformed(f"Upload-Checksum names {algorithm!r}", f"Known are {', '.join(ALGORITHMS)}.")
    try:
        expected = base64.b64decode(value, validate=True)
    except binascii.Error:
        raise _malformed("the value of Upload-Checksum is no base64", "Encode the digest in base64.") from None
    return Checksum(algorithm, expected)


def _count(headers: Headers, name: str) -> int:
    value = headers.get(name)
    if value is None or not (value.isascii() and value.isdigit()) or len(value) > _MAX_DIGITS:
        raise _malformed(f"{name} is {value!r}", "Send a number of bytes.")
    return int(value)


def _malformed(detail: str, hint: str) -> ProblemError:
    return ProblemError(400, "malformed_header", "Bad request", detail, hint=hint)
