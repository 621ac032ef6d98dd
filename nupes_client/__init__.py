"""The `nupes` command and the HTTP SDK. Importing this loads neither httpx nor pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nupes_client.aio import AsyncClient
    from nupes_client.client import Client
    from nupes_client.errors import ApiError, NupesError, WaitTimeoutError

__all__ = ["ApiError", "AsyncClient", "Client", "NupesError", "WaitTimeoutError"]

_HOMES = {"AsyncClient": "nupes_client.aio", "Client": "nupes_client.client"}


def __getattr__(name: str) -> Any:
    """Load the public face on first use: `nupes --help` must not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'nupes_client' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "nupes_client.errors")), name)
