"""Look at a model without having it: a skeleton of its folder, with headers and configuration only, goes through the
core's own check.

Weight files become sparse files of their true size that hold nothing but the header, so a model of 100 GB costs some
kilobytes and the very code that opens models in the worker judges them here.
"""  # noqa: D205

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nupes_client.schemas.models import Finding
from nupes_core.errors import UnsafeFileError
from nupes_core.header import PREFIX_BYTES, Header, header_length
from nupes_core.modelfolder import CONFIG_NAME, INDEX_NAME, MAX_JSON_BYTES, ModelFolder, check_file_name, open_folder

Read = Callable[[str, int, int], bytes]
"""Return the bytes of a file (its path in the model) from a start to before an end."""

FIRST_READ_BYTES = 1 << 16
"""Most headers fit, so that a weight file costs one request."""

MAGIC_BYTES = 4
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3"}


@dataclass(frozen=True)
class Scan:
    """What a model is, as far as headers and configuration tell.

    Attributes:
        config: `config.json` without keys that could name code; empty when there is none.
        headers: weight file -> checked header.
        files: the files that belong to the model: weights, index, configuration, tokenizer, licence.
        findings: what was noticed and tolerated.
    """

    config: Mapping[str, Any]
    headers: Mapping[str, Header]
    files: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def architecture(self) -> str | None:
        """First of `architectures`."""
        names = self.config.get("architectures")
        return str(names[0])[:200] if isinstance(names, list) and names else None

    @property
    def model_type(self) -> str | None:
        """`model_type`."""
        name = self.config.get("model_type")
        return str(name)[:100] if name else None

    @property
    def params(self) -> int:
        """Elements of all tensors."""
        return sum(info.params for header in self.headers.values() for info in header.tensors)

    @property
    def bytes(self) -> int:
        """Size of the weight files."""
        return sum(header.file_bytes for header in self.headers.values())

    @property
    def dtype(self) -> str | None:
        """The dtype that most bytes have, by torch's name."""
        counts: Counter[str] = Counter()
        for header in self.headers.values():
            for info in header.tensors:
                counts[info.dtype] += info.nbytes
        return next((_DTYPES.get(name, name.lower()) for name, _ in counts.most_common(1)), None)


def scan(sizes: Mapping[str, int], read: Read, *, magic: bool) -> Scan:
    """Check the files of a model.

    Args:
        sizes: path of each file -> its size in bytes.
        read: how to get at bytes.
        magic: also look at the first bytes of other files; costs a read each.

    Raises:
        UnsafeFileError: as `nupes_core.modelfolder.open_folder`.
    """
    with tempfile.TemporaryDirectory(prefix="nupes-scan-") as folder:
        for path, size in sizes.items():
            for part in path.split("/"):
                check_file_name(part)
            _lay_out(Path(folder) / path, size, _needed(path, size, read, magic=magic))
        return _summary(open_folder(folder), frozenset(sizes))


def _lay_out(path: Path, size: int, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # fails where a file has the name of a folder
        with path.open("xb") as file:
            file.write(content)
            file.truncate(size)
    except OSError as error:
        raise UnsafeFileError(f"{path.name!r} of {size} bytes can not be a file: {error.strerror}") from error


def _needed(path: str, size: int, read: Read, *, magic: bool) -> bytes:
    """The part of a file that the check looks at."""
    if path.endswith(".safetensors"):
        return _read_header(path, size, read)
    if path in {CONFIG_NAME, INDEX_NAME} or path.endswith("_config.json"):
        if size > MAX_JSON_BYTES:
            raise UnsafeFileError(f"{path!r} has {size} bytes; at most {MAX_JSON_BYTES} are read")
        return read(path, 0, size)
    return read(path, 0, min(size, MAGIC_BYTES)) if magic else b""


def _read_header(path: str, size: int, read: Read) -> bytes:
    head = read(path, 0, min(size, FIRST_READ_BYTES))
    end = PREFIX_BYTES + header_length(head, size, source=path)
    return head[:end] if end <= len(head) else head + read(path, len(head), end)


def _summary(folder: ModelFolder, present: frozenset[str]) -> Scan:
    findings = [_finding(text) for text in folder.findings]
    if CONFIG_NAME not in present:
        message = "there is no config.json: the model can be quantized and not evaluated"
        findings.append(Finding(code="no_config", path=None, message=message))
    used = {*folder.headers, *folder.carried, *({CONFIG_NAME} & present)}
    if len(folder.headers) > 1 or folder.indexed:
        used |= {INDEX_NAME} & present
    return Scan(folder.config, folder.headers, tuple(sorted(used)), tuple(findings))


def _finding(text: str) -> Finding:
    """The core's findings read `config.json: dropped auto_map`."""
    path, _, message = text.partition(": ")
    return Finding(code="key_dropped", path=path, message=message)


def names_code(finding: Finding) -> bool:
    """Whether a dropped key would have made a loader run code that comes with the model."""
    return finding.code == "key_dropped" and finding.message.split(".")[-1].split(" ")[-1] == "auto_map"
