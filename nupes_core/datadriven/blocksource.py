"""Where the weights of blocks come from: read from the checkpoint block by block, or from a model loaded as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from nupes_core.loading import load, resolve_model_class
from nupes_core.modelfolder import ModelFolder
from nupes_core.renaming import model_names
from nupes_core.skeleton import build_config
from nupes_core.sources import Checkpoint

DTYPE = torch.float32
"""Blocks are computed in this dtype, whatever the checkpoint stores."""


class BlockSource(Protocol):
    """Gives the model, and puts the weights of one block at a time into it.

    Attributes:
        model: transformers' model.
        names: name of a tensor in the model -> in the checkpoint.
    """

    model: Any
    names: Mapping[str, str]

    def release_rest(self) -> None:
        """Free the memory of the weights outside the blocks, once the inputs of the first block are known."""

    def materialize(self, name: str) -> None:
        """Give the block its weights."""

    def release(self, name: str) -> None:
        """Free the memory of the block's weights."""


class LoadedBlocks:
    """A model that transformers loaded as a whole: where its names do not match those of the checkpoint."""

    def __init__(self, folder: ModelFolder, names: Mapping[str, str]) -> None:
        """Load the model."""
        self.model, self.names = load(folder.path, dtype=DTYPE), names

    def release_rest(self) -> None:
        """Do nothing: the model holds its weights."""

    def materialize(self, name: str) -> None:
        """Do nothing: all weights are there."""

    def release(self, name: str) -> None:
        """Do nothing: the model holds its weights."""


class StreamedBlocks:
    """A model without the weights of its blocks, which are read when their turn comes."""

    def __init__(self, model: Any, checkpoint: Checkpoint, blocks: list[str], names: Mapping[str, str]) -> None:
        """Read everything outside the blocks but the output head, which runs after them.

        `names` maps names in the model to those in the checkpoint.
        """
        self.model, self.names, self._checkpoint = model, names, checkpoint
        inside = tuple(f"{name}." for name in blocks)
        self._rest = [name for name in _shapes(model) if not name.startswith(inside)]
        head = {id(each) for each in _head_parameters(model)}
        self._fill(name for name in self._rest if id(_get(model, name)) not in head)
        model.tie_weights()

    def release_rest(self) -> None:
        """Put the weights outside the blocks on the meta device."""
        for name in self._rest:
            value = _get(self.model, name)
            if isinstance(value, nn.Parameter):
                self._set(name, value.detach().to("meta"))

    def materialize(self, name: str) -> None:
        """Read the block's weights."""
        self._fill(_shapes(self.model.get_submodule(name), name))

    def release(self, name: str) -> None:
        """Put the block's weights back on the meta device."""
        for path, parameter in list(self.model.get_submodule(name).named_parameters(prefix=name)):
            self._set(path, parameter.detach().to("meta"))

    def _fill(self, names: Iterable[str]) -> None:
        for name in names:
            like = _get(self.model, name)
            if name in self.names and like.is_floating_point():
                self._set(name, self._checkpoint.read(self.names[name]).to(DTYPE))

    def _set(self, name: str, value: torch.Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        owner = self.model.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value
        else:
            owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))


def open_blocks(
    folder: ModelFolder, checkpoint: Checkpoint, blocks_of: Callable[[Any, Mapping[str, str]], list[str]]
) -> tuple[BlockSource, list[str]]:
    """Return a source of the blocks, streamed wherever every weight has its own tensor in the checkpoint.

    Args:
        folder: float model.
        checkpoint: its tensors.
        blocks_of: (model, its names of checkpoint tensors) -> names of its blocks.

    Raises:
        UnsupportedArchitectureError: transformers cannot build the model.
        LoadCheckError: the folder lacks weights.
    """
    model = _without_weights(folder)
    names = model_names(model, checkpoint.names())
    blocks = blocks_of(model, names)
    inside = tuple(f"{name}." for name in blocks)
    if all(name in names for name, _ in model.named_parameters() if name.startswith(inside)):
        return StreamedBlocks(model, checkpoint, blocks, names), blocks
    return LoadedBlocks(folder, names), blocks


def _shapes(module: nn.Module, prefix: str = "") -> list[str]:
    named = (*module.named_parameters(prefix=prefix), *module.named_buffers(prefix=prefix))
    return [name for name, _ in named]


def _get(model: Any, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def _head_parameters(model: Any) -> list[nn.Parameter]:
    """Return the parameters of the layer that maps the last hidden state to the vocabulary, but for tied ones."""
    head = model.get_output_embeddings()
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [] if head is None else [parameter for parameter in head.parameters() if uses[id(parameter)] == 1]


def _without_weights(folder: ModelFolder) -> Any:
    """Build the model with parameters on the meta device, and buffers (sines, masks) for real."""
    model_class = resolve_model_class(folder.config)
    config = build_config(model_class, folder.config, folder.headers)
    with _parameters_on_meta():
        model = model_class._from_config(config, dtype=DTYPE)
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Let modules keep only the shapes of their parameters; initialization then costs nothing."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
