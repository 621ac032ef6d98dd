"""Structured logs, one line per event, without secrets."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from app.settings import Settings

_SECRET_NAMES = re.compile(r"authorization|secret|token|password|pepper|api_key|cookie", re.IGNORECASE)
_SECRET_VALUES = re.compile(
    r"nupes_[0-9a-z]{26}_[0-9A-Za-z]+|whsec_[0-9A-Za-z+/=]+|hf_[0-9A-Za-z]{16,}|://[^/\s:@]*:[^/\s@]+@"
)
_HIDDEN = "[hidden]"

_WARN_ONLY = (
    *("httpx", "httpx2", "httpcore", "httpcore2", "botocore", "boto3", "urllib3", "alembic"),
    *("celery.worker.consumer.connection", "celery.worker.strategy", "celery.app.trace"),
)
"""What these say in passing, our own lines say better: that a request was made, that a wake-up came and went."""

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def hide_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Replace values under telling names, and keys and URL passwords inside any text."""
    return {name: _HIDDEN if _SECRET_NAMES.search(name) else _hide(value) for name, value in event.items()}


def _hide(value: Any) -> Any:
    return _SECRET_VALUES.sub(_HIDDEN, value) if isinstance(value, str) else value


def configure_logging(settings: Settings) -> None:
    """Send our log lines and those of libraries to stderr: JSON, or for people when `log_json` is off."""
    renderer: Any = structlog.processors.JSONRenderer() if settings.log_json else structlog.dev.ConsoleRenderer()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, hide_secrets, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = name != "uvicorn.access"  # our own access log has the request id
    for name in _WARN_ONLY:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
