"""All SQL about models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, defer

from app.db.tables import Job, Model, ModelFile


def get(session: Session, tenant_id: str, model_id: str, *, lock: bool = False) -> Model | None:
    """One model of the tenant."""
    query = select(Model).where(Model.tenant_id == tenant_id, Model.id == model_id)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def listing(tenant_id: str) -> Select[Model]:
    """The query of a list; headers, which can be megabytes, stay in the database."""
    large = (defer(Model.headers, raiseload=True), defer(Model.config, raiseload=True))
    return select(Model).where(Model.tenant_id == tenant_id).options(*large)


def add(session: Session, model: Model, files: Iterable[ModelFile]) -> None:
    """Add a model and its files."""
    session.add(model)
    session.flush()
    for file in files:
        file.model_id = model.id
        session.add(file)
    session.flush()


def files_of(session: Session, model_ids: Collection[str]) -> dict[str, list[ModelFile]]:
    """The files of several models, by path."""
    files: dict[str, list[ModelFile]] = defaultdict(list)
    query = select(ModelFile).where(ModelFile.model_id.in_(model_ids)).order_by(ModelFile.path)
    for file in session.scalars(query):
        files[file.model_id].append(file)
    return files


def jobs_of(session: Session, model_id: str) -> list[str]:
    """Some of the jobs that were made from a model."""
    return list(session.scalars(select(Job.id).where(Job.model_id == model_id).order_by(Job.id.desc()).limit(5)))
