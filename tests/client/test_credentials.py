"""Which service, which key."""

from __future__ import annotations

from pathlib import Path

import pytest

from nupes_client.credentials import DEFAULT_URL, FILE_NAME, Credentials, discover, save
from nupes_client.errors import ConfigurationError

URL = "http://127.0.0.1:4321"


@pytest.fixture
def data_dir(tmp_path: Path) -> dict[str, str]:
    save(tmp_path / FILE_NAME, Credentials(URL, "stored"))
    return {"NUPES_DATA_DIR": str(tmp_path)}


def test_what_nupes_up_left_is_found(data_dir: dict[str, str]) -> None:
    assert discover(data_dir) == Credentials(URL, "stored")


def test_the_file_is_for_its_owner_alone(tmp_path: Path, data_dir: dict[str, str]) -> None:
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_the_environment_wins(data_dir: dict[str, str]) -> None:
    given = {"NUPES_URL": "http://other:1", "NUPES_API_KEY": "given"}
    assert discover({**data_dir, **given}) == Credentials("http://other:1", "given")


def test_the_stored_key_is_never_sent_to_another_address(data_dir: dict[str, str]) -> None:
    assert discover({**data_dir, "NUPES_URL": "http://other:1"}).api_key is None
    assert discover({**data_dir, "NUPES_URL": URL + "/"}).api_key == "stored"


def test_nothing_known_means_the_default_address(tmp_path: Path) -> None:
    assert discover({"NUPES_DATA_DIR": str(tmp_path)}) == Credentials(DEFAULT_URL, None)


@pytest.mark.parametrize("content", ["", "[]", '{"url": 1}', "no json"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ConfigurationError, match=FILE_NAME):
        discover({"NUPES_DATA_DIR": str(tmp_path)})


def test_a_key_does_not_show_in_a_traceback() -> None:
    assert "secret" not in repr(Credentials(URL, "secret"))
