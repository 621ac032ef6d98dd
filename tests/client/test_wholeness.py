"""A model that is not whole is not sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nupes_client.cli.exits import ExitCode
from nupes_client.client import Client
from nupes_client.errors import LocalFileError
from nupes_client.files import model_folder
from nupes_client.wholeness import check_whole

BOOKLM = Path(__file__).resolve().parents[2] / "examples" / "booklm"
NUPES = Path(sys.executable).with_name("nupes")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def weights(header: bytes | None = None, data: int = 8) -> bytes:
    text = header or json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def checked(folder: Path) -> None:
    check_whole(folder, model_folder(folder).files)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(weights())
    return tmp_path


@pytest.fixture
def sharded(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{part}-of-00005.safetensors" for part in range(1, 6)]
    for name in names:
        (folder / name).write_bytes(weights())
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_whole_models_are_taken(folder: Path) -> None:
    checked(folder)
    checked(BOOKLM)
    (folder / "model.safetensors").write_bytes(weights(b'{"__metadata__": {"format": "pt"}}', data=0))
    checked(folder)  # that there are no tensors is the service's concern


def test_a_model_of_several_files_is_taken_with_files_that_are_none_of_its(sharded: Path) -> None:
    (sharded / "consolidated.safetensors").write_bytes(b"of another tool")
    checked(sharded)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin"),
        (b"\x10", "does not begin"),
        (b"PK\x03\x04" + bytes(100), "cut short|does not begin"),
        (bytes(100), "does not begin"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "does not begin"),
        (weights()[:40], "cut short"),
        (weights()[:-1], "cut short: it has"),
        (weights() + b"\0", "1 more than its tensors"),
        (weights(b"{}}"), "no header"),
        (weights(b"[1]"), "no header"),
        (weights(b'{"w": {"dtype": "F32"}}'), "no header"),
        (weights(b'{"w": {"data_offsets": [0]}}'), "no header"),
        (weights(b'{"w": {"data_offsets": [0, "8"]}}'), "no header"),
    ],
)
def test_weights_that_are_not_whole_are_refused(content: bytes, words: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(LocalFileError, match=words) as caught:
        checked(folder)
    assert "model.safetensors" in str(caught.value)
    assert caught.value.hint == "Download the model again, all of it."


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_pointers_of_git_lfs_are_named_with_what_fetches_the_files(name: str, folder: Path) -> None:
    (folder / name).write_bytes(POINTER)
    with pytest.raises(LocalFileError, match=f"{name} is a pointer") as caught:
        checked(folder)
    assert caught.value.hint == f"In {folder}: git lfs pull"


def test_weight_files_that_the_index_names_must_be_there(sharded: Path) -> None:
    (sharded / "model-00004-of-00005.safetensors").unlink()
    with pytest.raises(LocalFileError, match=r"lacks model-00004-of-00005\.safetensors of the weight files"):
        checked(sharded)
    for part in (1, 2, 3):
        (sharded / f"model-0000{part}-of-00005.safetensors").unlink()
    with pytest.raises(LocalFileError, match="and 1 more of"):
        checked(sharded)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"w": 1}}', "[" * 100_000])
def test_an_index_without_sense_is_left_to_the_service(index: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    checked(folder)
    (folder / "model.safetensors").write_bytes(weights()[:-1])
    with pytest.raises(LocalFileError, match="cut short"):
        checked(folder)


def _cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(weights()[:-1])


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)


@pytest.mark.parametrize(("harm", "hint"), [(_cut, "Download the model again"), (_pointer, "git lfs pull")])
@pytest.mark.parametrize("command", ["upload", "quantize", "plan"])
def test_the_command_line_says_what_to_do_before_it_asks_the_service(
    command: str, harm: Callable[[Path], None], hint: str, folder: Path
) -> None:
    harm(folder)
    nobody = {**os.environ, "NUPES_URL": "http://127.0.0.1:1", "NUPES_API_KEY": "nupes_key"}
    done = subprocess.run([NUPES, command, folder], env=nobody, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE
    assert hint in " ".join(done.stderr.split())


def test_the_sdk_sends_nothing_of_it(folder: Path) -> None:
    _cut(folder)
    with Client("http://127.0.0.1:1", "nupes_key") as client, pytest.raises(LocalFileError, match="cut short"):
        client.models.from_folder(folder)
