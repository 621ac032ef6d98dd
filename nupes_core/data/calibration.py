"""Calibration samples from whatever a user has: a file, texts, tensors, or nothing but the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from nupes_core.config import CalibrationConfig
from nupes_core.data.modelinputs import (
    LEAST_SAMPLES,
    TOKENS,
    ModelInputs,
    check_length,
    check_vocabulary,
    checked_samples,
    model_inputs,
    read_tensors,
    spread,
    token_windows,
)
from nupes_core.data.samples import Samples
from nupes_core.data.texts import Message, Render, Texts, given_texts, kind_of, read_texts
from nupes_core.errors import CalibrationError, EvaluationError
from nupes_core.evaluation import find_tokenizer, load_tokenizer
from nupes_core.loading import load
from nupes_core.modelfolder import ModelFolder
from nupes_core.sampling import encode_text, sample_tokens

CHARACTERS_PER_TOKEN = 16
"""Read for each token that is needed: about four times as much as it takes, so that samples can be spread."""

LEAST_CHARACTERS = 1 << 16
MOST_CHARACTERS = 1 << 25
PIECE_CHARACTERS = 1 << 20
"""Tokenized at once: tokenizers take some 170 bytes a character."""


@dataclass(frozen=True)
class CalibrationFile:
    """A file of texts or of model inputs.

    Attributes:
        path: plain UTF-8 text, JSONL, JSON array, CSV with a header, Parquet, or safetensors of model inputs.
        column: the field of an object, or the column, that holds the text.
    """

    path: Path
    column: str = "text"


CalibrationSource = CalibrationFile | Path | str | Sequence[str] | torch.Tensor | Samples | None
"""A file or its path, texts, token ids [n] or [n, length], pixel values [n, c, h, w], ready samples; None: sampled."""


def read_samples(
    folder: ModelFolder, source: CalibrationSource, config: CalibrationConfig, *, seed: int, model: Any = None
) -> Samples:
    """Make calibration samples for the model of a folder.

    Language models read windows of `config.length` tokens: the texts are joined, tokenized (in pieces of a million
    characters, BOS in front of the first where the tokenizer puts one) and cut; `config.samples` windows are spread
    evenly over what was read. Encoders read records (the lines of a plain text), cut to `config.length` tokens and
    padded to the longest, with an attention mask. Other models are fed with tensors. Of a long file only the beginning
    is read: 16 characters for each token that is needed, `MOST_CHARACTERS` at most.

    Args:
        folder: the float model's, with its tokenizer where texts are given.
        source: see `CalibrationSource`.
        config: how much is used. Less is taken as it is, down to 8 samples.
        seed: of the text that the model writes itself where `source` is None.
        model: the loaded float model, which spares loading it for that.

    Returns:
        `config.samples` samples at most; the same for the same arguments (and machine, where sampled).

    Raises:
        CalibrationError: the data is missing, broken, too little, or does not fit the model.
        UnsupportedArchitectureError: transformers does not know the model.
        LoadCheckError: `source` is None and the model does not load.
    """
    form = model_inputs(folder, model)
    if source is None:
        return _sampled(folder, form, config, seed, model)
    if isinstance(source, Samples):
        return checked_samples(source.inputs, form, config)
    if isinstance(source, torch.Tensor):
        return checked_samples({form.main: source}, form, config)
    if isinstance(source, str | Path):
        source = CalibrationFile(Path(source))
    if isinstance(source, CalibrationFile) and kind_of(source.path, source.column) == "tensors":
        return checked_samples(read_tensors(source.path, form, config), form, config)
    return _from_texts(folder, source, form, config)


def _sampled(folder: ModelFolder, form: ModelInputs, config: CalibrationConfig, seed: int, model: Any) -> Samples:
    """Let the model write its own text; as `nupes_core.evaluation.fidelity`, in float32."""
    if form.style != "windows":
        needed = "texts" if form.style == "padded" else f"a safetensors file with {form.main!r}"
        raise CalibrationError(f"{form.model} cannot write its own calibration data", hint=f"Give {needed}.")
    check_length(config.length, form)
    tokenizer = find_tokenizer(folder.path)
    model = load(folder.path, dtype=torch.float32) if model is None else model
    predicted = config.length - 1
    try:
        windows = sample_tokens(model, tokenizer, config.samples * predicted, predicted, seed)
    except Exception as error:  # a stranger's weights and configuration decide what goes wrong in there
        raise CalibrationError(
            f"{form.model} could not write its own calibration data ({type(error).__name__})",
            hint="Check that weights, config.json and tokenizer belong together, or give texts.",
        ) from error
    return Samples({TOKENS: windows})


def _from_texts(
    folder: ModelFolder, source: CalibrationFile | Sequence[str], form: ModelInputs, config: CalibrationConfig
) -> Samples:
    if form.style == "tensors":
        raise CalibrationError(
            f"{form.model} reads no text", hint=f"Give a safetensors file with {form.main!r} [samples, …]."
        )
    try:
        tokenizer = load_tokenizer(folder.path)
    except EvaluationError as error:
        hint = "Add tokenizer.json to the model, or give token ids instead of texts."
        raise CalibrationError(error.message, hint=hint) from error
    return _FROM_TEXTS[form.style](source, tokenizer, form, config)


def _windows(
    source: CalibrationFile | Sequence[str], tokenizer: Any, form: ModelInputs, config: CalibrationConfig
) -> Samples:
    check_length(config.length, form)
    texts = _read(source, tokenizer, config, per_text=None)
    tokens = _tokenized(lambda: encode_text(tokenizer, *texts.joined(PIECE_CHARACTERS)))
    windows = token_windows(tokens, config)
    check_vocabulary(windows, form)
    return Samples({TOKENS: windows})


def _padded(
    source: CalibrationFile | Sequence[str], tokenizer: Any, form: ModelInputs, config: CalibrationConfig
) -> Samples:
    length = min(config.length, form.positions or config.length, tokenizer.model_max_length)
    texts = _read(source, tokenizer, config, per_text=length * CHARACTERS_PER_TOKEN)
    lines = [text.strip() for text in texts.texts if text.strip()]
    least = min(LEAST_SAMPLES, config.samples)
    if len(lines) < least:
        raise CalibrationError(
            f"the calibration data holds {len(lines)} texts; {least} are needed",
            hint="Give more: each line of a plain text and each record of other files is one.",
        )
    chosen = [lines[index] for index in spread(len(lines), config.samples).tolist()]
    ids = _tokenized(lambda: tokenizer(chosen, truncation=True, max_length=length, verbose=False)["input_ids"])
    rows = [torch.tensor(row, dtype=torch.int64) for row in ids]
    tokens = pad_sequence(rows, batch_first=True, padding_value=form.pad)
    check_vocabulary(tokens, form)
    inputs = {TOKENS: tokens, "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)}
    if form.decoder_start is not None:  # the decoder writes what the encoder reads
        start = torch.full((len(tokens), 1), form.decoder_start)
        inputs["decoder_input_ids"] = torch.cat([start, tokens[:, :-1]], 1)
    return Samples(inputs)


_FROM_TEXTS: dict[str, Callable[..., Samples]] = {"windows": _windows, "padded": _padded}


def _read(
    source: CalibrationFile | Sequence[str], tokenizer: Any, config: CalibrationConfig, per_text: int | None
) -> Texts:
    needed = config.samples * config.length * CHARACTERS_PER_TOKEN
    characters = min(max(needed, LEAST_CHARACTERS), MOST_CHARACTERS)
    if not isinstance(source, CalibrationFile):
        return given_texts(source, characters=characters, per_text=per_text)
    return read_texts(
        source.path, source.column, characters=characters, per_text=per_text, render=_chat_renderer(tokenizer)
    )


def _chat_renderer(tokenizer: Any) -> Render:
    """Return what makes a text of a conversation: the tokenizer's template where it has one."""
    if not getattr(tokenizer, "chat_template", None):
        return lambda messages: "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    def render(messages: Sequence[Message]) -> str:
        return str(_tokenized(lambda: tokenizer.apply_chat_template(list(messages), tokenize=False)))

    return render


def _tokenized(work: Callable[[], Any]) -> Any:
    """Run a tokenizer, whose files a stranger wrote.

    Raises:
        CalibrationError: whatever it stumbles over.
    """
    try:
        return work()
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")[:200]
        raise CalibrationError(
            f"the model's tokenizer fails on the calibration data ({type(error).__name__}: {said})",
            hint="Check that the tokenizer's files belong together, or give token ids.",
        ) from error
