"""Which of several representations a client wants (RFC 9110 §12.5.1)."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request


def negotiate(request: Request, offers: Mapping[str, str]) -> str:
    """Return the name of the representation that `Accept` ranks highest; the first where it ranks none.

    Args:
        request: asks.
        offers: media types by name, the preferred one first.
    """
    ranges = [_parse(part) for part in request.headers.get("accept", "*/*").split(",")]
    ranked = {name: _quality(ranges, media_type) for name, media_type in offers.items()}
    return max(ranked, key=lambda name: ranked[name])


def accepts_coding(request: Request, coding: str) -> bool:
    """Whether `Accept-Encoding` allows a content coding (RFC 9110 §12.5.3); a client that says nothing gets none."""
    said = ",".join(request.headers.getlist("accept-encoding"))
    ranked = dict(_parse(part) for part in said.split(","))
    return ranked.get(coding, ranked.get("*", 0.0)) > 0


def _parse(part: str) -> tuple[str, float]:
    media_range, *parameters = [each.strip().lower() for each in part.split(";")]
    quality = next((each.removeprefix("q=") for each in parameters if each.startswith("q=")), "1")
    try:
        return media_range, float(quality)
    except ValueError:
        return media_range, 0.0


def _quality(ranges: list[tuple[str, float]], media_type: str) -> float:
    """Of the most specific range that fits."""
    kind = media_type.split("/")[0]
    for wanted in (media_type, f"{kind}/*", "*/*"):
        found = [quality for media_range, quality in ranges if media_range == wanted]
        if found:
            return max(found)
    return 0.0
