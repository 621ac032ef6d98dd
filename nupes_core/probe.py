"""A fingerprint of what a model computes: some of its outputs on fixed inputs, to compare across processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from nupes_core.errors import LoadCheckError
from nupes_core.inference import device_of
from nupes_core.layers import decode_weights
from nupes_core.loading import load

TOKENS = 32
VALUES = 512


@dataclass(frozen=True)
class Probe:
    """Outputs of one forward pass.

    Attributes:
        shape: of the whole output.
        values: up to 512 of its values at even distances, as float32.
        std: standard deviation of the whole output.
    """

    TOLERANCE: ClassVar[float] = 1e-3

    shape: tuple[int, ...]
    values: tuple[float, ...]
    std: float

    def difference(self, other: Probe) -> float:
        """Return the largest deviation of a value over the standard deviation; infinite for another shape."""
        if self.shape != other.shape:
            return float("inf")
        deviation = torch.tensor(self.values) - torch.tensor(other.values)
        return float(deviation.abs().max()) / max(self.std, 1e-12)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Build from `to_dict` output.

        Raises:
            LoadCheckError: it is something else.
        """
        try:
            return cls(tuple(map(int, data["shape"])), tuple(map(float, data["values"])), float(data["std"]))
        except (KeyError, TypeError, ValueError) as error:
            raise LoadCheckError(f"the expected outputs are broken: {error!r}") from error


@torch.inference_mode()
def probe(model: Any) -> Probe | None:
    """Run one forward pass on made-up inputs; None for a model whose inputs this does not know how to make up."""
    make = _INPUTS.get(getattr(model, "main_input_name", ""))
    inputs = make(model.config) if make else None
    if inputs is None:
        return None
    was = model.training
    device = device_of(model)
    output = model.eval()(**{name: value.to(device) for name, value in inputs.items()})
    model.train(was)
    found = next(value for value in output.values() if isinstance(value, torch.Tensor)).float().cpu()
    picked = found.flatten()[:: max(found.numel() // VALUES, 1)][:VALUES]
    return Probe(tuple(found.shape), tuple(picked.tolist()), float(found.std()))


def probe_folder(path: str | Path) -> Probe:
    """Return the outputs of a model folder in float32, every weight decoded.

    Raises:
        LoadCheckError: nothing is known of the model's inputs.
        UnsupportedArchitectureError: transformers does not know the model.
    """
    outputs = probe(decode_weights(load(path, dtype=torch.float32), torch.float32))
    if outputs is None:
        raise LoadCheckError("the model takes inputs that cannot be made up", hint="Check it without expected outputs.")
    return outputs


def read_probe(path: str | Path) -> Probe:
    """Read what `python -m nupes_core probe --json` printed.

    Raises:
        LoadCheckError: the file cannot be read or is something else.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise LoadCheckError(f"{Path(path).name} cannot be read: {error}") from error
    return Probe.from_dict(content)


def _token_inputs(config: Any) -> dict[str, torch.Tensor] | None:
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if not vocabulary:
        return None
    tokens = (torch.arange(TOKENS) * 7919 + 11)[None] % vocabulary
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return inputs | {"decoder_input_ids": tokens} if getattr(config, "is_encoder_decoder", False) else inputs


def _image_inputs(config: Any) -> dict[str, torch.Tensor] | None:
    size, channels = getattr(config, "image_size", 224), getattr(config, "num_channels", 3)
    if not isinstance(size, int) or not isinstance(channels, int):
        return None
    return {"pixel_values": torch.linspace(-1, 1, channels * size * size).sin().view(1, channels, size, size)}


_INPUTS: dict[str, Callable[[Any], dict[str, torch.Tensor] | None]] = {
    "input_ids": _token_inputs,
    "pixel_values": _image_inputs,
}
