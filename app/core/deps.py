"""What endpoints ask for: sessions, settings, the blob store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session
from starlette.requests import Request

from app.db.session import Database, after_commit
from app.settings import Settings
from app.storage import BlobStore

__all__ = ["Database_", "ReadSession", "Settings_", "Store", "WriteSession", "after_commit"]


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


async def _store(request: Request) -> BlobStore:
    store: BlobStore = request.app.state.store
    return store


Settings_ = Annotated[Settings, Depends(_settings)]
Database_ = Annotated[Database, Depends(_database)]
Store = Annotated[BlobStore, Depends(_store)]


def _read_session(database: Database_) -> Iterator[Session]:
    with database.read() as session:
        yield session


def _write_session(database: Database_) -> Iterator[Session]:
    with database.write() as session:
        yield session


# Scope "function" ends the session when the endpoint returns, before a byte of the answer leaves: a client that reads
# 201 finds the row, and a commit that fails is answered as an error.
ReadSession = Annotated[Session, Depends(_read_session, scope="function")]
WriteSession = Annotated[Session, Depends(_write_session, scope="function")]
