"""Answers of which a part can be asked for (RFC 9110 §14), for content that is in memory."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import Response

from app.core.conditional import etag, not_modified
from app.core.ranges import requested_range


def partial_response(request: Request, content: bytes, media_type: str) -> Response:
    """Answer 200, 206 or 304.

    Raises:
        RangeNotSatisfiableError: 416, the range begins behind the end.
    """
    tag = etag(hashlib.sha256(content).hexdigest()[:32])
    headers = {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if not_modified(request, tag):
        return Response(status_code=304, headers=headers)
    headers["X-Content-Type-Options"] = "nosniff"
    wanted = requested_range(request.headers, tag, len(content))
    if wanted is None:
        return Response(content, 200, headers, media_type)
    headers["Content-Range"] = wanted.content_range
    return Response(content[wanted.start : wanted.stop], 206, headers, media_type)
