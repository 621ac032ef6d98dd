"""One safetensors file of a checkpoint quantized by itself, for the run that puts the whole artifact together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nupes_core.codeversion import code_version
from nupes_core.config import QuantizationConfig
from nupes_core.diskfile import write_file
from nupes_core.errors import NupesError
from nupes_core.header import Header, read_header
from nupes_core.modelfolder import SINGLE_NAME
from nupes_core.report import LayerReport

REPORT_NAME = "shard.json"


@dataclass(frozen=True)
class FinishedShard:
    """A folder with `<format>/model.safetensors` for each format, and the report on them.

    Attributes:
        path: the folder.
        name: of the file in the checkpoint.
        source: its sha256 and bytes, as they were when it was read.
        layers: figures of its tensors, in order; by the name of each format.
    """

    path: Path
    name: str
    source: Mapping[str, Any]
    layers: Mapping[str, tuple[LayerReport, ...]]

    def file(self, format_name: str, expected: Header) -> Path:
        """Return the weight file of a format.

        Raises:
            NupesError: it does not hold the tensors that are planned.
        """
        path = self.path / format_name / SINGLE_NAME
        if not path.is_file() or read_header(path) != expected:
            raise NupesError(f"the finished shard of {self.name!r} is not laid out as planned in format {format_name}")
        return path


def write_report(path: Path, shard: FinishedShard, config: QuantizationConfig) -> None:
    """Write the report of a finished shard into the folder `path`."""
    content = {
        "name": shard.name,
        "source": dict(shard.source),
        "layers": {name: [asdict(layer) for layer in layers] for name, layers in shard.layers.items()},
        **_made_by(config),
    }
    write_file(path / REPORT_NAME, json.dumps(content).encode())


def read_finished(
    paths: Iterable[str | Path], config: QuantizationConfig, formats: Sequence[str]
) -> dict[str, FinishedShard]:
    """Return finished shards by the name of their file, but for those of another release, wish or set of formats."""
    found = {}
    for path in map(Path, paths):
        content = json.loads((path / REPORT_NAME).read_bytes())
        present = all((path / name / SINGLE_NAME).is_file() for name in formats)
        if present and {key: content.get(key) for key in ("code", "config")} == _made_by(config):
            layers = {name: _layers(content["layers"][name]) for name in formats}
            found[content["name"]] = FinishedShard(path, content["name"], content["source"], layers)
    return found


def _layers(content: Iterable[Mapping[str, Any]]) -> tuple[LayerReport, ...]:
    return tuple(LayerReport(**{name: _frozen(value) for name, value in each.items()}) for each in content)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _made_by(config: QuantizationConfig) -> dict[str, Any]:
    """What decides the bytes next to the source; through JSON, so that tuples and lists are alike."""
    made: dict[str, Any] = json.loads(json.dumps({"code": code_version(), "config": config.to_dict()}))
    return made
