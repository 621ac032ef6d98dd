"""A model folder from an untrusted source: which files it may hold, and what is taken from them as data. Torch-free."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nupes_core.errors import UnsafeFileError
from nupes_core.header import Header, TensorInfo, check_containers, read_header

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_JSON_BYTES = 64_000_000
MAX_CONFIG_BYTES = 8_000_000
MAX_CONFIG_DEPTH = 32

CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".exe"})
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5"})

_PICKLE_MAGIC = re.compile(rb"\x80[\x02-\x05]")
_ZIP_MAGIC = b"PK\x03\x04"
_CARRIED = re.compile(
    r"generation_config\.json|tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|(video_)?preprocessor_config\.json|processor_config\.json|chat_template.*\.(json|jinja)|tekken\.json"
    r"|.*\.(model|spm|tiktoken)|(licen[cs]e|notice|use_policy)(\..*)?",
    re.IGNORECASE,
)
_TOKENIZER = re.compile(r"tokenizer.*\.json|vocab\.(json|txt)|tekken\.json|.*\.(model|spm|tiktoken)", re.IGNORECASE)
_DROPPED_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "name_or_path"})


def has_tokenizer(names: Iterable[str]) -> bool:
    """Whether one of the files of a model can be (a part of) its tokenizer."""
    return any(_TOKENIZER.fullmatch(name) for name in names)


@dataclass(frozen=True)
class ModelFolder:
    """A checked folder.

    Attributes:
        path: the folder.
        config: `config.json` without the keys that could name code; empty when there is none.
        headers: shard file name -> header, by file name.
        carried: names of tokenizer, processor, generation and licence files that belong to the model.
        ignored: relative names of all other files; they are not read.
        findings: what was dropped from JSON files, for people.
    """

    path: Path
    config: Mapping[str, Any]
    headers: Mapping[str, Header]
    carried: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    findings: tuple[str, ...] = field(default=())

    @property
    def indexed(self) -> bool:
        """Whether the folder has an index of shards."""
        return (self.path / INDEX_NAME).is_file()


def open_folder(path: str | Path) -> ModelFolder:
    """Check a model folder and read its headers and configuration.

    Raises:
        UnsafeFileError: code or pickle files, links that leave the folder, broken safetensors or JSON, missing shards.
    """
    path = Path(path)
    if not path.is_dir():
        raise UnsafeFileError(
            f"{path} is not a folder", hint="Give the folder that holds config.json and *.safetensors."
        )
    names = scan_folder(path)
    headers = _read_shards(path, names)
    config, findings = read_config(path / CONFIG_NAME) if CONFIG_NAME in names else ({}, [])
    carried = tuple(name for name in names if _CARRIED.fullmatch(name))
    for name in carried:
        _check_content(path / name)
        findings += [f"{name}: dropped {key}" for key in _droppable(path / name)]
    taken = {*carried, *headers, CONFIG_NAME, INDEX_NAME}
    ignored = tuple(name for name in names if name not in taken)
    return ModelFolder(path, config, headers, carried, ignored, tuple(findings))


def check_file_name(name: str) -> None:
    """Check the name of one file of a model; names are data, never paths.

    Raises:
        UnsafeFileError: path separators, `..`, control characters, or a suffix that stands for code or pickles.
    """
    if not 0 < len(name.encode(errors="replace")) <= 255 or not name.isprintable() or set(name) & set('/\\:*?"<>|'):
        raise UnsafeFileError(f"{name!r} is no plain file name", hint="Name files without folders, as on the hub.")
    if name in {".", ".."} or name != name.strip() or name.endswith("."):
        raise UnsafeFileError(f"{name!r} is no plain file name", hint="Name files without folders, as on the hub.")
    suffixes = {suffix.lower() for suffix in Path(name).suffixes[-1:]}
    if suffixes & CODE_SUFFIXES:
        raise UnsafeFileError(f"{name!r} is code; models with their own code are not accepted", hint="Leave it out.")
    if suffixes & PICKLE_SUFFIXES:
        raise UnsafeFileError(
            f"{name!r} is of a kind that can run code when it is loaded",
            hint="Convert the weights to safetensors (`save_pretrained` writes them) and leave this file out.",
        )


def scan_folder(path: Path) -> tuple[str, ...]:
    """Return the relative names of all files, sorted; files of subfolders as `sub/name`.

    Raises:
        UnsafeFileError: a name, a link or a special file that a model folder may not hold.
    """
    root = path.resolve()
    names = []
    for folder, subfolders, files in os.walk(path):
        for name in [*subfolders, *files]:
            entry = Path(folder) / name
            check_file_name(name)
            _check_kind(entry, root)
            if not entry.is_dir():
                names.append(entry.relative_to(path).as_posix())
    return tuple(sorted(names))


def sanitize_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a copy without keys that could make a loader run or fetch code, and the names of the keys dropped.

    Dropped at every depth: `auto_map`, keys that start with `_`, `attn_implementation` and its likes.

    Raises:
        UnsafeFileError: nested deeper than `MAX_CONFIG_DEPTH`.
    """
    dropped: list[str] = []
    kept = _sanitize(config, "", 0, dropped)
    return kept, dropped


def _sanitize(value: Any, where: str, depth: int, dropped: list[str]) -> Any:
    if depth > MAX_CONFIG_DEPTH:
        raise UnsafeFileError(f"a configuration is nested deeper than {MAX_CONFIG_DEPTH} levels at {where[:100]!r}")
    if isinstance(value, list):
        return [_sanitize(item, where, depth + 1, dropped) for item in value]
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for key, item in value.items():
        if depth == 0 and key == "quantization_config":
            kept[key] = item  # its keys are tensor names
        elif key in _DROPPED_KEYS or key.startswith("_") or key.endswith("_implementation"):
            dropped.append(where + key)
        else:
            kept[key] = _sanitize(item, f"{where}{key}.", depth + 1, dropped)
    return kept


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read `config.json` as data; return it sanitized, and the findings.

    Raises:
        UnsafeFileError: not a JSON object, too large, or a `model_type` that is no string.
    """
    config = _read_json(path, MAX_CONFIG_BYTES)
    model_type = config.get("model_type", "")
    if not isinstance(model_type, str) or not re.fullmatch(r"[\w.\-]{0,128}", model_type):
        raise UnsafeFileError(
            f"{path.name} has model_type {model_type!r}", hint="Expected a short name such as 'llama'."
        )
    kept, dropped = sanitize_config(config)
    return kept, [f"{path.name}: dropped {key}" for key in dropped]


def carried_bytes(path: Path) -> bytes:
    """Return the content of a carried file as it goes into the artifact: sanitized JSON, or the very bytes."""
    if not _droppable(path):
        return path.read_bytes()
    kept, _ = sanitize_config(_read_json(path, MAX_JSON_BYTES))
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


def _droppable(path: Path) -> list[str]:
    """Return keys to drop from a carried configuration; vocabularies (whose keys are words) are not touched."""
    if not path.name.endswith("_config.json"):
        return []
    config = _read_json(path, MAX_JSON_BYTES)
    # A generation config carries "_from_model_config", which is harmless; only names of code matter here.
    return ["auto_map"] if "auto_map" in config else []


def _check_kind(entry: Path, root: Path) -> None:
    mode = entry.lstat().st_mode
    if stat.S_ISLNK(mode):
        target = entry.resolve()
        if not target.is_relative_to(root):
            raise UnsafeFileError(
                f"{entry.name!r} is a link that leaves the model folder", hint="Copy the file to its place."
            )
        mode = target.stat().st_mode if target.exists() else 0
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UnsafeFileError(f"{entry.name!r} is no regular file", hint="Copy the file to its place.")


def _check_content(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if _PICKLE_MAGIC.match(magic) or magic == _ZIP_MAGIC:
        raise UnsafeFileError(f"{path.name!r} starts with {magic!r}: a pickle or an archive", hint="Leave it out.")


def _read_json(path: Path, most: int) -> dict[str, Any]:
    size = path.stat().st_size
    if size > most:
        raise UnsafeFileError(f"{path.name} has {size} bytes; at most {most} are read")
    text = path.read_bytes()
    check_containers(text, path.name)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsafeFileError(f"{path.name} is not JSON: {error}", hint="Upload it again from its source.") from error
    if not isinstance(content, dict):
        raise UnsafeFileError(f"{path.name} holds a {type(content).__name__}, not a JSON object")
    return content


def _read_shards(path: Path, names: tuple[str, ...]) -> dict[str, Header]:
    weight_map = _read_index(path) if INDEX_NAME in names else None
    files = sorted(set(weight_map.values())) if weight_map is not None else _single_file(names)
    missing = [name for name in files if name not in names]
    if missing:
        raise UnsafeFileError(f"{INDEX_NAME} names the shard {missing[0]!r}, which is missing", hint="Add the file.")
    headers = {name: read_header(path / name) for name in files}
    owners = tensor_owners(headers)
    for tensor, name in (weight_map or {}).items():
        if owners.get(tensor, (None,))[0] != name:
            raise UnsafeFileError(f"{INDEX_NAME} says that {name!r} holds {tensor!r}; it does not")
    return headers


def tensor_owners(headers: Mapping[str, Header]) -> dict[str, tuple[str, TensorInfo]]:
    """Return tensor name -> (file name, info).

    Raises:
        UnsafeFileError: two files hold a tensor of the same name.
    """
    owners: dict[str, tuple[str, TensorInfo]] = {}
    for name, header in headers.items():
        for info in header.tensors:
            if info.name in owners:
                raise UnsafeFileError(f"{info.name!r} is in {owners[info.name][0]!r} and again in {name!r}")
            owners[info.name] = (name, info)
    return owners


def _read_index(path: Path) -> dict[str, str]:
    weight_map = _read_json(path / INDEX_NAME, MAX_JSON_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsafeFileError(f"{INDEX_NAME} has no weight_map", hint="Upload it again from its source.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise UnsafeFileError(f"{INDEX_NAME} maps {tensor!r} to {name!r}, which is no safetensors file")
    for name in set(weight_map.values()):
        check_file_name(name)
    return weight_map


def _single_file(names: tuple[str, ...]) -> list[str]:
    files = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if SINGLE_NAME in files:
        return [SINGLE_NAME]
    if len(files) != 1:
        found = f"{len(files)} safetensors files and no {INDEX_NAME}" if files else "no safetensors file"
        raise UnsafeFileError(
            f"the model folder holds {found}", hint=f"Expected {SINGLE_NAME}, or shards and their index."
        )
    return files
