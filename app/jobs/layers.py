"""The per-layer table of a job as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from app.db.tables import JobLayer
from app.jobs.views import layer_view
from nupes_client.schemas.jobs import Layer

COLUMNS = tuple(name for name in Layer.model_fields if name != "histogram")


def layers_csv(layers: Sequence[JobLayer]) -> Iterator[str]:
    """Yield the lines of a CSV (RFC 4180): a header, then a row per layer; shapes as `128x512`, nothing for null.

    Histograms are left out.
    """
    yield _line(COLUMNS)
    for layer in layers:
        row = layer_view(layer).model_dump()
        yield _line([*({**row, "shape": "x".join(map(str, row["shape"]))}[name] for name in COLUMNS)])


def _line(values: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(values)
    return buffer.getvalue()
