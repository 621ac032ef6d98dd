from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from nupes_core.errors import UnsafeFileError
from nupes_core.modelfolder import carried_bytes, check_file_name, open_folder, sanitize_config
from tests.models import checkpoint, gaussian

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", {"a.weight": gaussian(8, 8), "b.weight": gaussian(8, 8)})


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", {"a.weight": gaussian(8, 8), "b.weight": gaussian(8, 8)}, shards=2)


def test_a_plain_folder_opens(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "spiece.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    (folder / "notes.txt").write_text("not part of a model")
    opened = open_folder(folder)
    assert opened.config == {"model_type": "unheard_of"}
    assert list(opened.headers) == ["model.safetensors"]
    assert opened.carried == ("spiece.model", "tokenizer.json")
    assert opened.ignored == ("notes.txt",)


def test_shards_open_through_their_index(sharded: Path) -> None:
    (sharded / "consolidated.safetensors").write_bytes(b"not looked at")
    opened = open_folder(sharded)
    assert [len(header.tensors) for header in opened.headers.values()] == [1, 1]
    assert opened.indexed


@pytest.mark.parametrize("name", ["modeling_evil.py", "x.SO", "pytorch_model.bin", "a.pt", "b.PTH", "c.ckpt", "d.pkl"])
def test_code_and_pickles_are_refused_wherever_they_lie(folder: Path, name: str) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / name).write_bytes(b"x")
    with pytest.raises(UnsafeFileError, match=name):
        open_folder(folder)


def test_a_pickle_under_an_innocent_name_is_refused(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(pickle.dumps({"run": print}))
    with pytest.raises(UnsafeFileError, match="pickle"):
        open_folder(folder)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b.json", "a\\b.json", "/etc/passwd", "a\0b", "a\nb", " a", "a.", "C:x", "x" * 256]
)
def test_names_that_are_paths_or_tricks_are_refused(name: str) -> None:
    with pytest.raises(UnsafeFileError):
        check_file_name(name)


def test_a_link_inside_the_folder_is_fine_and_one_that_leaves_it_is_not(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "vocab.json").symlink_to("tokenizer.json")
    assert open_folder(folder).carried == ("tokenizer.json", "vocab.json")
    (folder / "merges.txt").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeFileError, match="leaves the model folder"):
        open_folder(folder)


def test_a_pipe_is_refused_instead_of_read(folder: Path) -> None:
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(UnsafeFileError, match="no regular file"):
        open_folder(folder)


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/x.safetensors", "model.bin", 7])
def test_an_index_cannot_point_elsewhere(sharded: Path, target: object) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a.weight": target}}))
    with pytest.raises(UnsafeFileError):
        open_folder(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UnsafeFileError, match="model-00002-of-00002"):
        open_folder(sharded)


def test_a_tensor_missing_from_its_shard_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["c.weight"] = "model-00001-of-00002.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(UnsafeFileError, match=r"c\.weight"):
        open_folder(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    first = (sharded / "model-00001-of-00002.safetensors").read_bytes()
    (sharded / "model-00002-of-00002.safetensors").write_bytes(first)
    with pytest.raises(UnsafeFileError, match=r"'a\.weight'"):
        open_folder(sharded)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match="no safetensors file"):
        open_folder(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", '{"model_type": ["llama"]}', '{"model_type": "../x"}', '{"a":' * 500])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsafeFileError, match=r"config\.json"):
        open_folder(folder)


def test_a_deeply_nested_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100 + "1" + "}" * 100)
    with pytest.raises(UnsafeFileError, match="nested deeper"):
        open_folder(folder)


def test_config_keys_that_name_code_are_dropped_at_every_depth() -> None:
    config = {
        "model_type": "llama",
        "auto_map": {"AutoModel": "evil.Model"},
        "_attn_implementation": "someone/kernels",
        "text_config": {"attn_implementation": "someone/kernels", "hidden_size": 4},
        "parts": [{"trust_remote_code": True, "size": 1}],
    }
    kept, dropped = sanitize_config(config)
    assert kept == {"model_type": "llama", "text_config": {"hidden_size": 4}, "parts": [{"size": 1}]}
    assert dropped == [
        "auto_map",
        "_attn_implementation",
        "text_config.attn_implementation",
        "parts.trust_remote_code",
    ]


def test_a_tokenizer_that_names_code_is_carried_without_it(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "evil.Tok"}, "bos": 1}')
    opened = open_folder(folder)
    assert opened.findings == ("tokenizer_config.json: dropped auto_map",)
    assert json.loads(carried_bytes(folder / "tokenizer_config.json")) == {"bos": 1}
