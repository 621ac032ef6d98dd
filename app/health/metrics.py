"""Figures for Prometheus, computed from the database on each scrape: any API process gives the same answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Worker
from app.health import repository
from app.settings import Settings
from app.storage import BlobStore
from app.workers.repository import queues
from app.workers.service import status_of
from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.webhooks import DeliveryStatus
from nupes_core import __version__


def render(session: Session, settings: Settings, store: BlobStore) -> bytes:
    """The exposition text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ServiceCollector(session, settings, store))
    return generate_latest(registry)


class _ServiceCollector(Collector):
    def __init__(self, session: Session, settings: Settings, store: BlobStore) -> None:
        self.session = session
        self.settings = settings
        self.store = store
        self.moment = now()

    def describe(self) -> list[Metric]:
        """Nothing: registering must not query."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Query and yield."""
        yield InfoMetricFamily("nupes_build", "Release of the service.", {"version": __version__})
        yield self._jobs()
        workers = repository.workers(self.session)
        yield from self._queues({worker.device_class for worker in workers})
        yield self._workers(workers)
        yield from self._outbox()
        yield from self._webhooks()
        yield _gauge("nupes_expired_leases", "Running jobs whose worker is gone.", self._expired_leases())
        for name, count in repository.totals(self.session).items():
            yield _gauge(f"nupes_{name}", f"Number of {name}.", count)
        yield _gauge("nupes_artifact_bytes", "Bytes of all artifacts.", repository.artifact_bytes(self.session))
        yield _gauge("nupes_storage_free_bytes", "Room for incoming bytes.", self.store.free_bytes())

    def _jobs(self) -> Metric:
        family = GaugeMetricFamily("nupes_jobs", "Jobs by status.", labels=["status"])
        counts = repository.jobs_by_status(self.session)
        for status in JobStatus:
            family.add_metric([status.value], counts.get(status.value, 0))
        return family

    def _queues(self, served: Set[str]) -> Iterator[Metric]:
        """Queues with jobs, and those that workers serve: an alert on a series that comes and goes never ends."""
        depth = GaugeMetricFamily("nupes_queue_depth", "Jobs that wait.", labels=["device_class"])
        age = GaugeMetricFamily("nupes_queue_oldest_seconds", "Age of the oldest waiting job.", labels=["device_class"])
        waiting = {device_class: (count, oldest) for device_class, count, oldest in queues(self.session)}
        for device_class in sorted(waiting.keys() | served | {"cpu"}):
            count, oldest = waiting.get(device_class, (0, None))
            depth.add_metric([device_class], count)
            age.add_metric([device_class], self._age(oldest))
        yield depth
        yield age

    def _workers(self, workers: Iterable[Worker]) -> Metric:
        family = GaugeMetricFamily("nupes_workers", "Workers by class and status.", labels=["device_class", "status"])
        counts = Counter((worker.device_class, status_of(worker, self.settings, self.moment)) for worker in workers)
        for labels, count in sorted(counts.items()):
            family.add_metric(labels, count)
        return family

    def _outbox(self) -> Iterator[Metric]:
        count, oldest = repository.outbox(self.session)
        yield _gauge("nupes_outbox_messages", "Wake-ups the broker has not taken.", count)
        yield _gauge("nupes_outbox_oldest_seconds", "Age of the oldest of them.", self._age(oldest))

    def _webhooks(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("nupes_webhook_deliveries", "Messages to webhooks by status.", labels=["status"])
        counts = repository.deliveries_by_status(self.session)
        for status in DeliveryStatus:
            family.add_metric([status.value], counts.get(status.value, 0))
        yield family
        overdue = self._age(repository.oldest_due_delivery(self.session, self.moment))
        yield _gauge("nupes_webhook_overdue_seconds", "How long the oldest message that could be sent waits.", overdue)
        disabled = repository.disabled_webhooks(self.session)
        yield _gauge("nupes_webhooks_disabled", "Webhooks switched off because their receiver fails.", disabled)

    def _expired_leases(self) -> int:
        return repository.expired_leases(self.session, self.moment)

    def _age(self, moment: datetime | None) -> float:
        return max(0.0, (self.moment - moment).total_seconds()) if moment else 0.0


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
