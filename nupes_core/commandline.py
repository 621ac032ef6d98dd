"""Options of `python -m nupes_core quantize`: what they are called, and the configuration they make. Torch-free.

An option is stored as `SECTION.FIELD` of the configuration, and only where it is given: defaults are those of the
dataclasses, and what is said about something that is switched off can be refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from nupes_core.config import (
    ActivationConfig,
    ActivationGrid,
    ActivationRange,
    ActivationScaling,
    CalibrationConfig,
    ExponentScope,
    Layout,
    Optimize,
    QuantizationConfig,
    TrainingConfig,
    WeightConfig,
)
from nupes_core.errors import InvalidConfigError

_DEFAULTS = {
    "weights": WeightConfig(),
    "exponent": WeightConfig().exponent,
    "training": TrainingConfig(),
    "calibration": CalibrationConfig(),
    "activations": ActivationConfig(),
}


def add_quantize_options(parser: argparse.ArgumentParser) -> None:
    """Add all options that decide the configuration, in groups, and the calibration file."""
    _add_weights(parser.add_argument_group("weights"))
    _add_learning(parser.add_argument_group("learning on data"))
    _add_calibration(parser.add_argument_group("calibration data"))
    _add_activations(parser.add_argument_group("activations"))


def quantization_config(arguments: argparse.Namespace) -> QuantizationConfig:
    """Return what the options say.

    Raises:
        InvalidConfigError: a value out of range, or an option about something that is switched off.
    """
    optimize = arguments.optimize.replace("-", "_")
    training, activations = _given(arguments, "training"), _given(arguments, "activations")
    if optimize == "data_free":
        _refuse("training", training, "nothing is learnt without data", "Add --optimize data-driven.")
    if "bits" not in activations:
        _refuse("activations", activations, "activations stay float", "Add --activation-bits 8.")
    exponent = _given(arguments, "exponent")
    if "value" in exponent:
        exponent["mode"] = "fixed"
    content = {
        "weights": {**_given(arguments, "weights"), "exponent": exponent},
        "layers": _given(arguments, "layers"),
        "optimize": optimize,
        "training": training,
        "calibration": _given(arguments, "calibration"),
        "activations": activations or None,
        "seed": arguments.seed,
    }
    return QuantizationConfig.from_dict(content)


def calibration_source(arguments: argparse.Namespace) -> tuple[Path, str] | None:
    """Return the calibration file and the field of it that holds the text; None where none is given.

    Raises:
        InvalidConfigError: a field without a file.
    """
    if arguments.calibration is None:
        if arguments.calibration_column is not None:
            raise InvalidConfigError(
                f"--calibration-column {arguments.calibration_column!r} names a field of a file, and none is given",
                hint="Add --calibration FILE.",
            )
        return None
    return arguments.calibration, arguments.calibration_column or "text"


def _add_weights(group: argparse._ArgumentGroup) -> None:
    _add(group, "--bits", "weights.bits", "2 to 8", type=int)
    _add(group, "--group-size", "weights.group_size", "weights that share a scale, -1: a whole row", type=int)
    _add(group, "--scale-bits", "weights.scale_bits", "bits of a group's scale", type=int)
    _add(group, "--layout", "weights.layout", "where the levels lie", choices=get_args(Layout))
    _add(
        group,
        "--exponent-scope",
        "exponent.scope",
        "weights that share a searched exponent",
        choices=get_args(ExponentScope),
    )
    _add(group, "--exponent", "exponent.value", "a fixed one, 0.3 to 1.5, instead of a search", type=float)
    _add(
        group, "--exclude", "layers.exclude", "modules left alone (default: lm_head)", action="append", metavar="REGEX"
    )
    _add(group, "--embeddings", "layers.embeddings", "also quantize embedding tables", action="store_true")


def _add_learning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--optimize",
        choices=[name.replace("_", "-") for name in get_args(Optimize)],
        default="data-free",
        help="data-driven runs the model on data, block by block (default: %(default)s)",
    )
    _add(group, "--steps", "training.steps", "optimizer steps for each block", type=int)
    _add(group, "--learning-rate", "training.learning_rate", "of the codes, in code units", type=float)
    _add(group, "--batch-size", "training.batch_size", "samples in a step", type=int)
    for option, field, meaning in (
        ("--no-error-feedback", "error_feedback", "round each weight by itself"),
        ("--no-learn-codes", "learn_codes", "keep the codes of the start"),
        ("--no-learn-exponent", "learn_exponent", "keep the exponents of the start"),
        ("--no-learn-scales", "learn_scales", "keep the scales of the start"),
    ):
        _add(group, option, f"training.{field}", meaning, action="store_false")
    _add(group, "--tweak-norms", "training.tweak_norms", "afterwards train the norms", action="store_true")


def _add_calibration(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="texts (plain, JSONL, JSON, CSV, Parquet) or model inputs (safetensors); without it the model writes text",
    )
    group.add_argument("--calibration-column", metavar="NAME", help="field that holds the text (default: text)")
    _add(group, "--calibration-samples", "calibration.samples", "sequences at most", type=int)
    _add(group, "--calibration-length", "calibration.length", "tokens of a sequence", type=int)


def _add_activations(group: argparse._ArgumentGroup) -> None:
    meaning = "code the inputs of quantized layers with 2 to 8 bits (default: they stay float)"
    group.add_argument(
        "--activation-bits", dest="activations.bits", type=int, default=argparse.SUPPRESS, metavar="N", help=meaning
    )
    for field, choices, meaning in (
        ("grid", ActivationGrid, "where their levels lie"),
        ("scaling", ActivationScaling, "a scale for each token, or a fixed one found on data"),
        ("range", ActivationRange, "how a fixed scale is found"),
    ):
        _add(group, f"--activation-{field}", f"activations.{field}", meaning, choices=get_args(choices))
    _add(group, "--no-smooth", "activations.smooth", "leave outlier channels where they are", action="store_false")


def _add(group: argparse._ArgumentGroup, option: str, destination: str, meaning: str, **settings: Any) -> None:
    """Add an option that is absent unless given; its help quotes the default of the dataclass."""
    section, _, field = destination.partition(".")
    default = getattr(_DEFAULTS.get(section), field, None)
    shown = "" if default is None or isinstance(default, bool) else f" (default: {default})"
    if "type" in settings:
        settings.setdefault("metavar", "N" if settings["type"] is int else "X")
    group.add_argument(option, dest=destination, default=argparse.SUPPRESS, help=meaning + shown, **settings)


def _given(arguments: argparse.Namespace, section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in vars(arguments).items() if name.startswith(prefix)}


def _refuse(section: str, given: Mapping[str, Any], why: str, hint: str) -> None:
    for field, value in given.items():
        raise InvalidConfigError(f"{section}.{field} is set to {value!r}, but {why}", hint=hint)
