"""What a tenant may use, and what it uses."""

from __future__ import annotations

from pydantic import Field

from nupes_client.schemas.base import Request, Response, Timestamp


class Quotas(Request):
    """Limits of a tenant; null is no limit."""

    active_jobs: int | None = Field(None, ge=0, description="Jobs that wait or run at once.")
    jobs_per_day: int | None = Field(None, ge=0, description="Jobs submitted in a UTC day.")
    stored_bytes: int | None = Field(None, ge=0, description="Bytes of uploads, models and artifacts.")
    requests_per_minute: int | None = Field(None, ge=1, description="Of each key.")


class Meter(Response):
    """One figure and its limit."""

    used: float
    limit: int | None = Field(description="Null is no limit.")
    resets_at: Timestamp | None = Field(None, description="When counting starts again at nothing.")


class Usage(Response):
    """What the tenant uses of what it may."""

    active_jobs: Meter
    jobs_per_day: Meter
    stored_bytes: Meter
    requests_per_minute: Meter
    compute_seconds_this_month: float = Field(description="Of all attempts that ended in this UTC month.")
