"""MODEL: a folder here, a registered model, or a hub id."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nupes_client.cli import output
from nupes_client.errors import LocalFileError
from nupes_client.files import model_folder

if TYPE_CHECKING:
    from nupes_client.client import Client
    from nupes_client.schemas.models import Model

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""What hubs call a model: `org/name`."""


def check_model(argument: str) -> None:
    """Refuse what can be no model before the service is asked.

    Raises:
        LocalFileError: a path to nothing, or to a folder without a whole model.
    """
    path = Path(argument)
    if path.exists():
        model_folder(path)
    elif not _is_registered(argument) and (_looks_like_path(argument) or not _HUB_ID.fullmatch(argument)):
        raise LocalFileError(f"{path}: no such file or folder", hint=_hint(argument))


def resolve_model(client: Client, argument: str, advance: Callable[[int], None] | None = None) -> Model:
    """Return the registered model that the argument means, sending or registering it first when needed.

    Raises:
        LocalFileError: see `check_model`.
        ApiError: the service refused.
    """
    check_model(argument)
    if Path(argument).exists():
        return _from_folder(client, Path(argument), advance)
    if _is_registered(argument):
        return client.models.get(argument)
    match = _HUB_ID.fullmatch(argument)
    if match is None:
        raise LocalFileError(f"{argument!r} is neither a folder nor a model id nor a hub id")
    return client.models.from_hub(match["repo"], match["revision"])


def model_bytes(argument: str) -> int:
    """Bytes that will have to go out for this argument at most."""
    path = Path(argument)
    return model_folder(path).size if path.is_dir() else 0


def _from_folder(client: Client, folder: Path, advance: Callable[[int], None] | None) -> Model:
    left_out = model_folder(folder).left_out
    if left_out:
        output.note(f"not sent: {', '.join(path.name for path in left_out)}")
    return client.models.from_folder(folder, advance=advance)


def _hint(argument: str) -> str:
    of_the_hub = f"; a model of the hub is meant by {argument}@main" if _HUB_NAME.fullmatch(argument) else ""
    return f"Check the path{of_the_hub}."


def _is_registered(argument: str) -> bool:
    return argument.startswith("mdl_")


def _looks_like_path(argument: str) -> bool:
    beside = Path(argument).parent
    in_a_folder_here = "@" not in argument and beside != Path() and beside.is_dir()
    return in_a_folder_here or argument.startswith(("/", "./", "../", "~")) or argument.endswith("/")
