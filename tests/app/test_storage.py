from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from app.core.clock import now
from app.core.ids import new_id
from app.db.session import Database
from app.db.tables import Job, Tenant, Upload
from app.jobs import outcomes
from app.settings import Settings
from app.storage import (
    BlobNotFoundError,
    BlobStore,
    ChecksumMismatchError,
    DiskFullError,
    StorageError,
    open_store,
)
from app.storage.garbage import collect
from app.storage.local import LocalStore
from app.storage.s3 import S3Store
from tests.app.jobrows import claim, make_file, make_result, new_job
from tests.servers import s3_server

CONTENT = bytes(range(256)) * 9000  # more than two chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BUCKET = "nupes-test"
AT_ONCE = timedelta(seconds=-5)
"""A grace that lets everything be old: S3 dates are in seconds."""


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def s3_settings(
    s3_endpoint: str, make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Settings:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1" if name.endswith("REGION") else "test")
    bucket = f"{BUCKET}-{os.urandom(4).hex()}"
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=bucket)
    return make_settings(storage_url=f"s3://{bucket}/some/prefix", s3_endpoint_url=s3_endpoint)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, make_settings: Callable[..., Settings]) -> BlobStore:
    settings = request.getfixturevalue("s3_settings") if request.param == "s3" else make_settings()
    store = open_store(settings)
    assert isinstance(store, S3Store if request.param == "s3" else LocalStore)
    return store


def spooled(store: BlobStore) -> list[Path]:
    folder = store.root / "incoming" if isinstance(store, LocalStore) else store._spool_dir  # type: ignore[attr-defined]
    return list(folder.glob("*"))


def test_a_file_comes_back_as_it_went_in(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    blob = store.put_file(source)
    assert (blob.sha256, blob.size) == (SHA256, len(CONTENT))
    assert b"".join(store.open(SHA256)) == CONTENT
    store.fetch_to(SHA256, tmp_path / "deep" / "target")
    assert (tmp_path / "deep" / "target").read_bytes() == CONTENT
    assert source.read_bytes() == CONTENT
    assert spooled(store) == []


def test_any_range_can_be_read(store: BlobStore) -> None:
    store.put_stream([CONTENT])
    size = len(CONTENT)
    for start, end in [
        (0, 1),
        (5, 5),
        (100, 2_000_000),
        (size - 1, None),
        (7, None),
        (0, 10**9),
        (size, None),
        (size, size + 1),
    ]:
        assert b"".join(store.open(SHA256, start, end)) == CONTENT[start:end]


def test_empty_content_is_content(store: BlobStore) -> None:
    blob = store.put_stream([])
    assert blob.size == 0
    assert store.exists(blob.sha256)
    assert b"".join(store.open(blob.sha256)) == b""
    assert b"".join(store.open(blob.sha256, 0, 0)) == b""


def test_equal_content_is_stored_once(store: BlobStore) -> None:
    store.put_stream([CONTENT])
    store.put_stream([CONTENT[:10], CONTENT[10:]])
    assert [blob.sha256 for blob in store.list()] == [SHA256]
    assert store.size(SHA256) == len(CONTENT)


def test_a_moved_file_is_gone_from_its_place(store: BlobStore, tmp_path: Path) -> None:
    for _ in range(2):  # the second time the content is there already
        source = tmp_path / "source"
        source.write_bytes(CONTENT)
        store.put_file(source, move=True)
        assert not source.exists()
    assert store.size(SHA256) == len(CONTENT)


def test_a_wrong_checksum_stores_nothing(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    for put in (
        lambda: store.put_file(source, sha256="0" * 64),
        lambda: store.put_file(source, move=True, sha256="0" * 64),
        lambda: store.put_stream([CONTENT], sha256="0" * 64),
    ):
        with pytest.raises(ChecksumMismatchError, match=SHA256):
            put()
    assert list(store.list()) == []
    assert spooled(store) == []
    assert source.exists()


def test_missing_content_is_a_typed_error(store: BlobStore, tmp_path: Path) -> None:
    for read in (
        lambda: store.open(SHA256),
        lambda: store.open(SHA256, 3, 3) if isinstance(store, S3Store) else store.open(SHA256),
        lambda: store.size(SHA256),
        lambda: store.fetch_to(SHA256, tmp_path / "target"),
    ):
        with pytest.raises(BlobNotFoundError, match=SHA256):
            read()
    assert not (tmp_path / "target").exists()
    assert not store.exists(SHA256)
    store.doom(SHA256)
    store.purge(SHA256)


def test_deleted_content_is_gone(store: BlobStore) -> None:
    store.put_stream([CONTENT])
    store.doom(SHA256)
    store.purge(SHA256)
    assert not store.exists(SHA256)


def test_only_checksums_name_content(store: BlobStore) -> None:
    for name in ("../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 65):
        with pytest.raises(ValueError, match="SHA-256"):
            store.exists(name)


def test_a_stream_that_breaks_leaves_nothing(store: BlobStore) -> None:
    def broken() -> Iterator[bytes]:
        yield CONTENT
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        store.put_stream(broken())
    assert spooled(store) == []
    assert list(store.list()) == []


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_full_disk_is_a_typed_error_and_leaves_nothing(
    kind: str, request: pytest.FixtureRequest, make_settings: Callable[..., Settings]
) -> None:
    """A limit on the size of files that this process may write stands in for the end of the disk."""
    import resource
    import signal

    store = open_store(request.getfixturevalue("s3_settings") if kind == "s3" else make_settings())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskFullError) as caught:
            store.put_stream([CONTENT])
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert spooled(store) == []
    assert list(store.list()) == []


def test_a_link_costs_no_copy_and_can_not_be_written(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    store = open_store(make_settings())
    store.put_stream([CONTENT])
    store.fetch_to(SHA256, tmp_path / "data" / "target")
    info = (tmp_path / "data" / "target").stat()
    assert info.st_nlink == 2
    assert info.st_mode & 0o222 == 0


def test_bytes_that_rotted_in_the_bucket_are_not_handed_out(s3_settings: Settings, tmp_path: Path) -> None:
    store = open_store(s3_settings)
    assert isinstance(store, S3Store)
    store.put_stream([CONTENT])
    store._client.put_object(Bucket=store.bucket, Key=store._key(SHA256), Body=CONTENT[:-1] + b"?")
    with pytest.raises(ChecksumMismatchError):
        store.fetch_to(SHA256, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_dead_bucket_is_a_typed_error(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "test")
    settings = make_settings(storage_url="s3://none", s3_endpoint_url="http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda _: None)  # between botocore's retries
    with pytest.raises(StorageError, match="does not answer"):
        open_store(settings).check()


def test_a_missing_bucket_is_a_typed_error(s3_settings: Settings) -> None:
    store = open_store(s3_settings.model_copy(update={"storage_url": "s3://not-there"}))
    with pytest.raises(StorageError, match="not-there"):
        store.check()


def test_an_unknown_storage_url_is_refused(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match="ftp://"):
        open_store(make_settings(storage_url="ftp://host/path"))


def name_it(database: Database, sha256: str) -> None:
    """Write a row that refers to the content."""
    with database.write() as session:
        tenant = Tenant(name=new_id("name"))
        session.add(tenant)
        session.flush()
        session.add(Upload(tenant_id=tenant.id, filename="f", size=4, sha256=sha256, expires_at=None))


def test_garbage_is_what_no_row_names_and_is_old(store: BlobStore, database: Database) -> None:
    kept, dropped = store.put_stream([b"kept"]), store.put_stream([b"dropped"])
    name_it(database, kept.sha256)
    assert collect(database, store, timedelta(hours=1)) == 0
    assert {blob.sha256 for blob in store.list()} == {kept.sha256, dropped.sha256}
    assert collect(database, store, AT_ONCE) == 0
    assert [blob.sha256 for blob in store.list()] == [kept.sha256]
    assert [blob.sha256 for blob in store.doomed()] == [dropped.sha256]
    assert collect(database, store, timedelta(hours=1)) == 0
    assert collect(database, store, AT_ONCE) == dropped.size
    assert list(store.doomed()) == []
    assert not store.exists(dropped.sha256)
    assert store.exists(kept.sha256)


@pytest.mark.parametrize("ask", ["open", "part", "size", "exists", "fetch"])
def test_doomed_content_comes_back_when_it_is_asked_for(ask: str, store: BlobStore, tmp_path: Path) -> None:
    store.put_stream([CONTENT])
    store.doom(SHA256)
    asked = {
        "open": lambda: b"".join(store.open(SHA256)) == CONTENT,
        "part": lambda: b"".join(store.open(SHA256, 5, 9)) == CONTENT[5:9],
        "size": lambda: store.size(SHA256) == len(CONTENT),
        "exists": lambda: store.exists(SHA256),
        "fetch": lambda: store.fetch_to(SHA256, tmp_path / "file") is None,
    }
    assert asked[ask]()
    assert list(store.doomed()) == []
    store.purge(SHA256)
    assert store.exists(SHA256)


def test_doomed_content_that_a_row_names_comes_back(store: BlobStore, database: Database) -> None:
    store.put_stream([CONTENT])
    collect(database, store, AT_ONCE)
    name_it(database, SHA256)
    assert collect(database, store, AT_ONCE) == 0
    assert [blob.sha256 for blob in store.list()] == [SHA256]


def test_content_stored_again_outlives_its_doomed_copy(store: BlobStore, database: Database) -> None:
    store.put_stream([CONTENT])
    store.doom(SHA256)
    store.put_stream([CONTENT])
    name_it(database, SHA256)
    store.purge(SHA256)
    assert b"".join(store.open(SHA256)) == CONTENT


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_upload_in_the_very_moment_of_collection_is_not_lost(
    moment: str, store: BlobStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector has looked at the rows and is about to act; the same content is stored and named meanwhile."""
    store.put_stream([CONTENT])
    doom = store.doom

    def interrupted(sha256: str) -> None:
        if moment == "after":
            doom(sha256)
        store.put_stream([CONTENT])
        if moment == "before":
            doom(sha256)
        name_it(database, sha256)

    with monkeypatch.context() as patched:
        patched.setattr(store, "doom", interrupted)
        collect(database, store, AT_ONCE)
    collect(database, store, AT_ONCE)
    assert b"".join(store.open(SHA256)) == CONTENT
    assert list(store.doomed()) == []


def test_what_a_running_job_may_have_stored_is_left_alone(store: BlobStore, database: Database) -> None:
    job_id = new_job(database)
    fence = claim(database, job_id)
    store.put_stream([CONTENT])
    with database.write() as session:
        started = session.get_one(Job, job_id)
        started.started_at = now() - timedelta(seconds=10)
    for _ in range(2):
        assert collect(database, store, AT_ONCE) == 0
    assert [blob.sha256 for blob in store.list()] == [SHA256]
    with database.write() as session:
        outcomes.succeed(session, session.get_one(Job, job_id), fence, make_result(), [], [make_file(sha256=SHA256)])
    collect(database, store, AT_ONCE)
    assert [blob.sha256 for blob in store.list()] == [SHA256]


def test_spools_of_killed_processes_are_swept(store: BlobStore) -> None:
    spool = store.spool()
    spool.write(b"half")
    spool._file.close()  # as the kernel does when the process dies
    assert store.drop_stale_spools(now() - timedelta(hours=1)) == 0
    assert store.drop_stale_spools(now() + timedelta(seconds=5)) == 4
    assert spooled(store) == []
