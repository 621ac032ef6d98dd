"""`nupes secrets …` against the real service: values come from anywhere but the command line, and go out nowhere."""

from __future__ import annotations

import io
import json

import pytest

from nupes_client.cli.application import run
from nupes_client.client import Client

pytestmark = pytest.mark.usefixtures("as_user")


def test_a_value_comes_from_standard_input_or_from_a_variable(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hf_from_a_pipe\n"))
    assert run(["secrets", "set", "team"]) == 0
    first = client.secrets.get("team")
    monkeypatch.setenv("MY_TOKEN", "hf_from_a_variable")
    assert run(["secrets", "set", "team", "--from-env", "MY_TOKEN", "--json"]) == 0
    second = client.secrets.get("team")
    assert (second.id, second.kind) == (first.id, "hub_token")
    assert second.updated_at > first.updated_at
    assert run(["secrets", "list"]) == 0
    printed = capsys.readouterr()
    assert "team" in printed.out
    assert "hf_" not in printed.out + printed.err
    assert run(["secrets", "delete", "team"]) == 0
    assert list(client.secrets.list()) == []


def test_without_a_value_nothing_is_stored(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["secrets", "set", "team", "--from-env", "NO_SUCH_VARIABLE"]) == 6
    assert "no such variable" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(["secrets", "set", "team", "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "validation_error"
    assert list(client.secrets.list()) == []
