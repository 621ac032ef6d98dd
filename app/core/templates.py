"""Templates that say what they lack: a name nobody gave is an error, and text is escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def strict_environment(package: str, **options: Any) -> Environment:
    """Make the environment of the templates in a package; `options` are Jinja's own."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
