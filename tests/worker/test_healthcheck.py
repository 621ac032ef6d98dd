"""The health check of a worker container sees this host's slots, and only while they report in."""

from __future__ import annotations

from datetime import timedelta

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Worker
from app.settings import Settings
from worker.healthcheck import healthy
from worker.heartbeat import SlotFacts, beat, leave


def test_a_host_is_healthy_while_a_slot_of_it_reports_in(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    assert not healthy(settings)
    beat(database, SlotFacts("here:1", "cpu", 1 << 30), None)
    assert healthy(settings)
    leave(database, "here:1")
    assert not healthy(settings)
    database.dispose()


def test_other_hosts_and_old_beats_do_not_count(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    beat(database, SlotFacts("here:1", "cpu", 1 << 30), None)
    with database.write() as session:
        row = session.get_one(Worker, "here:1")
        row.heartbeat_at = now() - timedelta(minutes=5)
        session.add(Worker(id="there:1", device_class="cpu", hostname="elsewhere", heartbeat_at=now()))
    assert not healthy(settings)
    database.dispose()
