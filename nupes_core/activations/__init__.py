"""Coded inputs of layers: quantizers, and the observers that fit them to data."""

from __future__ import annotations

from nupes_core.activations.observer import ActivationObserver, observe
from nupes_core.activations.quantizer import (
    KINDS,
    ActivationQuantizer,
    Kind,
    dynamic_quantizer,
    from_tensors,
    token_dims,
)

__all__ = [
    "KINDS",
    "ActivationObserver",
    "ActivationQuantizer",
    "Kind",
    "dynamic_quantizer",
    "from_tensors",
    "observe",
    "token_dims",
]
