"""The SDK: one object per service, one attribute per resource."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from nupes_client.credentials import Credentials, discover
from nupes_client.resources.artifacts import Artifacts
from nupes_client.resources.jobs import Jobs
from nupes_client.resources.keys import Keys
from nupes_client.resources.models import Models
from nupes_client.resources.paging import every
from nupes_client.resources.plans import Plans
from nupes_client.resources.secrets import Secrets
from nupes_client.resources.uploads import Uploads
from nupes_client.resources.webhooks import Webhooks
from nupes_client.resources.workers import Workers
from nupes_client.schemas.audit import AuditEntry
from nupes_client.schemas.operations import Capabilities, Readiness
from nupes_client.schemas.usage import Usage
from nupes_client.transport import Transport


class Client:
    """A NUPES service.

    >>> with Client() as client:                                             # doctest: +SKIP
    ...     model = client.models.from_folder(Path("my-model"))
    ...     job = client.jobs.create(JobCreate(model=ModelRef(id=model.id)))
    ...     job = client.jobs.wait(job.id)
    ...     client.artifacts.download_all(job.id, Path("out"))

    Args:
        url: address of the service; default: `NUPES_URL`, else what `nupes up` on this machine left.
        api_key: default: `NUPES_API_KEY`, else the same.
        timeout_s: for connecting, and for each wait for bytes.
        attempts: how often a request that may be repeated is tried in all.
        backoff_s: first delay between attempts; doubles, with jitter.

    Raises:
        ConfigurationError: the address is no URL.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        attempts: int = 5,
        backoff_s: float = 0.25,
    ) -> None:
        found = discover() if url is None or api_key is None else Credentials(url, api_key)
        if url is not None and url.rstrip("/") != found.url.rstrip("/"):
            found = Credentials(url, api_key)  # a key found for another address stays at home
        credentials = Credentials(found.url, api_key or found.api_key)
        self._transport = Transport(credentials, timeout_s=timeout_s, attempts=attempts, backoff_s=backoff_s)
        self.uploads = Uploads(self._transport)
        self.models = Models(self._transport, self.uploads)
        self.plans = Plans(self._transport)
        self.jobs = Jobs(self._transport)
        self.artifacts = Artifacts(self._transport)
        self.keys = Keys(self._transport)
        self.secrets = Secrets(self._transport)
        self.webhooks = Webhooks(self._transport)
        self.workers = Workers(self._transport)

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._transport.url

    def capabilities(self) -> Capabilities:
        """What the service can be asked for."""
        return Capabilities.model_validate_json(self._transport.request("GET", "/v1/capabilities").content)

    def usage(self) -> Usage:
        """What the tenant uses of what it may."""
        return Usage.model_validate_json(self._transport.request("GET", "/v1/usage").content)

    def audit(self, *, resource_id: str | None = None, limit: int | None = None) -> Iterator[AuditEntry]:
        """Yield changes in the tenant, newest first."""
        return every(self._transport, "/v1/audit", AuditEntry, params={"resource_id": resource_id}, limit=limit)

    def readiness(self) -> Readiness:
        """How the service is."""
        return Readiness.model_validate_json(self._transport.request("GET", "/readyz").content)

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
