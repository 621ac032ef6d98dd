"""Copy an embedded service while it runs: `python -m app.backup FOLDER` (docs/backup.md says what and why)."""

from __future__ import annotations

import argparse
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app.core.secret_key import load_pepper
from app.db.session import Database
from app.settings import Settings, get_settings
from app.storage import BlobNotFoundError, BlobStore, StorageError, open_store
from app.storage.garbage import named_blobs
from app.storage.local import LocalStore

DATABASE, SECRET, BLOBS = "nupes.db", "secret.key", "blobs"


@dataclass(frozen=True)
class Copied:
    """What a backup took along.

    Attributes:
        blobs: copied now.
        kept: there from an earlier backup.
        missing: named by rows and not in the store; 0 in a healthy service.
    """

    blobs: int = 0
    kept: int = 0
    missing: int = 0


def backup(settings: Settings, target: Path) -> Copied:
    """Copy secret key, database and the blobs that its rows name, in this order.

    Raises:
        ValueError: the database is not the embedded one.
        StorageError: a blob is damaged, or the target is full.
    """
    if settings.database_url:
        raise ValueError("NUPES_DATABASE_URL is set; use the tools of that database and of your store (docs/backup.md)")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = target / SECRET
    secret.touch(mode=0o600)
    secret.write_bytes(load_pepper(settings))
    _copy_database(settings.data_dir / DATABASE, target / DATABASE)
    return _copy_blobs(target / DATABASE, open_store(settings), LocalStore(target / BLOBS))


def _copy_database(source: Path, target: Path) -> None:
    """Take a snapshot of a database that is being written to, and check it."""
    partial = target.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    original = f"{source.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(original, uri=True)) as live, closing(sqlite3.connect(partial)) as copy:
        live.backup(copy)
        (verdict,) = copy.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        raise ValueError(f"the database {source} is damaged: {verdict}")
    partial.chmod(0o600)
    partial.replace(target)


def _copy_blobs(database: Path, source: BlobStore, target: LocalStore) -> Copied:
    """Copy what the rows of the copied database name; a blob that is garbage by now is still in its grace."""
    copied = kept = missing = 0
    snapshot = Database(f"sqlite:///{database.absolute()}")
    try:
        with snapshot.read() as session:
            for digest in named_blobs(session):
                if target.exists(digest):
                    kept += 1
                    continue
                try:
                    target.put_stream(source.open(digest), sha256=digest)
                    copied += 1
                except BlobNotFoundError:
                    missing += 1
    finally:
        snapshot.dispose()
    return Copied(copied, kept, missing)


def main() -> None:
    """Make a backup into the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m app.backup", description=__doc__)
    parser.add_argument("folder", type=Path, help="new, or one of an earlier backup: only new blobs are copied then")
    target = parser.parse_args().folder
    try:
        found = backup(get_settings(), target)
    except (ValueError, OSError, StorageError, sqlite3.Error) as error:
        sys.exit(f"no backup was made: {error}")
    sys.stdout.write(f"{target}: secret key, database, {found.blobs} new blobs and {found.kept} known ones\n")
    if found.missing:
        sys.exit(f"{found.missing} blobs that rows name are not in the store: their models and artifacts are lost")


if __name__ == "__main__":
    main()
