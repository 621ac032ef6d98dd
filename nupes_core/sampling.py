"""Text that the float model writes itself: fidelity then needs no data set (method §8)."""

from __future__ import annotations

from typing import Any

import torch

from nupes_core.errors import EvaluationError
from nupes_core.inference import device_of

SEQUENCES_AT_ONCE = 32


def beginning_of_text(tokenizer: Any) -> int | None:
    """Return the BOS id where the tokenizer puts one in front of a text, else None."""
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = tokenizer("a", verbose=False)["input_ids"]
    return bos if bos is not None and ids[:1] == [bos] else None


def encode_text(tokenizer: Any, *pieces: str) -> torch.Tensor:
    """Tokenize a text piece by piece, BOS in front of the first where the tokenizer puts one; int64 [n]."""
    bos = beginning_of_text(tokenizer)
    parts = [torch.tensor([] if bos is None else [bos], dtype=torch.int64)]
    for piece in pieces:
        ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        parts.append(torch.tensor(ids, dtype=torch.int64))
    return torch.cat(parts)


@torch.inference_mode()
def sample_tokens(model: Any, tokenizer: Any, n_tokens: int, context: int, seed: int) -> torch.Tensor:
    """Sample windows from the model's own distribution (temperature 1), each from its first token on.

    A window starts with BOS (EOS where there is none) or, without a tokenizer, with a random token.

    Returns:
        int64 [⌈n_tokens / context⌉, context + 1] on the CPU; the same for the same model, seed and machine.

    Raises:
        EvaluationError: the model gives no logits.
    """
    was = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    count = max(-(-n_tokens // context), 1)
    parts = [
        _sample(
            model, _first_tokens(model, tokenizer, min(SEQUENCES_AT_ONCE, count - start), generator), context, generator
        )
        for start in range(0, count, SEQUENCES_AT_ONCE)
    ]
    model.train(was)
    return torch.cat(parts)


def _first_tokens(model: Any, tokenizer: Any, count: int, generator: torch.Generator) -> torch.Tensor:
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return torch.full((count, 1), int(token))
    return torch.randint(_vocabulary(model), (count, 1), generator=generator)


def _vocabulary(model: Any) -> int:
    config = getattr(model, "config", None)
    size = getattr(config.get_text_config(), "vocab_size", None) if config is not None else None
    if size is None:
        raise EvaluationError("the model says nothing of its vocabulary", hint="Pass its tokenizer, or a text.")
    return int(size)


def _sample(model: Any, tokens: torch.Tensor, context: int, generator: torch.Generator) -> torch.Tensor:
    """Continue tokens [n, 1] to [n, context + 1], with the model's cache where it returns one."""
    device = device_of(model)
    cache: Any = None
    for _ in range(context):
        inputs = tokens if cache is None else tokens[:, -1:]
        output = model(inputs.to(device), past_key_values=cache, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        if getattr(output, "logits", None) is None:
            raise EvaluationError(
                f"{type(model).__name__} gives no logits", hint="Fidelity needs a causal language model."
            )
        probabilities = output.logits[:, -1].float().softmax(-1).cpu()
        tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], 1)
    return tokens
