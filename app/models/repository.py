"""All SQL about models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session, defer

from app.db.tables import Job, Model, ModelFile

_WITHOUT_LARGE = (defer(Model.headers, raiseload=True), defer(Model.config, raiseload=True))
"""What can be megabytes stays in the database; see `blueprint`."""

_ONE = select(Model).where(Model.tenant_id == bindparam("tenant_id"), Model.id == bindparam("model_id"))
_READ, _LOCK = _ONE.options(*_WITHOUT_LARGE), _ONE.options(*_WITHOUT_LARGE).with_for_update()
_HASHES = select(ModelFile.path, ModelFile.sha256).where(ModelFile.model_id == bindparam("model_id"))


def get(session: Session, tenant_id: str, model_id: str, *, lock: bool = False) -> Model | None:
    """One model of the tenant, without headers and config; with `lock` nobody else changes it meanwhile."""
    wanted = {"tenant_id": tenant_id, "model_id": model_id}
    return session.scalars(_LOCK if lock else _READ, wanted).one_or_none()


def blueprint(session: Session, model_id: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Headers and config of a model; the caller has checked the tenant."""
    row = session.execute(select(Model.headers, Model.config).where(Model.id == model_id)).one_or_none()
    return None if row is None else (row.headers, row.config)


def listing(tenant_id: str) -> Select[Model]:
    """The query of a list, without headers and config."""
    return select(Model).where(Model.tenant_id == tenant_id).options(*_WITHOUT_LARGE)


def add(session: Session, model: Model, files: Iterable[ModelFile]) -> None:
    """Add a model and its files."""
    session.add(model)
    session.flush()
    for file in files:
        file.model_id = model.id
        session.add(file)
    session.flush()


def names_of(session: Session, tenant_id: str, model_ids: Collection[str]) -> dict[str, str]:
    """Names of those of these models that the tenant has, by id."""
    query = select(Model.id, Model.name).where(Model.tenant_id == tenant_id, Model.id.in_(model_ids))
    return {row.id: row.name for row in session.execute(query)}


def files_of(session: Session, model_ids: Collection[str]) -> dict[str, list[ModelFile]]:
    """The files of several models, by path."""
    files: dict[str, list[ModelFile]] = defaultdict(list)
    query = select(ModelFile).where(ModelFile.model_id.in_(model_ids)).order_by(ModelFile.path)
    for file in session.scalars(query):
        files[file.model_id].append(file)
    return files


def hashes_of(session: Session, model_id: str) -> dict[str, str | None]:
    """The hash of each file of a model, by path; None where only a worker will know it."""
    return {row.path: row.sha256 for row in session.execute(_HASHES, {"model_id": model_id})}


def jobs_of(session: Session, model_id: str) -> list[str]:
    """Some of the jobs that were made from a model."""
    return list(session.scalars(select(Job.id).where(Job.model_id == model_id).order_by(Job.id.desc()).limit(5)))
