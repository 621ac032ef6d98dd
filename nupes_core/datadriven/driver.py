"""Block after block: quantized, or taken from an earlier attempt; both streams go on with the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

from nupes_core.activations import ActivationQuantizer, from_tensors, observe, token_dims
from nupes_core.checkpoint import tensor_bytes
from nupes_core.codeversion import code_version
from nupes_core.config import ActivationConfig, QuantizationConfig, WeightConfig
from nupes_core.datadriven.blockresult import BlockResult
from nupes_core.datadriven.layer import matrix_of, weight_of
from nupes_core.datadriven.learn import Curve
from nupes_core.datadriven.quantizeunit import UnitTask, quantize_unit
from nupes_core.datadriven.walk import Step, Walk, run_block
from nupes_core.report import Metric, MetricCallback, Progress, ProgressCallback
from nupes_core.smoothing import smooth_block
from nupes_core.storage import WeightFormat, resolve_format
from nupes_core.workfolder import WorkFolder

SMOOTHED = 32
"""Samples that outlier channels are looked for in."""


@dataclass(frozen=True)
class LayerSettings:
    """How one layer is quantized: its weight, and its input where activations are coded."""

    weight: WeightConfig
    activation: ActivationConfig | None = None


@dataclass(frozen=True)
class Reporting:
    """Where a run tells what it does."""

    progress: ProgressCallback | None = None
    metric: MetricCallback | None = None


class Driver:
    """Quantizes the blocks of a walk."""

    def __init__(
        self,
        config: QuantizationConfig,
        settings: Mapping[str, LayerSettings],
        *,
        mask: torch.Tensor | None,
        work: WorkFolder,
        identity: str,
        blocks: int,
        reporting: Reporting,
        shared_exponent: float | None = None,
        smooth: bool = False,
        norm_dtype: Callable[[str], torch.dtype] = lambda _: torch.float32,
    ) -> None:
        """Prepare.

        Args:
            config: of the whole run.
            settings: by full module path of each layer.
            mask: positions of the samples that count, bool [n, length]; None: all.
            work: takes the finished blocks.
            identity: hash of everything that decides the inputs of the first block.
            blocks: how many will come, for the progress.
            reporting: callbacks.
            shared_exponent: for exponent scope `global`.
            smooth: move outlier channels within each block, where `config.activations` asks for it.
            norm_dtype: dtype that a parameter of a norm is stored in, by its full path.
        """
        self._norm_dtype = norm_dtype
        self._smooths = smooth
        self._config, self._settings, self._mask = config, settings, mask
        self._work, self._reporting, self._shared = work, reporting, shared_exponent
        self._key = hashlib.sha256(f"{code_version()} {identity} {shared_exponent}".encode()).hexdigest()
        self._steps_done = 0
        self._steps = blocks * self._steps_per_block()

    def run(self, walk: Walk) -> Iterator[tuple[Step, str, BlockResult]]:
        """Yield each block with the key it is committed under and what it became.

        Raises:
            NumericsError: weights or activations are NaN or infinite.
            DiskFullError: no room to commit a block.
        """
        for index, step in enumerate(walk.steps()):
            self._key = self._next_key(step)
            tensors = self._work.load_tensors(self._key)
            if tensors is None:
                result = self._quantize(step, index)
                self._work.store_tensors(self._key, result.to_tensors())
            else:
                formats = {name: self._format(step, name) for name in step.unit.layers}
                result = BlockResult.from_tensors(tensors, formats)
                self._apply(step, result)
            self._report(step, result, index)
            yield step, self._key, result

    def _quantize(self, step: Step, index: int) -> BlockResult:
        columns, norms = self._smooth(step)
        inputs = step.inputs = self._fit_inputs(step)
        generator = torch.Generator().manual_seed(self._config.seed * 1_000_003 + index)
        task = UnitTask(
            unit=step.unit,
            weights={name: self._of(step, name).weight for name in step.unit.layers},
            feed=step.feed,
            target=step.target,
            mask=self._mask,
            inputs=inputs,
            shared_exponent=self._shared,
            data_free=self._config.optimize == "data_free",
        )
        found = quantize_unit(task, self._config.training, generator, lambda: self._advance(step.unit.name))
        return BlockResult(
            weights=found.weights,
            inputs={name: quantizer.to_tensors() for name, quantizer in inputs.items()},
            norms=self._stored_norms(step, norms | found.norms),
            columns=columns,
            moved=found.moved,
            curves=_curves(found.stages, found.curve, found.norm_curve),
        )

    @torch.no_grad()
    def _stored_norms(self, step: Step, norms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Round norms to the dtype they are stored in, in the block too: the next block has to see what will be."""
        stored = {name: norm.to(self._norm_dtype(step.unit.full_name(name))) for name, norm in norms.items()}
        for name, norm in stored.items():
            step.unit.module.get_parameter(name).copy_(norm)
        return stored

    def _smooth(self, step: Step) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the factors that went into the weights, by layer, and the norms that were divided by them."""
        if not self._smooths:
            return {}, {}
        layers = {step.unit.full_name(name): layer for name, layer in step.unit.layers.items()}
        block, few = step.unit.module, step.feed.first(SMOOTHED)
        found = smooth_block(block, lambda: run_block(block, few), layers, self._config)
        columns = {name: found[full] for name in step.unit.layers if (full := step.unit.full_name(name)) in found}
        norms = {
            f"{norm}.{name}": parameter.detach().clone()
            for norm in found.keys() - layers.keys()
            for name, parameter in block.get_submodule(norm).named_parameters()
        }
        return columns, norms

    def _fit_inputs(self, step: Step) -> dict[str, ActivationQuantizer]:
        coded = {name: layer for name, layer in step.unit.layers.items() if self._of(step, name).activation}
        if not coded:
            return {}
        observers = observe(coded, lambda: run_block(step.unit.module, step.feed), self._mask)
        return {name: observers[name].fit(self._activation(step, name)) for name in coded}

    def _activation(self, step: Step, layer: str) -> ActivationConfig:
        activation = self._of(step, layer).activation
        assert activation is not None, f"{layer} has float inputs"
        return activation

    @torch.no_grad()
    def _apply(self, step: Step, result: BlockResult) -> None:
        """Put a committed result into the block."""
        for name, weight in result.weights.items():
            layer = step.unit.layers[name]
            layer.weight.copy_(weight_of(layer, weight.dequantize()))
        for name, norm in result.norms.items():
            step.unit.module.get_parameter(name).copy_(norm)
        step.inputs = {
            name: from_tensors(self._activation(step, name), tensors, token_dims=token_dims(step.unit.layers[name]))
            for name, tensors in result.inputs.items()
        }

    def _next_key(self, step: Step) -> str:
        config = self._config
        settings = {
            "unit": step.unit.name,
            "layers": {name: asdict(self._of(step, name)) for name in step.unit.layers},
            "training": asdict(config.training),
            "optimize": config.optimize,
            "seed": config.seed,
        }
        digest = hashlib.sha256((self._key + json.dumps(settings, sort_keys=True)).encode())
        for name, tensor in (*step.unit.module.named_parameters(), *step.unit.module.named_buffers()):
            digest.update(name.encode())
            digest.update(tensor_bytes(tensor))
        return digest.hexdigest()

    def _format(self, step: Step, layer: str) -> WeightFormat:
        rows, cols = matrix_of(step.unit.layers[layer]).shape
        return resolve_format(rows, cols, self._of(step, layer).weight)

    def _of(self, step: Step, layer: str) -> LayerSettings:
        return self._settings[step.unit.full_name(layer)]

    def _steps_per_block(self) -> int:
        training = self._config.training
        trains = training.learn_codes or training.learn_scales or training.learn_exponent
        return 1 + training.steps * (trains + training.tweak_norms) * (self._config.optimize == "data_driven")

    def _advance(self, unit: str, to: int | None = None) -> None:
        self._steps_done = self._steps_done + 1 if to is None else to
        if self._reporting.progress:
            done = min(self._steps_done, self._steps)
            self._reporting.progress(Progress("calibrating", done, self._steps, "steps", unit))

    def _report(self, step: Step, result: BlockResult, index: int) -> None:
        emit = self._reporting.metric or (lambda _: None)
        for name, points in result.curves.items():
            for at, value in points.tolist():
                emit(Metric(f"{name}/{step.unit.name}", int(at), value))
        self._advance(step.unit.name, (index + 1) * self._steps_per_block())


def _curves(stages: Mapping[str, float], curve: Curve, norms: Curve | None) -> dict[str, torch.Tensor]:
    """Return the points of each curve as [n, 2]."""
    points = {f"start_{name}": [(0, value)] for name, value in stages.items() if name not in ("learning", "norms")}
    for prefix, each in (("", curve), ("norms_", norms)):
        if each is not None:
            points[f"{prefix}loss"] = [(step + 1, value) for step, value in enumerate(each.train)]
            points[f"{prefix}held_out"] = sorted(each.held_out.items())
    return {name: torch.tensor(found, dtype=torch.float32) for name, found in points.items() if found}
