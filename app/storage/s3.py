"""Blobs in a bucket of S3 or anything that speaks its protocol. Credentials come from the usual AWS places."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from app.storage.blob import CHUNK_BYTES, Blob, Incoming, StoredBlob, checked_sha256
from app.storage.errors import BlobNotFoundError, ChecksumMismatchError, StorageError
from app.storage.partial import Partials
from app.storage.spool import Spool, drop_stale, full_disk_is_typed

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

T = TypeVar("T")

_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


class _BehindTheEndError(StorageError):
    """The range begins behind the last byte; a file would read nothing there."""


class S3Store:
    """A bucket. Bytes pass through a local spool, as their name is known only when all are hashed. See `BlobStore`."""

    def __init__(self, bucket: str, prefix: str, endpoint_url: str | None, spool_dir: Path) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._spool_dir = spool_dir
        self.partials = Partials(spool_dir / "partial")
        spool_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"max_attempts": 4, "mode": "standard"},
            s3={"addressing_style": "path" if endpoint_url else "auto"},
        )
        self._client: S3Client = boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)

    def put_file(self, path: Path, *, move: bool = False, sha256: str | None = None) -> Blob:
        """See `BlobStore`."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 is not None and digest != sha256:
            raise ChecksumMismatchError(sha256, digest)
        self._upload(path, digest)
        size = path.stat().st_size
        if move:
            path.unlink()
        return Blob(digest, size)

    def put_stream(self, chunks: Iterable[bytes], *, sha256: str | None = None) -> Blob:
        """See `BlobStore`."""
        with self.spool() as spool:
            for chunk in chunks:
                spool.write(chunk)
            if sha256 is not None and spool.sha256 != sha256:
                raise ChecksumMismatchError(sha256, spool.sha256)
            return self.commit(spool)

    def spool(self) -> Spool:
        """See `BlobStore`."""
        return Spool(self._spool_dir)

    def commit(self, incoming: Incoming) -> Blob:
        """See `BlobStore`."""
        incoming.finish()
        self._upload(incoming.path, incoming.sha256)
        return Blob(incoming.sha256, incoming.size)

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `BlobStore`."""
        if end is not None and end <= start:
            self.size(sha256)  # S3 knows no empty range; a missing blob is still an error
            return iter(())
        if start == 0 and end is None:
            return self._reach(sha256, self._whole)
        byte_range = f"bytes={start}-{'' if end is None else end - 1}"
        return self._reach(sha256, lambda sha256: self._part(sha256, byte_range))

    def link(self, sha256: str, disposition: str, media_type: str, seconds: int) -> str | None:
        """See `BlobStore`: a presigned URL. The bucket is asked first: a link to a doomed blob would lead nowhere."""
        self.size(sha256)
        params = {"ResponseContentDisposition": disposition, "ResponseContentType": media_type}
        with self._typed():
            return self._client.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": self._key(sha256), **params}, ExpiresIn=seconds
            )

    def fetch_to(self, sha256: str, path: Path) -> None:
        """See `BlobStore`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        actual = hashlib.sha256()
        try:
            with full_disk_is_typed(), path.open("xb") as target:
                for chunk in self._reach(sha256, self._whole):
                    target.write(chunk)
                    actual.update(chunk)
            if actual.hexdigest() != sha256:
                raise ChecksumMismatchError(sha256, actual.hexdigest())
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def exists(self, sha256: str) -> bool:
        """See `BlobStore`."""
        try:
            self.size(sha256)
        except BlobNotFoundError:
            return False
        return True

    def size(self, sha256: str) -> int:
        """See `BlobStore`."""
        return self._reach(sha256, self._head)

    def list(self) -> Iterator[StoredBlob]:
        """See `BlobStore`."""
        return self._listed("sha256")

    def doom(self, sha256: str) -> None:
        """See `BlobStore`. S3 can not rename: a copy inside the bucket, then a deletion."""
        try:
            self._move(self._key(sha256), self._key(sha256, "doomed"), sha256)
        except BlobNotFoundError:
            return

    def doomed(self) -> Iterator[StoredBlob]:
        """See `BlobStore`."""
        return self._listed("doomed")

    def restore(self, sha256: str) -> bool:
        """See `BlobStore`."""
        try:
            self._move(self._key(sha256, "doomed"), self._key(sha256), sha256)
        except BlobNotFoundError:
            return False
        return True

    def purge(self, sha256: str) -> None:
        """See `BlobStore`."""
        with self._typed(sha256):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(sha256, "doomed"))

    def drop_stale_spools(self, before: datetime) -> int:
        """See `BlobStore`."""
        return drop_stale(self._spool_dir, before)

    def free_bytes(self) -> int:
        """See `BlobStore`."""
        return shutil.disk_usage(self._spool_dir).free

    def check(self) -> None:
        """See `BlobStore`."""
        with self._typed():
            self._client.head_bucket(Bucket=self.bucket)

    def _key(self, sha256: str, folder: str = "sha256") -> str:
        return f"{self.prefix}{folder}/{checked_sha256(sha256)}"

    def _head(self, sha256: str) -> int:
        with self._typed(sha256):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(sha256))["ContentLength"]

    def _reach(self, sha256: str, act: Callable[[str], T]) -> T:
        """Do something with a blob; one that is doomed comes back, since it is asked for."""
        try:
            return act(sha256)
        except BlobNotFoundError:
            if not self.restore(sha256):
                raise
        return act(sha256)

    def _move(self, source: str, target: str, sha256: str) -> None:
        with self._typed(sha256):
            self._client.copy({"Bucket": self.bucket, "Key": source}, self.bucket, target)
            self._client.delete_object(Bucket=self.bucket, Key=source)

    def _listed(self, folder: str) -> Iterator[StoredBlob]:
        with self._typed():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=f"{self.prefix}{folder}/"
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    yield StoredBlob(item["Key"].rsplit("/", 1)[1], item["Size"], item["LastModified"])

    def _upload(self, path: Path, sha256: str) -> None:
        # Sent even when it is there: that renews its date, which garbage collection goes by.
        with self._typed(sha256):
            self._client.upload_file(str(path), self.bucket, self._key(sha256))

    def _whole(self, sha256: str) -> Iterator[bytes]:
        with self._typed(sha256):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(sha256))
        return self._chunks(sha256, answer["Body"].iter_chunks(CHUNK_BYTES))

    def _part(self, sha256: str, byte_range: str) -> Iterator[bytes]:
        try:
            with self._typed(sha256):
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(sha256), Range=byte_range)
        except _BehindTheEndError:
            return iter(())
        return self._chunks(sha256, answer["Body"].iter_chunks(CHUNK_BYTES))

    def _chunks(self, sha256: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        with self._typed(sha256):
            yield from chunks

    @contextmanager
    def _typed(self, sha256: str = "") -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if sha256 and code in _MISSING:
                raise BlobNotFoundError(sha256) from error
            if code == "InvalidRange":
                raise _BehindTheEndError(sha256) from error
            raise StorageError(f"the bucket {self.bucket!r} answers {code or error}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise StorageError(f"the bucket {self.bucket!r} does not answer: {error}") from error
