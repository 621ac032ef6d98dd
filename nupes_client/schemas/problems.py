"""RFC 9457 problem details: the one error shape of the service, and the closed list of codes."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from nupes_client.schemas.base import Response


class JobErrorCode(StrEnum):
    """Why a job failed."""

    MODEL_NOT_FOUND = "model_not_found"
    MODEL_GATED = "model_gated"
    UNSAFE_FILE = "unsafe_file"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    NO_QUANTIZABLE_LAYERS = "no_quantizable_layers"
    INVALID_CONFIG = "invalid_config"
    DOWNLOAD_FAILED = "download_failed"
    DISK_FULL = "disk_full"
    OOM_HOST = "oom_host"
    OOM_DEVICE = "oom_device"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"
    NUMERICS_NAN = "numerics_nan"
    CALIBRATION_FAILED = "calibration_failed"
    EVAL_FAILED = "eval_failed"
    LOAD_CHECK_FAILED = "load_check_failed"
    PUBLISH_FAILED = "publish_failed"
    PUSH_DENIED = "push_denied"
    PUSH_CONFLICT = "push_conflict"
    PUSH_FAILED = "push_failed"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class FieldError(Response):
    """One invalid field of a request."""

    pointer: str = Field(description="JSON pointer to the field, e.g. `/weights/bits`.")
    code: str
    message: str


class Problem(Response):
    """An error answer (`application/problem+json`)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    retryable: bool = False
    hint: str | None = Field(None, description="What to do next.")
    errors: list[FieldError] | None = None
