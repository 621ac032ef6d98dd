"""The tensors of a whole checkpoint by name, whatever file they are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import torch

from nupes_core.checkpoint import ShardReader
from nupes_core.header import TensorInfo
from nupes_core.modelfolder import ModelFolder, tensor_owners


class Checkpoint:
    """Reads tensors of a model folder. A context manager; each file is opened when it is first needed."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._owners = tensor_owners(folder.headers)
        self._readers: dict[str, ShardReader] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._owners

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._owners)

    def info(self, name: str) -> TensorInfo:
        """Return position, shape and dtype of a tensor."""
        return self._owners[name][1]

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor of a dtype that torch computes with."""
        return self._reader(name).read(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return entries `start` to `stop` of the first dimension of a tensor of a dtype that torch computes with."""
        return self._reader(name).read_rows(name, start, stop)

    def chunks(self, name: str) -> Iterator[tuple[int, bytearray]]:
        """Yield (offset, bytes) over a tensor of any dtype."""
        return self._reader(name).chunks(name)

    def _reader(self, name: str) -> ShardReader:
        shard = self._owners[name][0]
        if shard not in self._readers:
            reader = ShardReader(self._folder.path / shard, self._folder.headers[shard])
            self._readers[shard] = self._stack.enter_context(reader)
        return self._readers[shard]
