"""What running the model on calibration data costs: memory, seconds and disk, from tensor names and shapes. Torch-free.

Blocks are run one at a time in float32, so that memory is that of the largest block with its training state, and of
the hidden states of all samples. Which blocks there are is read from the names: `PREFIX.N.`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nupes_core.config import QuantizationConfig
from nupes_core.planned import PlannedTensor
from nupes_core.selection import ModelFacts

FLOAT = 4
"""Bytes of a float32."""

DATA_BYTES = 220_000_000
"""Code of transformers, samples, and what the allocator keeps. With it a plan says .92 GiB for booklm (3 bits, group
64, 128 x 256 tokens), of which .91 were measured, and 3.0 GiB for 1.1 billion parameters of TinyLlama's shape (4 bits,
group 64, 8 x 64 tokens), where 2.7 (first block) and 2.8 (second) were measured."""

CANDIDATE_BYTES = 5
"""Of each weight for each start that is tried: a latent code (float32) and a code (uint8)."""

CANDIDATES = 3
"""Starts that are held at once: the best so far, the last, and the one that is made of it."""

DESCENT_BYTES = 48
"""Of each weight of the matrix that is worked on: error, target, gradient, copies, int64 positions of levels."""

TRAINED_BYTES = CANDIDATE_BYTES + 44
"""Of each weight in training: the codes it started from, gradient, two Adam moments, the best copy (twice for a
moment), and the decoded copy with what its backward pass keeps."""

GROUP_BYTES = 48
"""Of each group: log2 scale, index, sign, exponent choice, and their training state."""

FACTOR_BYTES = 5 * 8
"""Of each entry of a matrix of second moments while it is inverted in float64."""

HIDDEN_COPIES = 4
"""Hidden states of all samples held at once: the first input, both streams before a block, the target behind it."""

KEPT_PER_OUTPUT = 3
"""Float32 values kept for each output of a layer and token of a batch, until the backward pass is through."""

FLOPS_PER_SECOND = 35e9
"""One core, float32: matrix products and all that is around them. Measured on booklm: 136 s of processor time for
5.0e12 operations in streams, moments, checks and training."""

SEARCH_SECONDS = 5e-7
"""Of each weight: searched without importance, and with it. Measured on booklm: 2.5 s for 4.8 million weights."""

WEIGHT_SECONDS, COLUMN_SECONDS = 1e-6, 1.2e-3
"""Of each weight and of each column of a matrix in error feedback and coordinate descent, whose products come on top.
Measured on booklm: 24 s for 4.8 million weights in 13,440 columns."""

DESCENT_PRODUCTS = 25
"""Operations for each weight and column: updates by error feedback, and products with second moments by the descent."""

_BLOCK = re.compile(r"(?:^|\.)\d+\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.")


@dataclass(frozen=True)
class DataCost:
    """Estimates for one core.

    Attributes:
        memory_bytes: on top of what any process of ours takes.
        seconds: of running and learning; the writers' own search, which finds everything done, is not among them.
        disk_bytes: committed blocks.
    """

    memory_bytes: int
    seconds: float
    disk_bytes: int


@dataclass(frozen=True)
class _Block:
    """The tensors of one block."""

    tensors: tuple[PlannedTensor, ...]

    @property
    def params(self) -> int:
        return sum(tensor.params for tensor in self.tensors)

    @property
    def learnt(self) -> tuple[PlannedTensor, ...]:
        """Plain matrices that are quantized; fused experts are searched without data."""
        return tuple(t for t in self.tensors if t.coding is not None and t.coding.view.slices is None)

    @property
    def learnt_params(self) -> int:
        return sum(tensor.params for tensor in self.learnt)

    @property
    def widths(self) -> list[int]:
        """Columns of each learnt matrix."""
        return [tensor.coding.view.cols for tensor in self.learnt if tensor.coding is not None]

    @property
    def outputs(self) -> int:
        return sum(tensor.coding.view.rows for tensor in self.learnt if tensor.coding is not None)

    @property
    def groups(self) -> int:
        return sum(t.coding.format.rows * t.coding.format.groups for t in self.learnt if t.coding is not None)


def data_cost(tensors: Sequence[PlannedTensor], facts: ModelFacts, config: QuantizationConfig) -> DataCost | None:
    """Return what calibration costs, or None for a run without data or without blocks.

    Args:
        tensors: of the whole checkpoint.
        facts: of the model.
        config: of the run. Given data is assumed; a model that writes its own text is loaded whole on top, in float32.
    """
    blocks = _main_blocks(tensors) if config.needs_calibration else []
    if not blocks:
        return None
    inside = {tensor.name for block in blocks for tensor in block.tensors}
    outside = [t for t in tensors if t.name not in inside and not _HEAD.search(t.name)]
    reading = sum(FLOAT * t.params for t in outside) + max((t.bytes_before for t in outside), default=0)
    hidden = max(facts.hidden_sizes, default=max(blocks[0].widths))
    states = config.calibration.samples * config.calibration.length * hidden * FLOAT
    largest = max(_block_bytes(block, config) for block in blocks)
    return DataCost(
        memory_bytes=DATA_BYTES + max(reading + states, HIDDEN_COPIES * states + largest),
        seconds=sum(_block_seconds(block, config) for block in blocks),
        disk_bytes=sum(tensor.bytes_after for block in blocks for tensor in block.learnt),
    )


def _main_blocks(tensors: Sequence[PlannedTensor]) -> list[_Block]:
    """Return the blocks of the numbered list that holds most of the parameters to be quantized."""
    lists: dict[str, dict[str, list[PlannedTensor]]] = defaultdict(lambda: defaultdict(list))
    for tensor in tensors:
        found = _BLOCK.search(tensor.name)
        if found:
            lists[tensor.name[: found.start()]][tensor.name[: found.end()]].append(tensor)
    candidates = [[_Block(tuple(held)) for held in blocks.values()] for blocks in lists.values()]
    best = max(candidates, key=lambda blocks: sum(block.learnt_params for block in blocks), default=[])
    return [block for block in best if block.learnt]


def _block_bytes(block: _Block, config: QuantizationConfig) -> int:
    """Return the most a block takes: while its second moments are inverted, or while it is trained."""
    batch = config.training.batch_size * config.calibration.length
    floats, groups = FLOAT * block.params, GROUP_BYTES * block.groups
    if config.optimize == "data_free":
        return floats + CANDIDATE_BYTES * block.learnt_params + groups + FLOAT * batch * block.outputs
    factors = FLOAT * sum(width**2 for width in (*block.widths, *set(block.widths)))
    inverting = CANDIDATE_BYTES * block.learnt_params + FACTOR_BYTES * max(block.widths) ** 2 + factors
    descending = DESCENT_BYTES * max(tensor.params for tensor in block.learnt) * config.training.error_feedback
    starting = CANDIDATES * CANDIDATE_BYTES * block.learnt_params + factors + descending
    training = TRAINED_BYTES * block.learnt_params + FLOAT * KEPT_PER_OUTPUT * batch * block.outputs
    return floats + groups + max(inverting, starting, training)


def _block_seconds(block: _Block, config: QuantizationConfig) -> float:
    if config.optimize == "data_free":
        return _block_flops(block, config) / FLOPS_PER_SECOND
    seconds = SEARCH_SECONDS * block.learnt_params + _block_flops(block, config) / FLOPS_PER_SECOND
    if config.training.error_feedback:
        seconds += WEIGHT_SECONDS * block.learnt_params + COLUMN_SECONDS * sum(block.widths)
    return seconds


def _block_flops(block: _Block, config: QuantizationConfig) -> float:
    """Return the operations of the streams, of second moments and error feedback, and of training."""
    training, calibration = config.training, config.calibration
    tokens = calibration.samples * calibration.length
    if config.optimize == "data_free":
        return 2.0 * 3 * tokens * block.params
    learns = training.learn_codes or training.learn_scales or training.learn_exponent
    trained = training.steps * training.batch_size * calibration.length * (learns + training.tweak_norms)
    runs = 2.0 * (4 * tokens + 3 * trained) * block.params
    moments = sum(2.0 * tokens * width**2 + 8.0 * width**3 for width in block.widths)
    products = sum(DESCENT_PRODUCTS * t.params * width for t, width in zip(block.learnt, block.widths, strict=True))
    return runs + moments + products * training.error_feedback
