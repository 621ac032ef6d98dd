"""Bodies of requests, from whatever a program has of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nupes_client.schemas.specs import JobCreate


def job_body(wish: JobCreate | Mapping[str, Any]) -> JobCreate:
    """Return the body of a job; a mapping, such as what a JSON file holds, is read as one.

    Raises:
        pydantic.ValidationError: the mapping is no such body.
    """
    return wish if isinstance(wish, JobCreate) else JobCreate.model_validate({**wish})
