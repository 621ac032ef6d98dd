"""From wire models to pages."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from app.core.clock import now
from app.core.templates import strict_environment
from app.reports.figures import figures, number
from app.web import titles, words
from app.web.navigation import current, entries
from app.web.policy import HEADERS
from app.web.static_files import HINT, missing_files
from nupes_client import wording
from nupes_client.files import MODEL_NAMES, MODEL_SUFFIXES
from nupes_core import __version__

_PAGES = strict_environment("app.web")
_PAGES.filters |= {
    "number": number,
    "size": words.size,
    "span": words.span,
    "moment": words.moment,
    "isoformat": words.isoformat,
    "prose": words.prose,
    "setting": wording.setting,
    "plain": wording.plain,
    "model_name": titles.model_name,
    "wish": titles.wish,
    "title_of": titles.title,
    "ago": lambda value: words.ago(value, now()),
}
_PAGES.globals |= {
    "figures": figures,
    "version": __version__,
    "build_hint": HINT,
    "model_suffixes": sorted(MODEL_SUFFIXES),
    "model_names": sorted(MODEL_NAMES),
}


def page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a page for who is asking; the principal is None before signing in."""
    principal = getattr(request.state, "principal", None)
    common = {
        "path": request.url.path,
        "query": request.url.query,
        "principal": principal,
        "navigation": entries(principal),
        "entry": current(request.url.path),
        "csrf_token": getattr(request.state, "csrf_token", ""),
        "missing_files": missing_files(),
        "problem": None,
    }
    content = _PAGES.get_template(template).render({**common, **context})
    return HTMLResponse(content, status, headers=HEADERS)
