"""How much memory a worker says it has."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from app.settings import Settings
from app.up.service import Service
from app.workers.memory import group_limits, usable_memory


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_limits_of_the_group_and_of_those_around_it_count_in_both_versions(tmp_path: Path) -> None:
    membership = _write(tmp_path / "cgroup", "0::/pod/box\n4:memory:/docker/abc\n5:cpu:/docker/abc\n")
    root = tmp_path / "fs"
    _write(root / "pod" / "box" / "memory.max", "max\n")
    _write(root / "pod" / "memory.max", "3000\n")
    _write(root / "memory" / "docker" / "abc" / "memory.limit_in_bytes", "5000\n")
    assert sorted(group_limits(root, membership)) == [3000, 5000]
    assert group_limits(tmp_path / "none", membership) == []
    assert group_limits(root, tmp_path / "none") == []


def test_the_setting_wins_and_the_machine_is_the_most(make_settings: Callable[..., Settings]) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < usable_memory(make_settings()) <= machine
    assert usable_memory(make_settings(memory_bytes=123)) == 123


def test_the_workers_of_nupes_up_share_the_memory_of_the_machine_unless_told_what_each_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shares() -> list[int]:
        service = Service(data_dir=tmp_path, host=None, port=None, workers=3, ready_file=None)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            programs = service._programs(listener, 1)
        return [int(each.environment["NUPES_MEMORY_BYTES"]) for each in programs if each.name.startswith("worker")]

    assert shares() == [usable_memory(Settings()) // 3] * 3
    monkeypatch.setenv("NUPES_MEMORY_BYTES", "123")
    assert shares() == [123] * 3
