"""Run a model folder on calibration data, block by block, and keep what its layers became for the writers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nupes_core.checkpoint import TORCH_DTYPES, tensor_bytes
from nupes_core.config import QuantizationConfig
from nupes_core.data.samples import Samples
from nupes_core.datadriven.blockresult import BlockResult, CommittedLayer
from nupes_core.datadriven.blocksource import BlockSource, open_blocks
from nupes_core.datadriven.chain import Chain, trace_chain
from nupes_core.datadriven.driver import Driver, LayerSettings, Reporting
from nupes_core.datadriven.layer import matrix_of
from nupes_core.datadriven.units import repeated_blocks
from nupes_core.datadriven.walk import ChainWalk, Step
from nupes_core.errors import UnsupportedArchitectureError
from nupes_core.layers import REPLACEMENTS
from nupes_core.modelfolder import ModelFolder
from nupes_core.planned import PlannedTensor
from nupes_core.sources import Checkpoint
from nupes_core.workfolder import WorkFolder


@dataclass
class Calibrated:
    """What a run on calibration data decided, by checkpoint tensor.

    Attributes:
        layers: quantized weights, in the work folder.
        replaced: tensors that are not quantized and changed all the same (norms), in the dtype of the checkpoint.
    """

    layers: dict[str, CommittedLayer] = field(default_factory=dict)
    replaced: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Target:
    """A layer of the model and the planned tensor that it holds."""

    module: Any
    tensor: PlannedTensor


def calibrate(
    folder: ModelFolder,
    checkpoint: Checkpoint,
    quantized: tuple[PlannedTensor, ...],
    config: QuantizationConfig,
    samples: Samples,
    work: WorkFolder,
    reporting: Reporting,
    shared_exponent: float | None = None,
) -> Calibrated:
    """Quantize the layers of the model's main chain of blocks; layers elsewhere are left to the search without data.

    Args:
        folder: float model.
        checkpoint: its tensors.
        quantized: planned tensors that are quantized.
        config: of the run.
        samples: inputs of the model.
        work: takes finished blocks, and gives those of an earlier attempt.
        reporting: progress and curves.
        shared_exponent: for exponent scope `global`.

    Raises:
        UnsupportedArchitectureError: transformers cannot build the model, or its blocks form no chain.
        CalibrationError: the samples do not fit the model.
        NumericsError: weights or activations are NaN or infinite.
        DiskFullError: no room to commit a block.
    """
    source, blocks = open_blocks(folder, checkpoint, lambda model, names: _main_blocks(model, names, quantized))
    source.model.config.use_cache = False
    chain = trace_chain(source.model, blocks, samples)
    targets = _targets(source.model, source.names, blocks, quantized)
    layers = {name: {path: target.module for path, target in held.items()} for name, held in targets.items()}
    driver = Driver(
        config,
        {f"{block}.{path}": _settings(t.tensor) for block, held in targets.items() for path, t in held.items()},
        mask=samples.mask,
        work=work,
        identity=_identity(samples, chain),
        blocks=sum(bool(targets.get(name)) for name in chain.names),
        reporting=reporting,
        shared_exponent=shared_exponent,
        smooth=True,
        norm_dtype=lambda name: _stored_dtype(source, checkpoint, name),
    )
    calibrated = Calibrated()
    for step, key, result in driver.run(ChainWalk(source, chain, layers)):
        for path, target in targets[step.unit.name].items():
            calibrated.layers[target.tensor.name] = CommittedLayer(work.piece(key), path)
        calibrated.replaced |= _replaced(source, step, result)
    return calibrated


def _main_blocks(model: Any, names: Mapping[str, str], quantized: tuple[PlannedTensor, ...]) -> list[str]:
    """Return the list of blocks that holds most of the quantized parameters."""
    lists = repeated_blocks(model)

    def weight(blocks: list[str]) -> int:
        return sum(
            target.tensor.params
            for held in _targets(model, names, blocks, quantized).values()
            for target in held.values()
        )

    best = max(lists, key=weight, default=[])
    if not best or not weight(best):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} has no list of blocks that hold the layers to be quantized",
            hint="Use optimize data_free, which needs no blocks.",
        )
    return best


def _targets(
    model: Any, names: Mapping[str, str], blocks: list[str], quantized: tuple[PlannedTensor, ...]
) -> dict[str, dict[str, _Target]]:
    """Return block -> path of a layer within it -> what it holds, for all layers that can be trained."""
    by_name = {tensor.name: tensor for tensor in quantized}
    found: dict[str, dict[str, _Target]] = {}
    for block in blocks:
        for path, module in model.get_submodule(block).named_modules():
            tensor = by_name.get(names.get(f"{block}.{path}.weight", ""))
            if path and tensor is not None and _trainable(module, tensor):
                found.setdefault(block, {})[path] = _Target(module, tensor)
    return found


def _trainable(module: Any, tensor: PlannedTensor) -> bool:
    coding = tensor.coding
    if type(module) not in REPLACEMENTS or coding is None or coding.view.slices is not None:
        return False
    return tuple(matrix_of(module).shape) == (coding.view.rows, coding.view.cols)


def _settings(tensor: PlannedTensor) -> LayerSettings:
    assert tensor.coding is not None, f"{tensor.name} is not quantized"
    return LayerSettings(tensor.coding.weight.learnt, tensor.coding.activation)


def _stored_dtype(source: BlockSource, checkpoint: Checkpoint, parameter: str) -> torch.dtype:
    """Return the dtype of a parameter in the checkpoint; float32 for one that is not there."""
    stored = source.names.get(parameter)
    return torch.float32 if stored is None else TORCH_DTYPES[checkpoint.info(stored).dtype]


def _replaced(source: BlockSource, step: Step, result: BlockResult) -> dict[str, torch.Tensor]:
    """Return changed norms under their names in the checkpoint."""
    stored = {name: source.names.get(step.unit.full_name(name)) for name in result.norms}
    return {each: result.norms[name] for name, each in stored.items() if each is not None}


def _identity(samples: Samples, chain: Chain) -> str:
    """Return a hash of what the first block is called with."""
    digest = hashlib.sha256(samples.sha256().encode())
    digest.update(tensor_bytes(chain.hidden))
    return digest.hexdigest()
