"""What measuring a model takes in memory, from tensor names and shapes. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nupes_core.planned import PlannedTensor
from nupes_core.selection import ModelFacts

FLOAT = 4
"""Bytes of a float32: both models are run in it."""

MODELS = 2
"""The float model and the quantized one, side by side."""

CODE_BYTES = 80_000_000
"""Code of transformers, and what the allocator keeps."""

SAMPLED_TOKENS = 8192
"""Of all sequences that the float model writes at once, where the user gave no text."""

COMPARED_LOGITS = 1 << 24
"""Logits compared at once, in `COPIES` float32 copies, whatever context and vocabulary are."""

COPIES = 4

_KEYS_AND_VALUES = re.compile(r"(^|[._])(k|v|key|value)(_proj)?\.weight$")
_FUSED = re.compile(r"(^|[._])(qkv|qkv_proj|c_attn|query_key_value)\.weight$")


def evaluation_bytes(tensors: Sequence[PlannedTensor], facts: ModelFacts, context: int) -> int:
    """Return what evaluating takes on top of what any process of ours takes.

    Args:
        tensors: of the whole checkpoint.
        facts: of the model.
        context: tokens of a window.
    """
    models = MODELS * FLOAT * sum(tensor.params for tensor in tensors)
    logits = context * _vocabulary(tensors, facts)
    comparing = FLOAT * (MODELS * logits + COPIES * min(logits, COMPARED_LOGITS))
    writing = FLOAT * max(context, SAMPLED_TOKENS) * sum(_cached(tensor) for tensor in tensors)
    return CODE_BYTES + models + max(comparing, writing)


def _vocabulary(tensors: Sequence[PlannedTensor], facts: ModelFacts) -> int:
    """Return the rows of the largest table."""
    return max((t.shape[0] for t in tensors if len(t.shape) == 2 and t.shape[0] in facts.table_sizes), default=0)


def _cached(tensor: PlannedTensor) -> int:
    """Return the keys or values of one token that a projection makes; fused ones count without their queries."""
    if len(tensor.shape) != 2:
        return 0
    if _FUSED.search(tensor.name):
        return 2 * max(tensor.shape) // 3
    return tensor.shape[0] if _KEYS_AND_VALUES.search(tensor.name) else 0
