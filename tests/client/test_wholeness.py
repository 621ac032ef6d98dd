"""A model that is not whole is refused before a byte of it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from nupes_client import wholeness
from nupes_client.cli.application import run
from nupes_client.cli.exits import ExitCode
from nupes_client.client import Client
from nupes_client.errors import LocalFileError
from nupes_client.files import model_folder, sha256_of
from nupes_client.schemas.uploads import UploadStatus
from nupes_core import header, modelfolder
from nupes_core.errors import UnsafeFileError
from tests.safetensors_files import folder, good, safetensors, sharded

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 24\n"
INDEX = wholeness.INDEX_NAME
SECOND = "model-00002-of-00002.safetensors"
Lay = Callable[[Mapping[str, bytes]], Path]

DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut short: it ends at byte 0"),
    "ends in the length": (good()[:5], "cut short: it ends at byte 5"),
    "ends in the header": (good()[:30], "cut short: it ends at byte 30"),
    "ends in the tensors": (
        good()[:-1],
        f"cut short: it has {len(good()) - 1} bytes, and its header says {len(good())}",
    ),
    "goes on behind the tensors": (good() + b"\0", f"too long: it has {len(good()) + 1} bytes"),
    "bytes without a tensor": (safetensors({}, b"\0"), "too long"),
    "a page of a website": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "does not begin with a header"),
    "zeros": (b"\0" * 100, "does not begin with a header"),
    "a header too long for the service": (safetensors({}, length=header.MAX_HEADER_BYTES + 1), "does not begin"),
    "a header that is not JSON": (safetensors(b"{not json"), "does not begin with a header"),
    "a header that is a list": (safetensors(b"[1]"), "does not begin with a header"),
    "a deep header": (safetensors(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"), "does not begin with a header"),
    "tensors without a place": (safetensors({"a": {"dtype": "F32"}}), "does not begin with a header"),
    "an end that is no number": (safetensors({"a": {"data_offsets": [0, None]}}), "does not begin with a header"),
}
"""Weights that are not whole, and what is said of them."""

SENSELESS: dict[str, bytes] = {
    "no JSON": b"{",
    "a list": b"[]",
    "no map": b"{}",
    "a map that is a list": b'{"weight_map": []}',
    "a map of nothing": b'{"weight_map": {}}',
    "a file that is no text": b'{"weight_map": {"a": 1}}',
    "a file of another kind": b'{"weight_map": {"a": "config.json"}}',
    "a file elsewhere": b'{"weight_map": {"a": "../other/model.safetensors"}}',
}


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """Writes the files of a model into a folder."""

    def write(files: Mapping[str, bytes]) -> Path:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return tmp_path

    return write


def refused(path: Path) -> LocalFileError:
    with pytest.raises(LocalFileError) as caught:
        model_folder(path)
    assert caught.value.hint
    return caught.value


def test_the_limits_are_those_of_the_service() -> None:
    assert wholeness.MAX_HEADER_BYTES == header.MAX_HEADER_BYTES
    assert wholeness.MAX_INDEX_BYTES == modelfolder.MAX_JSON_BYTES
    assert (wholeness.INDEX_NAME, wholeness.SINGLE_NAME) == (modelfolder.INDEX_NAME, modelfolder.SINGLE_NAME)


def test_a_real_model_is_whole(booklm: Path) -> None:
    assert {path.name for path in model_folder(booklm).files} >= {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    "content",
    [good(), good(("a", "b")), good(shape=(0,)), safetensors({}), safetensors({"__metadata__": {"format": "pt"}})],
    ids=["a tensor", "tensors", "a tensor of nothing", "no tensor", "metadata alone"],
)
def test_whole_weights_pass_here_and_at_the_service(lay: Lay, content: bytes) -> None:
    path = lay(folder(model__safetensors=content))
    assert path / "model.safetensors" in model_folder(path).files
    assert "model.safetensors" in modelfolder.open_folder(path).headers


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_weights_are_refused_as_the_service_would(lay: Lay, name: str) -> None:
    content, words = DAMAGE[name]
    path = lay(folder(model__safetensors=content))
    error = refused(path)
    assert str(error).startswith(f"{path / 'model.safetensors'} is ")
    assert words in str(error)
    with pytest.raises(UnsafeFileError):
        modelfolder.open_folder(path)


def test_what_is_wrong_with_tensors_is_for_the_service_to_say(lay: Lay) -> None:
    odd = {"a": {"dtype": "UNHEARD_OF", "shape": [1], "data_offsets": [0, 4]}}
    assert model_folder(lay(folder(model__safetensors=safetensors(odd, b"\0" * 4)))).files


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"])
def test_pointers_of_git_lfs_are_not_the_files(lay: Lay, name: str) -> None:
    error = refused(lay({**folder(), name: POINTER}))
    assert str(error).endswith(f"has pointers of git-lfs in place of files: {name}")
    assert "git lfs pull" in str(error.hint)


def test_of_many_pointers_the_first_are_named(lay: Lay) -> None:
    error = refused(
        lay({name: POINTER if name.endswith(".safetensors") else text for name, text in sharded(5).items()})
    )
    names = [f"model-{number:05}-of-00005.safetensors" for number in (1, 2, 3)]
    assert str(error).endswith(f": {', '.join(names)} and 2 more")


def test_an_index_that_is_a_pointer_is_a_pointer(lay: Lay) -> None:
    assert "git-lfs" in str(refused(lay({**sharded(), INDEX: POINTER})))


def test_whole_shards_pass(lay: Lay) -> None:
    path = lay(sharded(3))
    assert len(model_folder(path).files) == len(sharded(3))


def test_a_shard_that_is_cut_short_is_named(lay: Lay) -> None:
    files = sharded()
    assert f"{SECOND} is cut short" in str(refused(lay({**files, SECOND: files[SECOND][:-1]})))


def test_a_missing_shard_is_named(lay: Lay) -> None:
    files = {name: content for name, content in sharded().items() if name != SECOND}
    path = lay(files)
    assert str(refused(path)) == f"{path} lacks files that {INDEX} names: {SECOND}"


def test_of_many_missing_shards_the_first_are_named(lay: Lay) -> None:
    kept = "model-00006-of-00006.safetensors"
    files = {name: content for name, content in sharded(6).items() if not name.startswith("model-") or name == kept}
    names = [f"model-{number:05}-of-00006.safetensors" for number in (1, 2, 3)]
    assert str(refused(lay(files))).endswith(f": {', '.join(names)} and 2 more")


@pytest.mark.parametrize("base", [folder(), sharded()], ids=["one file", "shards"])
def test_weights_that_the_service_does_not_read_may_be_anything(lay: Lay, base: dict[str, bytes]) -> None:
    path = lay({**base, "consolidated.safetensors": good()[:-1]})
    assert path / "consolidated.safetensors" in model_folder(path).files
    assert "consolidated.safetensors" not in modelfolder.open_folder(path).headers


def test_weights_of_any_name_are_looked_at_where_nothing_says_which_count(lay: Lay) -> None:
    path = lay({"config.json": b"{}", "weights.safetensors": good()[:-1]})
    assert "weights.safetensors is cut short" in str(refused(path))


@pytest.mark.parametrize("name", SENSELESS)
def test_an_index_without_sense_is_left_to_the_service(lay: Lay, name: str) -> None:
    path = lay({**sharded(), INDEX: SENSELESS[name]})
    assert model_folder(path).files
    with pytest.raises(UnsafeFileError):
        modelfolder.open_folder(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and can not be read")
def test_a_file_that_can_not_be_read_is_named(lay: Lay) -> None:
    path = lay(folder())
    (path / "tokenizer.json").symlink_to("/proc/self/mem")
    with pytest.raises(LocalFileError, match=r"tokenizer\.json can not be read"):
        model_folder(path)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("command", ["upload", "quantize"])
def test_the_command_line_says_what_to_do_and_sends_nothing(
    command: str, lay: Lay, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lay(folder(model__safetensors=POINTER))
    assert run([command, str(path)]) == ExitCode.USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "try: Run `git lfs pull` in the folder." in printed.err
    assert run([command, str(path), "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "LocalFileError"
    assert list(client.models.list()) == []
    first = path / "config.json"
    unknown = client.uploads.create(first.name, first.stat().st_size, sha256_of(first))
    assert unknown.status is UploadStatus.PENDING
