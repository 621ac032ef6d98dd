"""What can be done with models that are registered, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from app.core.problems import ConflictError, NotFoundError
from app.db.tables import Model as ModelRow
from app.db.tables import ModelFile as FileRow
from app.models import headers as stored_headers
from app.models import repository
from nupes_client.schemas.models import Finding, Model, ModelFile
from nupes_core.header import Header

T = TypeVar("T")


def get(session: Session, tenant_id: str, model_id: str) -> ModelRow:
    """Return one model, without its headers and config: see `blueprint`.

    Raises:
        NotFoundError: no such model in this tenant.
    """
    return _found(repository.get(session, tenant_id, model_id), model_id)


def names(session: Session, tenant_id: str, model_ids: Collection[str]) -> dict[str, str]:
    """Names of the tenant's models by id; ids of no model of its are left out."""
    return repository.names_of(session, tenant_id, model_ids) if model_ids else {}


def blueprint(session: Session, model_id: str) -> tuple[dict[str, Header], dict[str, Any]]:
    """Return the checked headers of a model's weight files, by path, and its config. They never change.

    Raises:
        NotFoundError: it was deleted meanwhile.
    """
    headers, config = _found(repository.blueprint(session, model_id), model_id)
    return stored_headers.from_json(headers), config


def remove(session: Session, tenant_id: str, model_id: str) -> None:
    """Forget a model; bytes nobody else needs are collected later.

    Raises:
        NotFoundError: no such model in this tenant.
        ConflictError: there are jobs of it.
    """
    model = _found(repository.get(session, tenant_id, model_id, lock=True), model_id)
    jobs = repository.jobs_of(session, model_id)
    if jobs:
        raise ConflictError(
            "model_in_use",
            f"the model is used by {', '.join(jobs)}",
            hint="Delete these jobs first; cancel those that run.",
        )
    session.delete(model)


def _found(found: T | None, model_id: str) -> T:
    if found is None:
        raise NotFoundError("model", model_id)
    return found


def views(session: Session, rows: Sequence[ModelRow]) -> list[Model]:
    """The wire models of several rows, their files read in one query."""
    files = repository.files_of(session, [row.id for row in rows])
    return [_view(row, files.get(row.id, ())) for row in rows]


def _view(row: ModelRow, files: Iterable[FileRow]) -> Model:
    return Model(
        id=row.id,
        name=row.name,
        source=row.source,
        architecture=row.architecture,
        model_type=row.model_type,
        params=row.params,
        bytes=row.bytes,
        dtype=row.dtype,
        license=row.license,
        files=[ModelFile(path=file.path, size=file.size, sha256=file.sha256) for file in files],
        findings=[Finding.model_validate(finding) for finding in row.findings],
        created_at=row.created_at,
    )
