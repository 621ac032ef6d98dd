"""`/v1/secrets`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, status

from app.core.deps import ReadSession, WriteSession
from app.core.openapi import problems
from app.core.pagination import PageParams, paginate
from app.core.sealing import Sealer
from app.core.security import SecretsManage
from app.db import tables
from app.secrets import repository, service
from app.secrets.sealing import sealer
from nupes_client.schemas.base import Page
from nupes_client.schemas.secrets import Secret, SecretSet

PATH = "/v1/secrets"
router = APIRouter(prefix=PATH, tags=["secrets"])


async def _sealer(request: Request) -> Sealer:
    return sealer(request.app.state.pepper)


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    responses={200: {"model": Secret, "description": "Replaced"}, **problems(409)},
)
def set_secret(
    body: SecretSet,
    who: SecretsManage,
    session: WriteSession,
    box: Annotated[Sealer, Depends(_sealer)],
    response: Response,
) -> Secret:
    """Store a secret, or replace the one that has the name (200). The value is in no answer, log or event."""
    secret, is_new = service.put(session, box, who, body)
    response.status_code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
    response.headers["Location"] = f"{PATH}/{secret.name}"
    return secret


@router.get("")
def list_secrets(who: SecretsManage, session: ReadSession, params: PageParams) -> Page[Secret]:
    """Secrets of the tenant without their values, newest first."""
    rows, cursor = paginate(session, repository.listing(who.tenant_id), tables.Secret.id, params)
    return Page(data=[service.view(row) for row in rows], next_cursor=cursor, has_more=cursor is not None)


@router.get("/{secret_name}")
def get_secret(secret_name: str, who: SecretsManage, session: ReadSession) -> Secret:
    """One secret, without its value."""
    return service.view(service.get(session, who.tenant_id, secret_name))


@router.delete("/{secret_name}", status_code=status.HTTP_204_NO_CONTENT)
def delete_secret(secret_name: str, who: SecretsManage, session: WriteSession) -> None:
    """Delete a secret; a job that names it fails when it needs it."""
    service.remove(session, who, secret_name)
