"""`/v1/models`."""

from __future__ import annotations

from fastapi import APIRouter, Response, status

from app.audit import service as audit
from app.core.deps import Database_, ReadSession, Settings_, Store, WriteSession
from app.core.openapi import problems
from app.core.pagination import PageParams, paginate
from app.core.security import ModelsRead, ModelsWrite
from app.db.tables import Model as ModelRow
from app.models import registration, repository, service
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.base import Page
from nupes_client.schemas.models import Model, ModelCreate

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.post("", status_code=status.HTTP_201_CREATED, responses=problems(403, 404, 410, 502))
def create_model(
    body: ModelCreate, who: ModelsWrite, database: Database_, store: Store, settings: Settings_, response: Response
) -> Model:
    """Register a model. Its headers and configuration are looked at; nothing is executed, no weight is read."""
    model = registration.register(database, store, settings, who, body)
    response.headers["Location"] = f"/v1/models/{model.id}"
    with database.read() as session:
        return service.views(session, [model])[0]


@router.get("")
def list_models(who: ModelsRead, session: ReadSession, params: PageParams) -> Page[Model]:
    """Models of the tenant, newest first."""
    rows, cursor = paginate(session, repository.listing(who.tenant_id), ModelRow.id, params)
    return Page(data=service.views(session, rows), next_cursor=cursor, has_more=cursor is not None)


@router.get("/{model_id}")
def get_model(model_id: str, who: ModelsRead, session: ReadSession) -> Model:
    """One model, its files and what the scan noticed."""
    return service.views(session, [service.get(session, who.tenant_id, model_id)])[0]


@router.delete("/{model_id}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(409))
def delete_model(model_id: str, who: ModelsWrite, session: WriteSession) -> None:
    """Forget a model; refused while there are jobs of it."""
    service.remove(session, who.tenant_id, model_id)
    audit.record(session, who, AuditAction.MODEL_DELETED, model_id)
