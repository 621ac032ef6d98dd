"""The version of the installed package, and how the client introduces itself."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version of the installed distribution, `0` when run from a bare checkout."""
    try:
        return version("nupes")
    except PackageNotFoundError:
        return "0"


USER_AGENT = f"nupes-client/{installed_version()}"
