"""Webhooks: who is told what, and what became of each message. Messages follow Standard Webhooks 1.0."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, HttpUrl, field_validator

from nupes_client.schemas.base import Label, LabelValue, Request, Response, Timestamp
from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.problems import JobErrorCode

DAY_S = 24 * 3600


class WebhookEvent(StrEnum):
    """What a receiver can ask for: one event for each status that a job can reach."""

    JOB_QUEUED = "job.queued"
    JOB_RUNNING = "job.running"
    JOB_CANCELLING = "job.cancelling"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"

    @classmethod
    def of(cls, status: JobStatus) -> WebhookEvent:
        """The event of a job that reaches `status`."""
        return cls(f"job.{status.value}")


TEST_TYPE: Literal["webhook.test"] = "webhook.test"
"""Type of the message that `POST /v1/webhooks/{id}/test` sends; not filtered."""
MessageType = WebhookEvent | Literal["webhook.test"]
ENDS: list[WebhookEvent] = [WebhookEvent.JOB_SUCCEEDED, WebhookEvent.JOB_FAILED, WebhookEvent.JOB_CANCELLED]


def _plain(url: HttpUrl) -> HttpUrl:
    if url.username or url.password:
        raise ValueError("the URL holds credentials: messages are signed instead")
    if url.fragment is not None:
        raise ValueError("the URL has a fragment, which is never sent")
    return url


def _each_once(events: list[WebhookEvent]) -> list[WebhookEvent]:
    if len(set(events)) != len(events):
        raise ValueError("an event is named twice")
    return events


ReceiverUrl = Annotated[
    HttpUrl,
    AfterValidator(_plain),
    Field(description="An https address on the public internet, without credentials and fragment."),
]
Events = Annotated[list[WebhookEvent], AfterValidator(_each_once), Field(min_length=1, max_length=len(WebhookEvent))]
LabelFilter = Annotated[dict[Label, LabelValue], Field(max_length=32)]


class WebhookCreate(Request):
    """Ask to be told of jobs."""

    url: ReceiverUrl
    name: str | None = Field(None, min_length=1, max_length=200)
    events: Events = ENDS
    labels: LabelFilter = Field({}, description="Only jobs that have all these labels.")


class WebhookPatch(Request):
    """What may change; fields left out stay as they are."""

    url: ReceiverUrl | None = None
    name: str | None = Field(None, min_length=1, max_length=200)
    events: Events | None = None
    labels: LabelFilter | None = None
    enabled: bool | None = Field(None, description="True also forgets why the service disabled it.")

    @field_validator("url", "events", "labels", "enabled")
    @classmethod
    def _null_is_no_value(cls, value: object) -> object:
        if value is None:
            raise ValueError("leave the field out to keep what is there; null is no value for it")
        return value


class WebhookRotate(Request):
    """Replace the secret."""

    overlap_s: int = Field(
        DAY_S, ge=0, le=7 * DAY_S, description="For so long messages are signed with the old secret too."
    )


class DisabledReason(StrEnum):
    """Why nothing is sent to a receiver."""

    USER = "user"
    GONE = "gone"
    FAILING = "failing"


class Webhook(Response):
    """A receiver, without its secret."""

    id: str
    name: str | None
    url: str
    events: list[WebhookEvent]
    labels: dict[str, str]
    enabled: bool
    disabled_reason: DisabledReason | None = Field(
        description="`user`: switched off; `gone`: it answered 410; `failing`: no success for a whole day of attempts."
    )
    disabled_at: Timestamp | None
    failing_since: Timestamp | None = Field(description="First failure since the last success.")
    last_success_at: Timestamp | None
    previous_secret_until: Timestamp | None = Field(description="Until then messages carry two signatures.")
    created_at: Timestamp


class WebhookCreated(Webhook):
    """With the signing secret, which is shown this once."""

    secret: str = Field(description="`whsec_` and 32 bytes in base64, as libraries for Standard Webhooks take it.")


class DeliveryStatus(StrEnum):
    """Where a message stands: `pending` until it was taken (any 2xx) or given up."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class DeliveryErrorCode(StrEnum):
    """Why an attempt failed."""

    BLOCKED_ADDRESS = "blocked_address"
    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    TLS_FAILED = "tls_failed"
    TIMEOUT = "timeout"
    BROKEN_ANSWER = "broken_answer"
    REDIRECT = "redirect"
    GONE = "gone"
    REFUSED = "refused"


class DeliveryAttempt(Response):
    """One request to a receiver."""

    number: int
    started_at: Timestamp
    duration_ms: int
    response_status: int | None = Field(description="None: no answer.")
    response_excerpt: str | None = Field(description="First bytes of the answer, as text.")
    error: DeliveryErrorCode | None = Field(description="None: the message was taken.")


class Delivery(Response):
    """A message to one receiver and what became of it. Its id is the `webhook-id` header of every attempt."""

    id: str
    webhook_id: str
    type: MessageType
    job_id: str | None
    status: DeliveryStatus
    attempts: list[DeliveryAttempt]
    next_attempt_at: Timestamp | None = Field(description="None: nothing more will be tried by itself.")
    created_at: Timestamp
    finished_at: Timestamp | None


class MessageLinks(Response):
    """Where to read more; paths on the service."""

    job: str
    events: str
    artifacts: str


class JobMessageData(Response):
    """As much of a job as a receiver needs to decide whether to read it."""

    job_id: str
    status: JobStatus
    verdict: Literal["passed", "failed"] | None
    attempt: int
    version: int = Field(description="Grows with every change: of two messages, the higher one is the newer.")
    error_code: JobErrorCode | None
    links: MessageLinks


class TestMessageData(Response):
    """What a test message says."""

    webhook_id: str


class WebhookMessage(Response):
    """The body of a message."""

    type: MessageType
    timestamp: Timestamp
    data: JobMessageData | TestMessageData
