"""Plans: what a job would do and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nupes_client.resources.bodies import job_body
from nupes_client.schemas.plans import Plan
from nupes_client.schemas.specs import JobCreate
from nupes_client.transport import Transport


class Plans:
    """`/v1/plans`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, body: JobCreate | Mapping[str, Any]) -> Plan:
        """Ask what a job would do; changes nothing. A mapping is read as such a body, as `Jobs.create` does."""
        wish = job_body(body).model_dump(mode="json")
        response = self._transport.request("POST", "/v1/plans", json=wish, repeatable=True)
        return Plan.model_validate_json(response.content)
