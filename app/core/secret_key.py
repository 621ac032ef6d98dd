"""The one secret of the service: pepper of key hashes, and what secrets of receivers are encrypted under."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from app.settings import Settings


def load_pepper(settings: Settings) -> bytes:
    """The secret under which keys are hashed: `NUPES_SECRET_KEY`, else a file in the data folder, made on first use."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    path = settings.data_dir / "secret.key"
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _create_private(path, secrets.token_hex(32))
    return path.read_bytes()


def _create_private(path: Path, content: str) -> None:
    """Write a file that only its owner reads, unless it is there; never visible half-written."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass  # another process was faster; its key counts
    finally:
        temporary.unlink()
