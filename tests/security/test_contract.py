"""The service keeps the promises of its OpenAPI document, whatever it is sent: schemathesis with all its checks.

Every request and every answer is checked: no 5xx, no undocumented status or content type, bodies that fit their schema,
what violates a schema is refused, no route forgets to ask for the key, what was deleted is gone. `make test` runs a
seeded selection, `make contract` all of it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from app.main import create_app
from app.settings import Settings
from tests.app.api import open_api
from tests.app.routes import make_things
from tests.app.serving import serve

EXAMPLES = int(os.environ.get("NUPES_TEST_CONTRACT_EXAMPLES", "0"))
"""Random requests of each operation, and random sequences; 0 is the quick selection."""
SEED = int(os.environ.get("NUPES_TEST_CONTRACT_SEED", "20261122"))
UNDERSTOOD = ["2xx", "3xx", "401", "403", "404", "409", "410", "412", "413", "416", "422", "428", "460"]
"""A body that fits its schema may still ask for what can not be: 422 says so, 413 of more bytes than an upload has."""
REFUSED = ["400", "401", "403", "404", "405", "406", "409", "412", "413", "415", "416", "422", "423", "428"]
MANY_FIELDS = ["/v1/jobs", "/v1/plans"]
"""Half of the systematic requests are for the body that these two share; the quick selection leaves those out."""


@schemathesis.serializer("application/offset+octet-stream")
def _as_bytes(_: schemathesis.SerializationContext, value: Any) -> Any:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    """No limits in time, and no hub: every request is to be understood."""
    return make_settings(
        database_url=database_url, quota_requests_per_minute=0, auth_failures_per_minute=0, hub=False, log_level="error"
    )


def run(settings: Settings, phase: str, without: list[str] | None = None) -> tuple[Counter[str], list[str]]:
    """Requests of each operation, and the checks that failed."""
    requests: Counter[str] = Counter()
    failures: list[str] = []
    app = create_app(settings)
    with open_api(settings) as api, serve(app) as url:
        make_things(api)
        config = SchemathesisConfig.from_dict(configuration(url, api.headers, phase))
        schema = schemathesis.openapi.from_dict(app.openapi(), config=config)
        if without:
            schema = schema.exclude(path=without)
        for event in from_schema(schema).execute():
            if isinstance(event, events.FatalError):
                raise event.exception
            if isinstance(event, events.NonFatalError):
                failures.append(f"{event.label}: {event.value!r}")
            if isinstance(event, events.ScenarioFinished):
                requests.update(case.value.operation.label for case in event.recorder.cases.values())
                failures += _failed(event)
    return requests, failures


def configuration(url: str, headers: dict[str, str], phase: str) -> dict[str, Any]:
    return {
        "seed": SEED,
        "base-url": url,
        "headers": headers,
        "continue-on-failure": True,
        "request-timeout": 120,
        "checks": {
            "positive_data_acceptance": {"expected-statuses": UNDERSTOOD},
            "negative_data_rejection": {"expected-statuses": REFUSED},
        },
        "generation": {"max-examples": EXAMPLES or 2, "no-shrink": True},
        "phases": {"enabled": False, phase: {"enabled": True}},
        "output": {"sanitization": {"enabled": False}},
    }


def _failed(event: events.ScenarioFinished) -> Iterator[str]:
    for case_id, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                answer = event.recorder.interactions[case_id].response
                status = answer.status_code if answer else None
                failure = check.failure_info.failure
                yield f"{check.name}: {status}: {failure.message}\n    {check.failure_info.code_sample}"


@pytest.mark.parametrize("database_url", ["sqlite"] if not EXAMPLES else ["sqlite", "postgresql"], indirect=True)
@pytest.mark.timeout(1800)
def test_every_field_with_right_and_wrong_values(settings: Settings) -> None:
    requests, failures = run(settings, "coverage", [] if EXAMPLES else MANY_FIELDS)
    assert not failures, "\n".join(failures)
    assert len(requests) > 35
    assert requests.total() > 1000


@pytest.mark.timeout(1800)
def test_random_requests(settings: Settings) -> None:
    requests, failures = run(settings, "fuzzing")
    assert not failures, "\n".join(failures)
    assert len(requests) > 40


@pytest.mark.timeout(1800)
def test_sequences_that_use_ids_of_earlier_answers(settings: Settings) -> None:
    requests, failures = run(settings, "stateful")
    assert not failures, "\n".join(failures)
    assert requests
