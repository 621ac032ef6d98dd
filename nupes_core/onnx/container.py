"""Puts an ONNX file together: the graph of a model around the weights of a native artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from nupes_core.artifact import StoredWeight, stored_weights
from nupes_core.diskfile import write_file
from nupes_core.errors import UnsupportedArchitectureError
from nupes_core.formats.onnx import FILE_NAME
from nupes_core.layers import dequantize_modules
from nupes_core.loading import load
from nupes_core.modelfolder import CONFIG_NAME, INDEX_NAME, ModelFolder, open_folder
from nupes_core.onnx.decode import FLOATS, OPSET, PREFIX, Decoder, Form, Tables, one_exponent, stored
from nupes_core.onnx.export import export
from nupes_core.planned import PlannedTensor
from nupes_core.probe import Probe, probe
from nupes_core.quantizer.weight import QuantizedWeight
from nupes_core.renaming import model_names
from nupes_core.sources import Checkpoint

_IR_VERSION = 8
"""Of the file; that of the operators."""

_HALVES = {torch.float16: TensorProto.FLOAT16, torch.bfloat16: TensorProto.BFLOAT16}


def pack(folder: Path, tensors: Sequence[PlannedTensor]) -> Probe | None:
    """Turn a native artifact into `model.onnx`; its safetensors files go.

    Returns:
        Outputs that torch computes with the decoded weights; None where nothing is known of the model's inputs.

    Raises:
        UnsupportedArchitectureError: the graph cannot be made, or has weights that the checkpoint does not.
        DiskFullError: no room for the file.
    """
    artifact = open_folder(folder)
    model = dequantize_modules(load(folder, dtype=torch.float32), torch.float32)
    proto = export(model)
    with Checkpoint(artifact) as checkpoint:
        _Packing(artifact, model, checkpoint, tensors).fill(proto)
    onnx.checker.check_model(proto)
    write_file(folder / FILE_NAME, proto.SerializeToString(deterministic=True))
    for name in (*artifact.headers, INDEX_NAME):
        (folder / name).unlink(missing_ok=True)
    config = {key: value for key, value in artifact.config.items() if key != "quantization_config"}
    write_file(folder / CONFIG_NAME, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
    return probe(model)


class _Packing:
    """Fills a graph with the content of its parameters and buffers."""

    def __init__(
        self, artifact: ModelFolder, model: Any, checkpoint: Checkpoint, tensors: Sequence[PlannedTensor]
    ) -> None:
        self._checkpoint = checkpoint
        self._stored = stored_weights(artifact.config["quantization_config"])
        self._own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        self._sources = _sources(model, self._own, [tensor.name for tensor in tensors])
        self._dtypes = {tensor.name: tensor.dtype for tensor in tensors}

    def fill(self, proto: onnx.ModelProto) -> None:
        """Add initializers, and what decodes them before all else, to a graph."""
        graph = proto.graph
        made = {each.name for each in (*graph.input, *graph.initializer)}
        made |= {output for node in graph.node for output in node.output}
        # Of what is tied one name is kept.
        kept: dict[object, str] = {}
        names = {
            name: kept.setdefault(self._sources.get(name, name), name)
            for name in dict.fromkeys(name for node in graph.node for name in node.input)
            if name and name not in made
        }
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
        decoding = self._content(graph, list(dict.fromkeys(names.values())))
        nodes = [*decoding, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        proto.ir_version, proto.producer_name, proto.producer_version = _IR_VERSION, PREFIX, ""
        del proto.opset_import[:]
        proto.opset_import.append(helper.make_opsetid("", OPSET))
        weights = {self._sources[name]: name for name in names.values() if self._sources.get(name) in self._stored}
        told = {"weights": weights, "unused": sorted(set(self._stored) - set(weights))}
        helper.set_model_props(proto, {PREFIX: json.dumps(told, sort_keys=True)})

    def _content(self, graph: onnx.GraphProto, names: Sequence[str]) -> list[onnx.NodeProto]:
        """Add the initializers behind names of a graph; return the nodes that make what is not stored as it is."""
        coded = {name: source for name in names if (source := self._sources.get(name)) in self._stored}
        weights = {name: self._weight(self._stored[source]) for name, source in coded.items()}
        tables = Tables(weights.values())
        decoders: dict[Form, Decoder] = {}
        nodes: list[onnx.NodeProto] = []
        for name in names:
            if name in weights:
                weight, entry = weights[name], self._stored[coded[name]]
                form = Form(weight.format, entry.dtype, entry.shape, one_exponent(weight))
                decoder = decoders.setdefault(form, Decoder(form, tables.lowest))
                parts = stored(name, weight, form, tables)
                inputs = [*(part.name for part in parts), tables.levels(weight.format), tables.octaves]
                nodes += decoder.nodes(inputs, name)
                graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, entry.shape))
                graph.initializer.extend(parts)
            else:
                nodes += self._plain(graph, name)
        graph.initializer.extend(tables.initializers())
        return nodes

    def _plain(self, graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
        """Store a tensor that is not quantized, in the dtype of the checkpoint."""
        tensor = self._own[name].detach()
        dtype = self._dtypes.get(self._sources.get(name, ""), "F32")
        if tensor.dtype != torch.float32 or dtype not in FLOATS or dtype == "F32":
            graph.initializer.append(numpy_helper.from_array(tensor.contiguous().numpy(), name))
            return []
        half = next(each for each, kind in _HALVES.items() if kind == FLOATS[dtype])
        content = tensor.to(half).contiguous().view(torch.uint8).numpy().tobytes()
        graph.initializer.append(helper.make_tensor(f"{name}_half", FLOATS[dtype], tensor.shape, content, raw=True))
        return [helper.make_node("Cast", [f"{name}_half"], [name], name=name, to=TensorProto.FLOAT)]

    def _weight(self, entry: StoredWeight) -> QuantizedWeight:
        parts = {suffix: self._checkpoint.read(f"{entry.name}_{suffix}") for suffix in entry.parts}
        return QuantizedWeight(entry.format, parts)


def _sources(model: Any, own: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, str]:
    """Return name in the model -> name in the checkpoint, of what is tied too.

    Raises:
        UnsupportedArchitectureError: a parameter is made of several tensors of the checkpoint, or of none.
    """
    found = model_names(model, names)
    places = {own[name].data_ptr(): source for name, source in found.items() if own[name].numel()}
    sources = {name: found.get(name) or places.get(tensor.data_ptr()) for name, tensor in own.items()}
    unknown = [name for name, _ in model.named_parameters() if sources[name] is None]
    if unknown:
        raise UnsupportedArchitectureError(
            f"{unknown[0]} is not one tensor of the checkpoint; its graph cannot hold the codes",
            hint="Ask for the format nupes or dense.",
        )
    return {name: source for name, source in sources.items() if source is not None}
