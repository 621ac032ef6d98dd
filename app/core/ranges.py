"""Byte ranges of a representation (RFC 9110 §14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from app.core.problems import ProblemError

_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.IGNORECASE)


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` up to, not including, `stop` of `size`."""

    start: int
    stop: int
    size: int

    @property
    def length(self) -> int:
        """How many bytes."""
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        """The header of a 206."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


class RangeNotSatisfiableError(ProblemError):
    """The range begins behind the end."""

    def __init__(self, requested: str, size: int) -> None:
        super().__init__(
            416,
            "range_not_satisfiable",
            "Range not satisfiable",
            f"{requested!r} lies outside the {size} bytes there are",
            hint="Ask for a range inside the size, or for the whole.",
            headers={"Content-Range": f"bytes */{size}"},
        )


def requested_range(headers: Headers, etag: str, size: int) -> ByteRange | None:
    """Return the range to send, or None for the whole.

    None also where RFC 9110 lets a server pass over the header: another unit, several ranges, a malformed one, or an
    `If-Range` that does not name the current strong ETag.

    Raises:
        RangeNotSatisfiableError: a well-formed range of which no byte exists.
    """
    requested = headers.get("range")
    if requested is None or headers.get("if-range", etag) != etag:
        return None
    match = _ONE_RANGE.fullmatch(requested.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first and last and int(last) < int(first):
        return None
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise RangeNotSatisfiableError(requested, size)
    return ByteRange(start, stop, size)
