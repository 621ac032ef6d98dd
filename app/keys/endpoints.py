"""`/v1/keys`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response, status

from app.core.deps import ReadSession, WriteSession
from app.core.openapi import problems
from app.core.pagination import PageParams, paginate
from app.core.security import Authenticated, KeysManage, PresentedSecret
from app.db.tables import ApiKey
from app.keys import repository, service
from nupes_client.schemas.base import Page
from nupes_client.schemas.keys import Key, KeyCreate, KeyCreated, KeyRotate, LoginLink

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post("", status_code=status.HTTP_201_CREATED)
def create_key(
    body: KeyCreate, who: KeysManage, session: WriteSession, request: Request, response: Response
) -> KeyCreated:
    """Make a key. Its secret is in this answer and nowhere else."""
    key = service.create(session, request.app.state.pepper, who, body)
    response.headers["Location"] = f"/v1/keys/{key.id}"
    return key


@router.get("")
def list_keys(who: KeysManage, session: ReadSession, params: PageParams) -> Page[Key]:
    """Keys of the tenant, newest first."""
    rows, cursor = paginate(session, repository.listing(who.tenant_id), ApiKey.id, params)
    return Page(data=[service.view(row) for row in rows], next_cursor=cursor, has_more=cursor is not None)


@router.post("/login-links", status_code=status.HTTP_201_CREATED)
def create_login_link(
    who: Authenticated, secret: PresentedSecret, session: WriteSession, request: Request
) -> LoginLink:
    """Make a link that signs a browser in with the key of this request, once and within ten minutes.

    Opening it asks whether to sign in, so a preview does not use it up.
    """
    return service.login_link(session, request.app.state.pepper, who, secret)


@router.get("/{key_id}")
def get_key(key_id: str, who: KeysManage, session: ReadSession) -> Key:
    """One key, without its secret."""
    return service.view(service.get(session, who.tenant_id, key_id))


@router.post("/{key_id}/rotate", responses=problems(409))
def rotate_key(
    key_id: str, who: KeysManage, session: WriteSession, request: Request, body: KeyRotate | None = None
) -> KeyCreated:
    """Give a key a new secret, which is in this answer and nowhere else; the present one stays valid for a while."""
    return service.rotate(session, request.app.state.pepper, who, key_id, body or KeyRotate())


@router.delete("/{key_id}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(409))
def revoke_key(key_id: str, who: KeysManage, session: WriteSession) -> None:
    """Revoke a key; it opens nothing from now on and stays in the list."""
    service.revoke(session, who, key_id)
