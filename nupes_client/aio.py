"""The SDK for async code: the same resources, methods and arguments as `Client`, awaited.

There is one implementation of retries, resumed transfers and streams, the blocking one; here its calls are made in
worker threads (docs/decisions/019-async-client-in-threads.md).
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from nupes_client.client import Client
from nupes_client.resources.artifacts import Artifacts
from nupes_client.resources.jobs import Jobs
from nupes_client.resources.keys import Keys
from nupes_client.resources.models import Models
from nupes_client.resources.plans import Plans
from nupes_client.resources.secrets import Secrets
from nupes_client.resources.uploads import Uploads
from nupes_client.resources.webhooks import Webhooks
from nupes_client.resources.workers import Workers
from nupes_client.threads import Threads


class AsyncUploads:
    """`Uploads`, awaited."""

    def __init__(self, uploads: Uploads, threads: Threads) -> None:
        self.get = threads.awaited(uploads.get)
        self.create = threads.awaited(uploads.create)
        self.delete = threads.awaited(uploads.delete)
        self.send = threads.awaited(uploads.send)


class AsyncModels:
    """`Models`, awaited."""

    def __init__(self, models: Models, threads: Threads) -> None:
        self.get = threads.awaited(models.get)
        self.list = threads.iterated(models.list)
        self.delete = threads.awaited(models.delete)
        self.from_hub = threads.awaited(models.from_hub)
        self.from_uploads = threads.awaited(models.from_uploads)
        self.from_folder = threads.awaited(models.from_folder)


class AsyncPlans:
    """`Plans`, awaited."""

    def __init__(self, plans: Plans, threads: Threads) -> None:
        self.create = threads.awaited(plans.create)


class AsyncJobs:
    """`Jobs`, awaited; `on_update` of `wait` is called in a worker thread."""

    def __init__(self, jobs: Jobs, threads: Threads) -> None:
        self.create = threads.awaited(jobs.create)
        self.get = threads.awaited(jobs.get)
        self.poll = threads.awaited(jobs.poll)
        self.list = threads.iterated(jobs.list)
        self.cancel = threads.awaited(jobs.cancel)
        self.retry = threads.awaited(jobs.retry)
        self.wait = threads.awaited(jobs.wait)
        self.events = threads.iterated(jobs.events)
        self.past_events = threads.iterated(jobs.past_events)
        self.layers = threads.iterated(jobs.layers)
        self.metrics = threads.awaited(jobs.metrics)
        self.logs = threads.awaited(jobs.logs)
        self.report = threads.awaited(jobs.report)
        self.compare = threads.awaited(jobs.compare)


class AsyncArtifacts:
    """`Artifacts`, awaited; `advance` of downloads is called in a worker thread."""

    def __init__(self, artifacts: Artifacts, threads: Threads) -> None:
        self.get = threads.awaited(artifacts.get)
        self.list = threads.iterated(artifacts.list)
        self.download = threads.awaited(artifacts.download)
        self.download_all = threads.awaited(artifacts.download_all)


class AsyncKeys:
    """`Keys`, awaited."""

    def __init__(self, keys: Keys, threads: Threads) -> None:
        self.create = threads.awaited(keys.create)
        self.get = threads.awaited(keys.get)
        self.list = threads.iterated(keys.list)
        self.login_link = threads.awaited(keys.login_link)
        self.revoke = threads.awaited(keys.revoke)
        self.rotate = threads.awaited(keys.rotate)


class AsyncSecrets:
    """`Secrets`, awaited."""

    def __init__(self, secrets: Secrets, threads: Threads) -> None:
        self.set = threads.awaited(secrets.set)
        self.get = threads.awaited(secrets.get)
        self.list = threads.iterated(secrets.list)
        self.delete = threads.awaited(secrets.delete)


class AsyncWebhooks:
    """`Webhooks`, awaited."""

    def __init__(self, webhooks: Webhooks, threads: Threads) -> None:
        self.create = threads.awaited(webhooks.create)
        self.get = threads.awaited(webhooks.get)
        self.list = threads.iterated(webhooks.list)
        self.set_enabled = threads.awaited(webhooks.set_enabled)
        self.delete = threads.awaited(webhooks.delete)
        self.rotate = threads.awaited(webhooks.rotate)
        self.test = threads.awaited(webhooks.test)
        self.deliveries = threads.iterated(webhooks.deliveries)
        self.delivery = threads.awaited(webhooks.delivery)
        self.redeliver = threads.awaited(webhooks.redeliver)


class AsyncWorkers:
    """`Workers`, awaited."""

    def __init__(self, workers: Workers, threads: Threads) -> None:
        self.list = threads.iterated(workers.list)
        self.queues = threads.iterated(workers.queues)


class AsyncClient:
    """A NUPES service, for async code.

    >>> async with AsyncClient() as client:                                  # doctest: +SKIP
    ...     model = await client.models.from_folder(Path("my-model"))
    ...     job = await client.jobs.create(JobCreate(model=ModelRef(id=model.id)))
    ...     async for event in client.jobs.events(job.id):
    ...         print(event.type, event.data)
    ...     await client.artifacts.download_all(job.id, Path("out"))

    Args:
        url, api_key, timeout_s, attempts, backoff_s: as for `Client`.
        at_once: calls and event streams at a time; more wait for their turn.

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
        at_once: int = 64,
    ) -> None:
        client = Client(url, api_key, timeout_s=timeout_s, attempts=attempts, backoff_s=backoff_s)
        threads = Threads(at_once)
        self._client = client
        self.uploads = AsyncUploads(client.uploads, threads)
        self.models = AsyncModels(client.models, threads)
        self.plans = AsyncPlans(client.plans, threads)
        self.jobs = AsyncJobs(client.jobs, threads)
        self.artifacts = AsyncArtifacts(client.artifacts, threads)
        self.keys = AsyncKeys(client.keys, threads)
        self.secrets = AsyncSecrets(client.secrets, threads)
        self.webhooks = AsyncWebhooks(client.webhooks, threads)
        self.workers = AsyncWorkers(client.workers, threads)
        self.capabilities = threads.awaited(client.capabilities)
        self.usage = threads.awaited(client.usage)
        self.audit = threads.iterated(client.audit)
        self.readiness = threads.awaited(client.readiness)

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._client.url

    async def aclose(self) -> None:
        """Close all connections."""
        self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
