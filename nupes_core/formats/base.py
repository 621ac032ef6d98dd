"""What a format has to say, so that sizes are known before the work and weights are written one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nupes_core.config import QuantizationConfig
from nupes_core.header import TensorSpec
from nupes_core.planned import PlannedTensor
from nupes_core.recipe import AS_ASKED, Recipe
from nupes_core.selection import ModelFacts

if TYPE_CHECKING:
    import torch

    from nupes_core.quantizer.weight import QuantizedWeight

Pieces = Iterator[tuple[str, "torch.Tensor"]]


@dataclass(frozen=True)
class Format:
    """One way to write a quantized checkpoint.

    Attributes:
        name: as users ask for it.
        specs: stored tensors that a quantized checkpoint tensor becomes; from names and shapes alone.
        pieces: (tensor, matrix, its decoded form [rows, cols] in the original dtype, what is stored of the input
            quantizer by its names below the layer) -> stored names and content of this matrix; the content of matrix
            `i` of fused experts goes `i` times its own size into the stored tensor.
        config: (sanitized source config, tensors, settings of the job) -> `config.json` of the artifact.
        snippet: a few lines of Python that load the artifact; `{path}` is filled in.
        recipe: how the weights are quantized that it holds.
        weight_bytes: bytes that the weights of a quantized tensor take in it.
        check: (`config.json` of the model, what a job asks for) raises `UnsupportedArchitectureError` for models it
            cannot hold, `InvalidConfigError` for settings.
        check_folder: (folder of the model) raises `UnsupportedArchitectureError` or `UnsafeFileError` where its
            tokenizer stands in the way.
        memory_bytes: what putting it together from all tensors, and loading it, take on top of the process.
        holds_input_codes: whether its layers code their inputs where a job asks for that; others compute in float.
        most_bytes: largest size of its weight files together; None without a limit.
        own_bytes: bytes of all tensors in a file; None: those of the safetensors files that `specs` describe.
        adds: what its file has besides tensors, in words, which nothing counts before it is written.
    """

    name: str
    specs: Callable[[PlannedTensor], tuple[TensorSpec, ...]]
    pieces: Callable[[PlannedTensor, QuantizedWeight, torch.Tensor, Mapping[str, torch.Tensor]], Pieces]
    config: Callable[[Mapping[str, Any], tuple[PlannedTensor, ...], Mapping[str, Any]], dict[str, Any]]
    snippet: str
    recipe: Recipe = AS_ASKED
    weight_bytes: Callable[[PlannedTensor], int] = lambda tensor: tensor.bytes_after
    check: Callable[[Mapping[str, Any], QuantizationConfig], object] = lambda model_config, config: None
    check_folder: Callable[[Path], object] = lambda folder: None
    memory_bytes: Callable[[Sequence[PlannedTensor]], int] = lambda tensors: 0
    holds_input_codes: bool = False
    most_bytes: int | None = None
    own_bytes: Callable[[Sequence[PlannedTensor], ModelFacts], int] | None = None
    adds: str | None = None
