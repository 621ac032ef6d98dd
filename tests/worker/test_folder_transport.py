"""The queue of the embedded default."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from queue import Empty

import pytest
from kombu.exceptions import ChannelError

from app.queue.transport import QueueFolder
from app.settings import Settings
from tests.worker.factory import REPOSITORY

PRODUCERS, CONSUMERS, MESSAGES = 4, 3, 150

PRODUCER = """
import sys
from pathlib import Path
from app.queue.publisher import Publisher
from app.settings import Settings
settings = Settings(data_dir=Path(sys.argv[1]))
with Publisher(settings) as publisher:
    for index in range(int(sys.argv[3])):
        publisher.publish(f"{sys.argv[2]}-{index}", "cpu")
"""

CONSUMER = """
import socket, sys
from kombu import Connection, Consumer, Queue
from app.queue.broker import queue_name, register_transport
from app.settings import Settings
from pathlib import Path
settings = Settings(data_dir=Path(sys.argv[1]))
register_transport()
def take(body, message):
    print(body[0][0], flush=True)
    message.ack()
name = queue_name(settings, "cpu")
with Connection("nupesfs://", transport_options={"queue_dir": str(settings.queue_dir)}) as connection:
    with Consumer(connection, Queue(name, routing_key=name), callbacks=[take], accept=["json"]):
        while True:
            try:
                connection.drain_events(timeout=3)
            except socket.timeout:
                break
"""


def _start(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *args], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def _message(tag: str) -> bytes:
    return f'{{"body": "{tag}", "properties": {{"delivery_tag": "{tag}"}}}}'.encode()


def test_processes_that_write_and_read_at_once_lose_no_message_and_see_none_twice(
    make_settings: Callable[..., Settings],
) -> None:
    data_dir = str(make_settings().data_dir)
    consumers = [_start(CONSUMER, data_dir) for _ in range(CONSUMERS)]
    producers = [_start(PRODUCER, data_dir, str(number), str(MESSAGES)) for number in range(PRODUCERS)]
    for producer in producers:
        producer.communicate(timeout=60)
        assert producer.returncode == 0
    # Consumers end after three quiet seconds; one more takes what came after a slow start of the others.
    seen = [line for consumer in consumers for line in consumer.communicate(timeout=90)[0].split()]
    seen += _start(CONSUMER, data_dir).communicate(timeout=60)[0].split()
    assert len(seen) == PRODUCERS * MESSAGES
    assert len(set(seen)) == PRODUCERS * MESSAGES


@pytest.mark.parametrize("content", [b"", b'{"body": "cut', b"[1, 2]", b"\xff\xfe", b"{}"])
def test_an_unreadable_file_is_put_aside_and_the_next_message_is_delivered(tmp_path: Path, content: bytes) -> None:
    folder = QueueFolder(tmp_path, "cpu")
    folder.put(content)
    folder.put(_message("good"))
    assert folder.take()["body"] == "good"
    assert [path.read_bytes() for path in folder.quarantine.iterdir()] == [content]
    with pytest.raises(Empty):
        folder.take()


def test_messages_come_in_the_order_they_were_put(tmp_path: Path) -> None:
    folder = QueueFolder(tmp_path, "cpu")
    for number in range(30):
        folder.put(_message(str(number)))
    assert [folder.take()["body"] for _ in range(30)] == [str(number) for number in range(30)]


def test_a_message_that_another_reader_took_after_the_listing_is_skipped(tmp_path: Path) -> None:
    mine, other = QueueFolder(tmp_path, "cpu"), QueueFolder(tmp_path, "cpu")
    for tag in ("a", "b", "c"):
        mine.put(_message(tag))
    assert [mine.take()["body"], other.take()["body"], mine.take()["body"]] == ["a", "b", "c"]
    assert mine.size() == 0


def test_a_half_written_message_is_not_seen(tmp_path: Path) -> None:
    folder = QueueFolder(tmp_path, "cpu")
    (folder.path / "tmp" / "00000000000000000001-1-0.msg").write_bytes(b'{"bo')
    with pytest.raises(Empty):
        folder.take()


@pytest.mark.parametrize("name", ["", "..", "../cpu", "a/b", ".hidden"])
def test_a_queue_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ChannelError):
        QueueFolder(tmp_path, name)
