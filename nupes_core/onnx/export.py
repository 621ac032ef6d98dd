"""The graph of a transformers model in ONNX operators, its weights left out."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import helper
from torch import nn

from nupes_core.errors import UnsupportedArchitectureError
from nupes_core.onnx.decode import OPSET

SEQUENCE, SIDE = 12, 64
"""Tokens, and pixels where any number will do, of the inputs that the model is traced with."""

PREFIX = "model."
"""What the names of parameters begin with in the graph."""

Sizes = Mapping[int, str]


@dataclass(frozen=True)
class Signature:
    """How the graph is called.

    Attributes:
        inputs: name -> example of the input [batch, …].
        free: name -> dimensions of any size, by their names.
        outputs: names of the outputs that are tensors, in the order of transformers.
    """

    inputs: Mapping[str, torch.Tensor]
    free: Mapping[str, Sizes]
    outputs: tuple[str, ...]


class _Flat(nn.Module):
    """A model that takes its inputs in order, and gives tensors."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model, self._inputs, self._outputs = model, tuple(signature.inputs), signature.outputs

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self._inputs, inputs, strict=True)), return_dict=True)
        return tuple(found[name] for name in self._outputs)


def signature(model: Any) -> Signature:
    """Return how the graph of a model is called.

    Raises:
        UnsupportedArchitectureError: nothing is known of the model's inputs.
    """
    make = _INPUTS.get(model.main_input_name)
    made = make(model) if make else None
    if made is None:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} takes {model.main_input_name!r}: its graph cannot be traced",
            hint="Ask for the format nupes or dense.",
        )
    inputs, free = made
    with torch.no_grad():
        found = model(**inputs, return_dict=True)
    return Signature(inputs, free, tuple(name for name, value in found.items() if isinstance(value, torch.Tensor)))


def export(model: Any) -> onnx.ModelProto:
    """Return the graph of a model in eval mode, bare of weights and of what tells of the machine that made it.

    Parameters and buffers of the model are missing among its initializers; they appear under their names in the model.

    Raises:
        UnsupportedArchitectureError: torch cannot export it.
    """
    call = signature(model)
    with _quiet():
        try:
            program: Any = torch.onnx.export(
                _Flat(model, call).eval(),
                tuple(call.inputs.values()),
                dynamo=True,
                # What is folded here would be decoded here.
                optimize=False,
                opset_version=OPSET,
                input_names=list(call.inputs),
                output_names=list(call.outputs),
                dynamic_shapes=(tuple(dict(call.free[name]) for name in call.inputs),),
                verbose=False,
            )
        except Exception as error:  # the exporter stumbles over code of any kind
            raise UnsupportedArchitectureError(
                f"torch cannot export {type(model).__name__} to ONNX ({type(error).__name__})",
                hint="Ask for the format nupes or dense.",
            ) from error
        for name in (*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers())):
            program.model.graph.initializers.pop(PREFIX + name, None)
        return _bare(program.model_proto)


def _bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Keep what is computed; drop stack traces, types of values in between, and the prefix of parameters."""
    graph = proto.graph
    types = {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
    del graph.value_info[:]
    del proto.metadata_props[:]
    del graph.metadata_props[:]
    for each in (*graph.input, *graph.output, *graph.node):
        del each.metadata_props[:]
        each.doc_string = ""
    for tensor in graph.initializer:  # constants of the code
        tensor.name, tensor.doc_string = tensor.name.removeprefix(PREFIX), ""
        del tensor.metadata_props[:]
    for node in graph.node:
        node.input[:] = [name.removeprefix(PREFIX) for name in node.input]
        if node.op_type == "CastLike" and node.output[0] in types:  # onnxruntime folds no constants through it
            node.op_type, node.input[:] = "Cast", node.input[:1]
            node.attribute.append(helper.make_attribute("to", types[node.output[0]]))
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling of operators it lacks and constraints it merges."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_Made = tuple[dict[str, torch.Tensor], dict[str, Sizes]]


def _token_inputs(model: Any) -> _Made:
    arguments = inspect.signature(model.forward).parameters
    tokens = torch.arange(2 * SEQUENCE).view(2, SEQUENCE) % model.config.vocab_size
    mask = torch.ones_like(tokens)
    mask[1, SEQUENCE // 2 :] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    # Tokenizers make segments where a model knows of more than one.
    if "token_type_ids" in arguments and (getattr(model.config, "type_vocab_size", None) or 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(tokens)
    return inputs, {name: {0: "batch", 1: "sequence"} for name in inputs}


def _image_inputs(model: Any) -> _Made | None:
    size, channels = getattr(model.config, "image_size", None), getattr(model.config, "num_channels", 3)
    sides = tuple(size) if isinstance(size, list | tuple) else (size or SIDE,) * 2
    if len(sides) != 2 or not isinstance(channels, int):
        return None
    free = {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
    return {"pixel_values": torch.zeros(2, channels, *sides)}, {"pixel_values": free}


_INPUTS: Mapping[str, Callable[[Any], _Made | None]] = {"input_ids": _token_inputs, "pixel_values": _image_inputs}
"""By the main input of a model."""
