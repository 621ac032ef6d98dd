"""Where the service is and which key opens it: the environment, else what `nupes up` left on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nupes_client.errors import ConfigurationError

FILE_NAME = "credentials.json"
DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Credentials:
    """Address of a service and a key for it; the key is kept out of `repr`."""

    url: str
    api_key: str | None

    def __repr__(self) -> str:
        return f"Credentials(url={self.url!r}, api_key={'set' if self.api_key else None!r})"


def discover(environ: Mapping[str, str] = os.environ) -> Credentials:
    """Read `NUPES_URL` and `NUPES_API_KEY`, falling back to the credentials file of `nupes up` (`NUPES_DATA_DIR`).

    The key in the file is used for the address in the file alone: it is never sent to another host.

    Raises:
        ConfigurationError: the credentials file is there but unreadable.
    """
    stored = load(data_dir(environ) / FILE_NAME)
    url = environ.get("NUPES_URL") or (stored.url if stored else DEFAULT_URL)
    key = environ.get("NUPES_API_KEY") or None
    if key is None and stored is not None and stored.url.rstrip("/") == url.rstrip("/"):
        key = stored.api_key
    return Credentials(url=url, api_key=key)


def data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the embedded service on this machine."""
    return Path(environ.get("NUPES_DATA_DIR") or Path.home() / ".nupes")


def load(path: Path) -> Credentials | None:
    """Read a credentials file; None when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Credentials(url=str(content["url"]), api_key=str(content["api_key"]))
    except FileNotFoundError:
        return None
    except PermissionError:
        return None  # another user's service; the environment may still say everything
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is not a credentials file: {error}", hint="Remove it and start `nupes up` again."
        ) from error


def save(path: Path, credentials: Credentials) -> None:
    """Write a credentials file that only the owner can read, replacing it in one step."""
    content = json.dumps({"url": credentials.url, "api_key": credentials.api_key}, indent=2) + "\n"
    write_private(path, content)


def write_private(path: Path, content: str) -> None:
    """Write `content` to `path` with mode 0600; a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
