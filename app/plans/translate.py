"""From the wire model of a job to the configuration of the core."""

from __future__ import annotations

from nupes_client.schemas.specs import JobSpec
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


def quantization_config(spec: JobSpec) -> QuantizationConfig:
    """Return the core's configuration for a job.

    Raises:
        nupes_core.errors.InvalidConfigError: a combination that the wire model lets pass and the method does not.
    """
    weights, layers, calibration = spec.weights, spec.layers, spec.calibration
    return QuantizationConfig(
        weights=WeightConfig(
            bits=weights.bits,
            group_size=weights.group_size,
            exponent=ExponentConfig(**weights.exponent.model_dump()),
            layout=weights.layout,
            scale_bits=weights.scale_bits,
        ),
        layers=LayerSelection(
            exclude=tuple(layers.exclude),
            overrides=tuple(LayerOverride(**override.model_dump()) for override in layers.overrides),
            embeddings=layers.embeddings,
        ),
        optimize=spec.optimize.mode,
        training=TrainingConfig(**spec.optimize.model_dump(exclude={"mode"})),
        calibration=CalibrationConfig(calibration.samples, calibration.length) if calibration else CalibrationConfig(),
        activations=ActivationConfig(**spec.activations.model_dump()) if spec.activations else None,
        seed=spec.seed,
    )
