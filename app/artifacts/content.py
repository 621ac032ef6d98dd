"""The bytes of an artifact over HTTP: conditional requests, ranges, digests (RFC 9110, 9530), names (RFC 8187)."""

from __future__ import annotations

import base64
from pathlib import PurePosixPath
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from app.core.conditional import etag, not_modified
from app.core.ranges import ByteRange, requested_range
from app.db.tables import Artifact
from app.storage import BlobStore

LINK_S = 900
"""How long a link to the blob store is good."""

_PLAIN = "!#$&+-.^_`|~"


def content_response(request: Request, artifact: Artifact, store: BlobStore) -> Response:
    """Answer GET or HEAD with 200, 206, 304, or 307 to the blob store where that hands out links.

    Raises:
        RangeNotSatisfiableError: 416.
        BlobNotFoundError: the bytes are gone.
    """
    tag = etag(f"sha256-{artifact.sha256}")
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable", "Vary": "Authorization"}
    if not_modified(request, tag):
        return Response(status_code=304, headers=headers)
    headers |= _description(artifact)
    wanted = requested_range(request.headers, tag, artifact.size)
    if request.method == "HEAD":  # RFC 9110 §14.2: a Range counts for GET alone
        store.size(artifact.sha256)
        return _with_length(Response(media_type=artifact.media_type, headers=headers), artifact.size)
    link = store.link(artifact.sha256, _disposition(artifact.path), artifact.media_type, LINK_S)
    if link is not None:
        return RedirectResponse(link, status_code=307, headers={"Cache-Control": "no-store"})
    return _bytes(artifact, wanted, store, headers)


def _bytes(artifact: Artifact, wanted: ByteRange | None, store: BlobStore, headers: dict[str, str]) -> Response:
    start, stop = (wanted.start, wanted.stop) if wanted else (0, artifact.size)
    if wanted:
        headers = {**headers, "Content-Range": wanted.content_range}
    chunks = store.open(artifact.sha256, start, stop)
    response = StreamingResponse(chunks, 206 if wanted else 200, headers, artifact.media_type)
    return _with_length(response, stop - start)


def _with_length(response: Response, length: int) -> Response:
    response.headers["Content-Length"] = str(length)
    return response


def _description(artifact: Artifact) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(artifact.sha256)).decode()
    return {
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Content-Disposition": _disposition(artifact.path),
        "X-Content-Type-Options": "nosniff",
    }


def _disposition(path: str) -> str:
    """RFC 6266 with the extended name of RFC 8187, and a plain one for clients that know only that."""
    name = PurePosixPath(path).name
    plain = "".join(c if c.isascii() and (c.isalnum() or c in _PLAIN) else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe=_PLAIN)}"
