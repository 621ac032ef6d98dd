"""Names and connection options that publisher and consumer share."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from app.settings import Settings

WAKE_TASK = "nupes.wake"
FOLDER_SCHEME = "nupesfs"

SOCKET_TIMEOUT_S = 0.5
"""For connect, read and write of a publisher: it runs inside a request."""

_PUBLISHER_OPTIONS: dict[str, dict[str, Any]] = {
    "redis": {"socket_connect_timeout": SOCKET_TIMEOUT_S, "socket_timeout": SOCKET_TIMEOUT_S},
    "amqp": {"read_timeout": SOCKET_TIMEOUT_S, "write_timeout": SOCKET_TIMEOUT_S},
}
_SECURE = {"rediss": "redis", "amqps": "amqp", "pyamqp": "amqp"}


def queue_name(settings: Settings, device_class: str) -> str:
    """Return the broker's name of the queue that workers of a device class serve."""
    return f"{settings.queue_prefix}{device_class}"


def is_folder(settings: Settings) -> bool:
    """Whether messages are files in a folder of ours; else there is a server to talk to."""
    return _scheme(settings) == FOLDER_SCHEME


def consumer_options(settings: Settings) -> dict[str, Any]:
    """Return kombu's `transport_options` for a worker."""
    return {"queue_dir": str(settings.queue_dir)} if is_folder(settings) else {}


def publisher_options(settings: Settings) -> dict[str, Any]:
    """Return kombu's `transport_options` for a publisher: fail fast, never retry on its own."""
    timeouts = _PUBLISHER_OPTIONS.get(_scheme(settings), {})
    return {**consumer_options(settings), **timeouts}


def register_transport() -> None:
    """Teach kombu the scheme `nupesfs`."""
    from kombu.transport import TRANSPORT_ALIASES

    TRANSPORT_ALIASES[FOLDER_SCHEME] = "app.queue.transport:Transport"


def _scheme(settings: Settings) -> str:
    scheme = urlsplit(settings.resolved_broker_url).scheme
    return _SECURE.get(scheme, scheme)
