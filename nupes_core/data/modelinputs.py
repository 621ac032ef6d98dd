"""What a model wants to be fed with, and tensors checked against it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nupes_core.config import CalibrationConfig
from nupes_core.data.samples import Samples
from nupes_core.errors import CalibrationError, UnsafeFileError
from nupes_core.header import Header, read_header
from nupes_core.loading import resolve_model_class
from nupes_core.modelfolder import ModelFolder
from nupes_core.skeleton import build_config

LEAST_SAMPLES = 8
"""With fewer, errors of single samples would be learnt."""

MOST_TENSOR_BYTES = 1 << 32
"""Of the samples taken from a file of tensors."""

TOKENS = "input_ids"
PIXELS = "pixel_values"
_SHAPES: Mapping[str, tuple[Sequence[int], str]] = {
    TOKENS: ((2,), "[samples, length]"),
    PIXELS: ((4,), "[samples, channels, height, width]"),
}
"""Ranks of main inputs."""

Style = Literal["windows", "padded", "tensors"]
"""A language model that reads on reads windows of a long text; an encoder whole records, padded; others no text."""


@dataclass(frozen=True)
class ModelInputs:
    """How a model is called.

    Attributes:
        model: name of its class, for messages.
        style: see `Style`.
        main: its main argument, e.g. `input_ids` or `pixel_values`.
        names: all its arguments.
        vocabulary: token ids there are; None where the configuration does not say.
        positions: most tokens it takes; None without a limit.
        channels: of its images; None where the configuration does not say.
        pad: token id that fills up short records.
        decoder_start: first token of the decoder, where there are both encoder and decoder.
    """

    model: str
    style: Style
    main: str
    names: frozenset[str]
    vocabulary: int | None
    positions: int | None
    channels: int | None
    pad: int
    decoder_start: int | None


def model_inputs(folder: ModelFolder, model: Any = None) -> ModelInputs:
    """Return how the model of a folder is called; `model`, the loaded one, saves building it from its configuration.

    Raises:
        UnsupportedArchitectureError: transformers does not know the model.
    """
    model_class = resolve_model_class(folder.config) if model is None else type(model)
    config = build_config(model_class, folder.config, folder.headers) if model is None else model.config
    text = config.get_text_config()
    start = _integer(config, "decoder_start_token_id") if _integer(config, "is_encoder_decoder") else None
    pad = _integer(text, "pad_token_id")
    return ModelInputs(
        model=model_class.__name__,
        style=_style(model_class, config),
        main=model_class.main_input_name,
        names=frozenset(inspect.signature(model_class.forward).parameters) - {"self", "kwargs", "args"},
        vocabulary=_integer(text, "vocab_size"),
        positions=_integer(text, "max_position_embeddings") or None,
        channels=_integer(config, "num_channels"),
        pad=0 if pad is None or pad < 0 else pad,
        decoder_start=start,
    )


def _style(model_class: Any, config: Any) -> Style:
    import transformers

    if model_class.main_input_name != TOKENS:
        return "tensors"
    # BERT and its kin can be told to generate (BertLMHeadModel); as they are trained, they read both ways.
    both_ways = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    reads_on = model_class.can_generate() and not config.is_encoder_decoder and not both_ways
    return "windows" if reads_on else "padded"


def _integer(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return int(value) if isinstance(value, int) else None


def spread(available: int, wanted: int) -> torch.Tensor:
    """Return at most `wanted` indices, evenly spread over `available`; int64, rising."""
    count = min(available, wanted)
    return torch.arange(count) * available // max(count, 1)


def token_windows(tokens: torch.Tensor, config: CalibrationConfig) -> torch.Tensor:
    """Cut token ids [n] into windows and choose `config.samples` of them; [samples or fewer, length].

    Raises:
        CalibrationError: not even a few windows.
    """
    length, available = config.length, len(tokens) // config.length
    least = min(LEAST_SAMPLES, config.samples)
    if available < least:
        raise CalibrationError(
            f"the calibration data has {len(tokens)} tokens; {least} windows of {length} tokens need {least * length}",
            hint=f"Give more, or a smaller calibration.length; {config.samples * length} tokens serve all samples.",
        )
    return tokens[: available * length].view(available, length)[spread(available, config.samples)]


def check_vocabulary(tokens: torch.Tensor, form: ModelInputs) -> None:
    """Check that the model has an embedding for each token id.

    Raises:
        CalibrationError: quotes the id.
    """
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (form.vocabulary is not None and high >= form.vocabulary):
        raise CalibrationError(
            f"the calibration data holds the token id {low if low < 0 else high}; "
            f"{form.model} has {form.vocabulary or 'no'} tokens, counted from 0",
            hint="Use the tokenizer that belongs to the model.",
        )


def checked_samples(tensors: Mapping[str, torch.Tensor], form: ModelInputs, config: CalibrationConfig) -> Samples:
    """Make samples of a model's inputs.

    Args:
        tensors: argument name -> tensor [n, …]; a flat `input_ids` [n] is cut into windows.
        form: how the model is called.
        config: how many samples, and how many of their tokens, are kept.

    Returns:
        `input_ids` and masks as int64, all else as float32.

    Raises:
        CalibrationError: the main input is missing, or anything does not fit the model.
    """
    if form.main not in tensors:
        raise CalibrationError(
            f"{form.model} needs {form.main!r}; the calibration data has {sorted(tensors)}",
            hint=f"Give the tensor {form.main!r} [samples, …], as the model is called with.",
        )
    unknown = sorted(set(tensors) - form.names)
    if unknown:
        raise CalibrationError(
            f"{form.model} takes no {unknown[0]!r}; the calibration data has {sorted(tensors)}", hint="Leave it out."
        )
    if tensors[form.main].ndim == 1 and form.main == TOKENS:
        _check_main(tensors[TOKENS][None], form)
        tensors = {TOKENS: token_windows(tensors[TOKENS], config)}
    _check_main(tensors[form.main], form)
    _check_count(tensors, config)
    chosen = spread(len(tensors[form.main]), config.samples)
    samples = {name: _fitted(tensor[chosen], form, config) for name, tensor in tensors.items()}
    _check_content(samples[form.main], form)
    return Samples(samples)


def _check_main(tensor: torch.Tensor, form: ModelInputs) -> None:
    """Check dtype and shape of the main input."""
    real = tensor.is_floating_point()
    whole = not real and not tensor.is_complex() and tensor.dtype != torch.bool
    ranks, shape = _SHAPES.get(form.main, (range(2, 16), "[samples, …]"))
    if tensor.ndim not in ranks or 0 in tensor.shape or not (whole if form.main == TOKENS else real):
        raise CalibrationError(
            f"{form.main} is {tensor.dtype} of shape {list(tensor.shape)}",
            hint=f"Give {'whole' if form.main == TOKENS else 'floating-point'} numbers {shape}.",
        )
    if form.main == PIXELS and form.channels is not None and tensor.shape[1] != form.channels:
        raise CalibrationError(
            f"{form.main} has {tensor.shape[1]} channels (shape {list(tensor.shape)}); "
            f"{form.model} has {form.channels}",
            hint="Give what the model's image processor returns.",
        )


def _check_count(tensors: Mapping[str, torch.Tensor], config: CalibrationConfig) -> None:
    counts = {name: len(tensor) if tensor.ndim else 0 for name, tensor in tensors.items()}
    if len(set(counts.values())) != 1:
        raise CalibrationError(f"the calibration inputs hold different numbers of samples: {counts}")
    found, least = min(counts.values()), min(LEAST_SAMPLES, config.samples)
    if found < least:
        raise CalibrationError(f"the calibration data holds {found} samples; {least} are needed", hint="Give more.")


def _fitted(tensor: torch.Tensor, form: ModelInputs, config: CalibrationConfig) -> torch.Tensor:
    """Cut tokens and their masks to the length wished; int64 or float32."""
    if form.main == TOKENS and tensor.ndim == 2:
        tensor = tensor[:, : config.length]
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def _check_content(tensor: torch.Tensor, form: ModelInputs) -> None:
    if form.main == TOKENS:
        check_length(tensor.shape[1], form)
        check_vocabulary(tensor, form)
    elif not bool(tensor.isfinite().all()):
        raise CalibrationError(f"{form.main} holds NaN or an infinity", hint="Check how the inputs were made.")


def check_length(length: int, form: ModelInputs) -> None:
    """Check that the model takes sequences that long.

    Raises:
        CalibrationError: it does not.
    """
    if form.positions is not None and length > form.positions:
        raise CalibrationError(
            f"calibration.length is {length}; {form.model} takes at most {form.positions} tokens",
            hint=f"Set calibration.length to {form.positions} or less.",
        )


def read_tensors(path: Path, form: ModelInputs, config: CalibrationConfig) -> dict[str, torch.Tensor]:
    """Read the samples that are going to be used from a safetensors file, spread evenly over it.

    Raises:
        CalibrationError: the file is broken, or the samples take more than `MOST_TENSOR_BYTES`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        header = read_header(path)
        rows = _rows(header, form, config)
        _check_bytes(path, header, rows)
        with safe_open(path, framework="pt") as file:
            return {name: _take(file.get_slice(name), index) for name, index in rows.items()}
    except (UnsafeFileError, SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CalibrationError(str(error), hint="Write the inputs with safetensors.torch.save_file.") from error


def _rows(header: Header, form: ModelInputs, config: CalibrationConfig) -> dict[str, range | torch.Tensor]:
    """Return tensor name -> rows to read; of a flat text of token ids its beginning."""
    rows: dict[str, range | torch.Tensor] = {}
    for info in header.tensors:
        count = info.shape[0] if info.shape else 0
        flat = info.name == form.main == TOKENS and len(info.shape) == 1
        rows[info.name] = (
            range(min(count, 16 * config.samples * config.length)) if flat else spread(count, config.samples)
        )
    return rows


def _check_bytes(path: Path, header: Header, rows: Mapping[str, range | torch.Tensor]) -> None:
    needed = sum(
        info.nbytes // max(info.shape[0] if info.shape else 1, 1) * len(rows[info.name]) for info in header.tensors
    )
    if needed > MOST_TENSOR_BYTES:
        raise CalibrationError(
            f"the chosen samples of {path.name} take {needed} bytes; at most {MOST_TENSOR_BYTES} are read",
            hint="Set calibration.samples to less.",
        )


def _take(tensor: Any, rows: range | torch.Tensor) -> torch.Tensor:
    if isinstance(rows, range):
        return torch.as_tensor(tensor[: len(rows)])
    if not tensor.get_shape():
        raise ValueError("the file holds a tensor without dimensions")
    return torch.cat([tensor[row : row + 1] for row in rows.tolist()] or [tensor[:0]])
