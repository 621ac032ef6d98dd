"""From the headers that a model row keeps back to what the core plans from."""

from __future__ import annotations

import json

from app.db.tables import Model
from nupes_core.header import PREFIX_BYTES, Header, parse_header


def stored_headers(model: Model) -> dict[str, Header]:
    """Return file name -> checked header of a registered model."""
    return {name: _header(name, content) for name, content in model.headers.items()}


def _header(name: str, content: object) -> Header:
    text = json.dumps(content).encode()
    return parse_header(len(text).to_bytes(PREFIX_BYTES, "little") + text, source=name)
