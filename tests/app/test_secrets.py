"""Secrets of a tenant: written, replaced, listed and deleted, never read; encrypted in the database."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from app.core.sealing import UnreadableSecretError
from app.db.tables import Secret
from app.secrets import service
from app.secrets.sealing import MissingSecretError, sealer, take
from app.settings import Settings
from tests.app.api import Api
from tests.app.test_problems import problem

VALUE = "hf_AbCdEfGhIjKlMnOpQr"


def put(api: Api, name: str = "team", value: str = VALUE) -> Any:
    return api.post("/v1/secrets", json={"name": name, "value": value})


def sealed(api: Api) -> list[str]:
    with api.database.read() as session:
        return list(session.scalars(select(Secret.sealed).where(Secret.tenant_id == api.tenant_id)))


def test_a_secret_is_stored_replaced_listed_and_deleted_and_no_answer_holds_it(api: Api, settings: Settings) -> None:
    made = put(api)
    assert (made.status_code, made.headers["Location"]) == (201, "/v1/secrets/team")
    assert made.json() | {"name": "team", "kind": "hub_token", "last_used_at": None} == made.json()
    first = sealed(api)
    replaced = put(api, value="hf_other")
    assert (replaced.status_code, replaced.json()["id"]) == (200, made.json()["id"])
    assert sealed(api) != first
    with api.database.write() as session:
        assert take(session, settings, api.tenant_id, "team", "hub_token") == "hf_other"
    shown = api.get("/v1/secrets/team").json()
    assert shown["last_used_at"] is not None
    assert api.get("/v1/secrets").json()["data"] == [shown]
    assert api("DELETE", "/v1/secrets/team").status_code == 204
    problem(api.get("/v1/secrets/team"), 404, "not_found")
    noted = [entry["action"] for entry in api.get("/v1/audit").json()["data"]]
    assert noted == ["secret.deleted", "secret.replaced", "secret.created"]
    text = "".join(each.text for each in (made, replaced, api.get("/v1/audit")))
    assert VALUE not in text
    assert "hf_other" not in text


def test_the_database_holds_no_value_and_another_secret_key_opens_none(lite: Api, settings: Settings) -> None:
    put(lite)
    (kept,) = sealed(lite)
    assert VALUE not in kept
    assert sealer(lite.app.state.pepper).open(kept) == VALUE
    with pytest.raises(UnreadableSecretError, match="NUPES_SECRET_KEY"):
        sealer(b"another").open(kept)
    with lite.database.write() as session, pytest.raises(MissingSecretError):
        take(session, settings, lite.tenant_id, "other", "hub_token")


@pytest.mark.parametrize("value", ["", "hf_ x", "hf_\nx", "hf_ü", "x" * 2001])
def test_what_no_header_can_carry_is_refused_without_repeating_it(lite: Api, value: str) -> None:
    answer = put(lite, value=value)
    assert [error.pointer for error in problem(answer, 422, "validation_error").errors or ()] == ["/value"]
    assert not value or value not in answer.text


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "x" * 65])
def test_a_name_is_a_word(lite: Api, name: str) -> None:
    assert [error.pointer for error in problem(put(lite, name), 422, "validation_error").errors or ()] == ["/name"]


def test_two_tenants_can_use_the_same_name_and_know_nothing_of_each_other(api: Api) -> None:
    other = api.another_tenant()
    put(api)
    problem(other.get("/v1/secrets/team"), 404, "not_found")
    assert put(other, value="hf_second").status_code == 201
    assert other("DELETE", "/v1/secrets/team").status_code == 204
    assert api.get("/v1/secrets/team").status_code == 200


def test_a_tenant_has_a_bounded_number_of_secrets_and_can_still_replace_one(
    lite: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_SECRETS", 2)
    assert [put(lite, name).status_code for name in ("a", "b")] == [201, 201]
    problem(put(lite, "c"), 409, "too_many_secrets")
    assert put(lite, "b", "hf_new").status_code == 200
