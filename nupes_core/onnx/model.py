"""Artifacts of format `onnx` as consumers see them: loaded, decoded and run by onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import nn
from transformers.utils.generic import ModelOutput

from nupes_core.errors import LoadCheckError
from nupes_core.formats.onnx import FILE_NAME
from nupes_core.modelfolder import CONFIG_NAME, read_config
from nupes_core.onnx.decode import PARTS, PREFIX

_HINT = "Download it again."


class OnnxModel(nn.Module):
    """A model that onnxruntime runs on the CPU, called as the one of transformers that it was made of.

    Attributes:
        config: transformers' configuration.
        main_input_name: name of the first input.
        session: `onnxruntime.InferenceSession`.
    """

    def __init__(self, config: Any, session: Any) -> None:
        super().__init__()
        self.config, self.session = config, session
        self._types = {each.name: each.type for each in session.get_inputs()}
        self._outputs = [each.name for each in session.get_outputs()]
        self.main_input_name: str = next(iter(self._types))

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        """Return transformers' `ModelOutput` of float32 tensors; a mask that is not given is full, segments are 0."""
        given = dict(zip(self._types, inputs, strict=False)) | named
        main = given[self.main_input_name]
        absent = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
        given |= {name: make(main) for name, make in absent.items() if name in self._types and name not in given}
        feed = {name: given[name].cpu().numpy() for name in self._types if name in given}
        found = self.session.run(None, feed)
        tensors = {name: torch.from_numpy(each) for name, each in zip(self._outputs, found, strict=True)}
        return ModelOutput(tensors)  # type: ignore[no-untyped-call]


def load_onnx(path: Path) -> OnnxModel:
    """Load the model; it computes in float32.

    Raises:
        LoadCheckError: onnxruntime cannot load it.
    """
    import transformers

    config, _ = read_config(path / CONFIG_NAME)
    built = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    return OnnxModel(built, _session(str(path / FILE_NAME), path)).eval()


def decoded_onnx(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (checkpoint tensor, weight float32 in its shape) of what is quantized, each decoded by onnxruntime."""
    model = onnx.load(path / FILE_NAME)
    initializers = {each.name: each for each in model.graph.initializer}
    values = {each.name: each for each in model.graph.value_info}
    nodes: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        nodes.setdefault(node.output[0].partition("/")[0], []).append(node)
    for tensor, name in _told(model)["weights"].items():
        used = dict.fromkeys(each for node in nodes[name] for each in node.input if each in initializers)
        graph = helper.make_graph(nodes[name], PREFIX, [], [values[name]], [initializers[each] for each in used])
        alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        (weight,) = _session(alone.SerializeToString(), path).run(None, {})
        yield tensor, torch.from_numpy(np.ascontiguousarray(weight))


def unused_onnx(path: Path) -> list[str]:
    """Return the checkpoint tensors that were quantized and that the graph has no use for."""
    found: list[str] = _told(onnx.load(path / FILE_NAME))["unused"]
    return found


def onnx_sizes(path: Path) -> list[tuple[int, int]]:
    """Return (parameters, stored bytes) of each quantized weight; tables that weights share are not counted."""
    model = onnx.load(path / FILE_NAME)
    shapes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in model.graph.value_info}
    sizes = {each.name: len(each.raw_data) for each in model.graph.initializer}
    return [
        (prod(shapes[name]), sum(sizes[f"{name}_{part}"] for part in PARTS))
        for name in _told(model)["weights"].values()
    ]


def _told(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what the file tells of itself: weights by checkpoint tensor, and tensors that are not in it."""
    found: dict[str, Any] = json.loads(next(each.value for each in model.metadata_props if each.key == PREFIX))
    return found


def _session(model: str | bytes, path: Path) -> Any:
    """Return a session of as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for each kind of trouble, without a common base
        raise LoadCheckError(f"onnxruntime cannot load {path.name}: {error}", hint=_HINT) from error
