"""How good a model still is: perplexity, and fidelity to its float original (method §8, protocol `nupes-eval-1`)."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nupes_core.errors import EvaluationError
from nupes_core.inference import device_of
from nupes_core.layers import decode_weights
from nupes_core.loading import load
from nupes_core.quantizer.sizes import model_bits_per_weight
from nupes_core.report import Progress, ProgressCallback
from nupes_core.sampling import encode_text, sample_tokens

PROTOCOL = "nupes-eval-1"

LOGITS_AT_ONCE = 1 << 24
"""Logits compared at once: 64 MiB in float32, whatever context and vocabulary are."""

Source = str | Path | torch.nn.Module


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per predicted token.
        tokens: predicted tokens, i.e. windows x context.
        context: tokens that a window feeds to the model.
        text_sha256: of the text's UTF-8 bytes; of the little-endian int64 bytes where tokens were given or sampled.
        protocol: `nupes-eval-1`.
        source: `text` or `tokens` as given, or `sampled` from the float model.
        kl: mean KL(float ‖ this model) per token, nats; None without a baseline.
        top1_agreement: share of tokens where both put the same token first; None without a baseline.
        baseline_perplexity: of the float model on the same tokens; None without a baseline.
        bits_per_weight: all bytes of the quantized tensors x 8 / their parameters; of all tensors in a float model.
        seconds: wall time.
    """

    perplexity: float
    tokens: int
    context: int
    text_sha256: str
    protocol: str
    source: str
    kl: float | None
    top1_agreement: float | None
    baseline_perplexity: float | None
    bits_per_weight: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def evaluate(
    model_or_path: Source,
    text: str | Path | torch.Tensor,
    *,
    context: int = 256,
    baseline: Source | None = None,
    max_tokens: int | None = None,
    tokenizer: Any = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measure perplexity on a text, and fidelity to `baseline` where there is one.

    The text is tokenized as a whole, a BOS put in front where the tokenizer adds one, and cut to `max_tokens`.
    Window `i` feeds tokens [i·context, (i+1)·context) and predicts each one's successor; a rest that does not fill a
    window is left out.

    Args:
        model_or_path: model folder (native, dense or float), evaluated in float32; or a module, evaluated as it is.
        text: a text, the path of a UTF-8 file, or token ids [n].
        context: tokens that a window feeds.
        baseline: the float model or its folder. Both run side by side, window by window.
        max_tokens: use only the first tokens of the text.
        tokenizer: needed for a module and a text; a folder has its own.
        progress: called after each window.

    Raises:
        EvaluationError: text missing, not UTF-8 or too short; no tokenizer; no language-model head; context too long.
    """
    started = time.perf_counter()
    model = _open(model_or_path)
    tokens, digest, kind = _tokens(text, tokenizer or _tokenizer(model_or_path, text))
    windows = _windows(tokens[:max_tokens], context)
    return _measure(model, model_or_path, windows, baseline, digest, kind, started, progress)


def fidelity(
    model_or_path: Source,
    baseline: Source,
    *,
    tokens: int = 4096,
    context: int = 256,
    seed: int = 0,
    tokenizer: Any = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measure fidelity to `baseline` without any text: on `tokens` tokens sampled from it with a fixed seed.

    Raises:
        EvaluationError: no language-model head, or context longer than the model's.
    """
    started = time.perf_counter()
    model, float_model = _open(model_or_path), _open(baseline)
    tokenizer = tokenizer or (None if isinstance(baseline, torch.nn.Module) else find_tokenizer(baseline))
    _check_context(float_model, context)
    windows = sample_tokens(float_model, tokenizer, tokens, context, seed)
    return _measure(model, model_or_path, windows, float_model, _tokens_sha256(windows), "sampled", started, progress)


def find_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a model folder, None where there is none that can be built: it knows how texts begin."""
    try:
        return load_tokenizer(folder)
    except EvaluationError:
        return None


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a model folder, from its files alone.

    Raises:
        EvaluationError: the folder has none that can be built.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # nosec B615
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        said = next(iter(str(error).splitlines()), "")[:200]
        raise EvaluationError(
            f"the model has no tokenizer that can be loaded ({type(error).__name__}: {said})",
            hint="Add tokenizer.json to the model, or leave the text out: the model then writes its own tokens.",
        ) from error


def _open(source: Source) -> torch.nn.Module:
    if isinstance(source, torch.nn.Module):
        return source
    # Each window would otherwise decode every weight again.
    return decode_weights(load(source, dtype=torch.float32), torch.float32)


def _tokenizer(source: Source, text: str | Path | torch.Tensor) -> Any:
    if isinstance(text, torch.Tensor):
        return None
    if isinstance(source, torch.nn.Module):
        raise EvaluationError(
            "a module and a text, but no tokenizer", hint="Pass tokenizer=, or token ids as the text."
        )
    return load_tokenizer(source)


def _tokens(text: str | Path | torch.Tensor, tokenizer: Any) -> tuple[torch.Tensor, str, str]:
    """Return token ids [n], sha256 and the kind of source."""
    if isinstance(text, torch.Tensor):
        return text.flatten().long(), _tokens_sha256(text), "tokens"
    content = _read_text(text) if isinstance(text, Path) else text
    if not content.strip():
        raise EvaluationError("the text is empty", hint="Give a text of some thousand words.")
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return encode_text(tokenizer, content), digest, "text"


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise EvaluationError(f"the text {path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"the text {path.name} is not UTF-8: {error.reason} at byte {error.start}", hint="Save it as UTF-8."
        ) from error


def _tokens_sha256(tokens: torch.Tensor) -> str:
    return hashlib.sha256(tokens.cpu().long().contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def _windows(tokens: torch.Tensor, context: int) -> torch.Tensor:
    """Cut tokens [n] into [windows, context + 1]; the last token of a window is the first one of the next."""
    if context < 1:
        raise EvaluationError(f"context is {context}; it must be at least 1")
    if len(tokens) <= context:
        raise EvaluationError(
            f"the text has {len(tokens)} tokens; one window of context {context} needs {context + 1}",
            hint="Give a longer text or a smaller context.",
        )
    return tokens.unfold(0, context + 1, context)


def _measure(
    model: torch.nn.Module,
    source: Source,
    windows: torch.Tensor,
    baseline: Source | None,
    digest: str,
    kind: str,
    started: float,
    progress: ProgressCallback | None,
) -> Evaluation:
    context = windows.shape[1] - 1
    models = [model] if baseline is None else [model, _open(baseline)]
    for each in models:
        _check_context(each, context)
    sums = _sum_windows(models, windows, progress or (lambda _: None))
    count = windows.shape[0] * context
    if not math.isfinite(sums.nll):
        raise EvaluationError(
            "the model's log-likelihood is not finite", hint="Its weights or logits hold NaN or infinities."
        )
    return Evaluation(
        perplexity=_perplexity(sums.nll / count),
        tokens=count,
        context=context,
        text_sha256=digest,
        protocol=PROTOCOL,
        source=kind,
        kl=None if baseline is None else sums.kl / count,
        top1_agreement=None if baseline is None else sums.agreed / count,
        baseline_perplexity=None if baseline is None else _perplexity(sums.baseline_nll / count),
        bits_per_weight=model_bits_per_weight(source),
        seconds=time.perf_counter() - started,
    )


def _perplexity(nll: float) -> float:
    return math.exp(min(nll, 700.0))


@dataclass
class _Sums:
    """Sums over predicted tokens, nats."""

    nll: float = 0.0
    baseline_nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0


@torch.inference_mode()
def _sum_windows(models: list[torch.nn.Module], windows: torch.Tensor, progress: Callable[[Progress], None]) -> _Sums:
    sums = _Sums()
    training = [model.training for model in models]
    for model in models:
        model.eval()
    for index, window in enumerate(windows):
        logits = [_logits(model, window[:-1]) for model in models]
        for rows in _chunks(logits[0]):
            _add(sums, [each[rows] for each in logits], window[1:][rows])
        progress(Progress("evaluating", index + 1, len(windows), "windows"))
    for model, was in zip(models, training, strict=True):
        model.train(was)
    return sums


def _logits(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the logits [context, vocabulary] after each of the tokens [context]."""
    device = device_of(model)
    output = model(inputs[None].to(device))
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if logits is None or logits.shape[:2] != (1, len(inputs)):
        raise EvaluationError(
            f"{type(model).__name__} gives no logits for each token: it has no language-model head",
            hint="Perplexity and KL need a causal language model; leave the evaluation out for others.",
        )
    return logits[0]


def _chunks(logits: torch.Tensor) -> Iterator[slice]:
    rows = max(LOGITS_AT_ONCE // logits.shape[1], 1)
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)


def _add(sums: _Sums, logits: list[torch.Tensor], targets: torch.Tensor) -> None:
    """Add some positions; logits [n, vocabulary] of the model and perhaps its baseline, targets [n]."""
    log_q = logits[0].float().log_softmax(-1)
    targets = targets.to(log_q.device)[:, None]
    sums.nll -= float(log_q.gather(1, targets).double().sum())
    if len(logits) == 1:
        return
    log_p = logits[1].to(log_q.device).float().log_softmax(-1)
    if log_p.shape != log_q.shape:
        raise EvaluationError(
            f"the model has {log_q.shape[1]} logits and its baseline {log_p.shape[1]}",
            hint="Compare with its own original.",
        )
    sums.baseline_nll -= float(log_p.gather(1, targets).double().sum())
    sums.agreed += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
    log_q.sub_(log_p).mul_(log_p.exp_())
    sums.kl -= float(log_q.sum(-1).double().sum())


def _check_context(model: torch.nn.Module, context: int) -> None:
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(most, int) and context > most > 0:
        raise EvaluationError(
            f"context is {context}; the model takes at most {most} tokens", hint=f"Use --context {most}."
        )
