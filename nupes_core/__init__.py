"""NUPES: non-uniform post-training quantization by a searched power exponent. Importing this loads no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nupes_core.config import (
        ActivationConfig,
        CalibrationConfig,
        ExponentConfig,
        LayerOverride,
        LayerSelection,
        QuantizationConfig,
        TrainingConfig,
        WeightConfig,
    )
    from nupes_core.data.calibration import CalibrationFile
    from nupes_core.data.samples import Samples
    from nupes_core.evaluation import Evaluation, evaluate
    from nupes_core.loading import load
    from nupes_core.module import quantize_model
    from nupes_core.pipeline import quantize, quantize_shard
    from nupes_core.report import LayerReport, Metric, Progress, Report

__version__ = "0.1.0"

_EXPORTS = {
    "ActivationConfig": "config",
    "CalibrationConfig": "config",
    "CalibrationFile": "data.calibration",
    "Evaluation": "evaluation",
    "ExponentConfig": "config",
    "LayerOverride": "config",
    "LayerReport": "report",
    "LayerSelection": "config",
    "Metric": "report",
    "Progress": "report",
    "QuantizationConfig": "config",
    "Report": "report",
    "Samples": "data.samples",
    "TrainingConfig": "config",
    "WeightConfig": "config",
    "evaluate": "evaluation",
    "load": "loading",
    "quantize": "pipeline",
    "quantize_model": "module",
    "quantize_shard": "pipeline",
}

__all__ = [
    "ActivationConfig",
    "CalibrationConfig",
    "CalibrationFile",
    "Evaluation",
    "ExponentConfig",
    "LayerOverride",
    "LayerReport",
    "LayerSelection",
    "Metric",
    "Progress",
    "QuantizationConfig",
    "Report",
    "Samples",
    "TrainingConfig",
    "WeightConfig",
    "evaluate",
    "load",
    "quantize",
    "quantize_model",
    "quantize_shard",
]


if not TYPE_CHECKING:  # with it, a type checker would take any misspelt name for one of the package

    def __getattr__(name: str) -> Any:
        """Load the public face on first use, so that torch-free users (`nupes_core.plan`) stay torch-free."""
        if name not in _EXPORTS:
            raise AttributeError(f"module 'nupes_core' has no attribute {name!r}")
        return getattr(importlib.import_module(f"nupes_core.{_EXPORTS[name]}"), name)
