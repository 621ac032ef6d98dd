"""What can be done with models that are registered, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy.orm import Session

from app.core.problems import ConflictError, NotFoundError
from app.db.tables import Model as ModelRow
from app.db.tables import ModelFile as FileRow
from app.models import headers as stored_headers
from app.models import repository
from nupes_client.schemas.models import Finding, Model, ModelFile
from nupes_core.header import Header


def get(session: Session, tenant_id: str, model_id: str) -> ModelRow:
    """Return one model.

    Raises:
        NotFoundError: no such model in this tenant.
    """
    model = repository.get(session, tenant_id, model_id)
    if model is None:
        raise NotFoundError("model", model_id)
    return model


def headers(model: ModelRow) -> dict[str, Header]:
    """The checked headers of its weight files, by path."""
    return stored_headers.from_json(model.headers)


def remove(session: Session, tenant_id: str, model_id: str) -> None:
    """Forget a model; bytes nobody else needs are collected later.

    Raises:
        NotFoundError: no such model in this tenant.
        ConflictError: there are jobs of it.
    """
    model = repository.get(session, tenant_id, model_id, lock=True)
    if model is None:
        raise NotFoundError("model", model_id)
    jobs = repository.jobs_of(session, model_id)
    if jobs:
        raise ConflictError(
            "model_in_use",
            f"the model is used by {', '.join(jobs)}",
            hint="Delete these jobs first; cancel those that run.",
        )
    session.delete(model)


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
