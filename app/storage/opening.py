"""From `NUPES_STORAGE_URL` to a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from app.settings import Settings
from app.storage.blob import BlobStore
from app.storage.local import LocalStore


def open_store(settings: Settings) -> BlobStore:
    """Open the store that the settings name.

    Raises:
        ValueError: a storage URL of an unknown kind.
    """
    url = settings.resolved_storage_url
    parts = urlsplit(url)
    if parts.scheme not in _KINDS:
        raise ValueError(f"NUPES_STORAGE_URL is {url!r}; known are {', '.join(f'{kind}://' for kind in _KINDS)}")
    return _KINDS[parts.scheme](parts, settings)


def _open_local(parts: SplitResult, _settings: Settings) -> BlobStore:
    return LocalStore(Path(unquote(parts.path)))


def _open_s3(parts: SplitResult, settings: Settings) -> BlobStore:
    from app.storage.s3 import S3Store  # boto3 costs 100 ms and 10 MB: only who uses it pays

    return S3Store(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        endpoint_url=settings.s3_endpoint_url,
        spool_dir=settings.data_dir / "spool",
    )


_KINDS: dict[str, Callable[[SplitResult, Settings], BlobStore]] = {"file": _open_local, "s3": _open_s3}
