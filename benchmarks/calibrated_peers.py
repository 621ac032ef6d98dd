"""Calibrated quantizers of other projects on a whole model: GPTQ and AWQ (llm-compressor), and AutoRound.

Each method maps (model folder, calibration tokens, bits, group) to `Calibrated`: dequantized float32 weights of the
linear layers of the blocks with the bits that storing them takes (codes of `bits` bits, a float16 scale and, unless
symmetric, an integer zero point of `bits` bits for each group). Scales are rounded to float16, as they are stored.

A method runs in a process of its own with one thread, since these libraries patch transformers. Results are kept in
.bench-cache under a key of model, tokens, method, bits, group and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CACHE = Path(__file__).resolve().parents[1] / ".bench-cache"
AUTOROUND_STEPS = 200
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Calibrated:
    """A model as a peer left it.

    Attributes:
        layers: by module name, the dequantized float32 weight and the bits that storing it takes.
        others: parameters the peer changed besides, by name (AWQ moves scales into norms), float32.
        seconds: wall time of quantizing with one thread, loading left out.
        processor_seconds: processor time of the same, which other programs on the machine disturb less.
    """

    layers: dict[str, tuple[torch.Tensor, int]]
    others: dict[str, torch.Tensor]
    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class Peer:
    """A calibrated method, the packages whose versions decide its result, and what it cannot take."""

    quantize: Callable[[Any, torch.Tensor, int, int], dict[str, tuple[torch.Tensor, torch.Tensor | None]]]
    packages: tuple[str, ...]
    widths_of: int = 1
    """Layers whose rows or columns are no multiple of this stay float; the peer is left out on such models."""


def stored_bits(weight: torch.Tensor, bits: int, groups: int, symmetric: bool) -> int:
    """Codes, a float16 scale for each group, and an integer zero point of `bits` bits unless symmetric."""
    return weight.numel() * bits + groups * (16 if symmetric else 16 + bits)


def decode(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, bits: int) -> torch.Tensor:
    """Decode again with the scale in float16; zero is in codes, [rows, groups] like scale, 0 in the middle if None."""
    rows, groups = scale.shape
    columns = weight.shape[1] // groups
    scale, steps = scale.float(), weight.float().reshape(rows, groups, columns)
    steps = (steps / scale[..., None]).round()
    low = -(2 ** (bits - 1)) if zero is None else -zero.float()[..., None]
    outside = ((steps < low) | (steps > low + 2**bits - 1)).any()
    if outside:
        raise ValueError(f"a weight decodes to a code outside {bits} bits; the scales do not belong to the weights")
    return (steps * scale.half().float()[..., None]).reshape(weight.shape)


def _rows_group(columns: int, group: int) -> int:
    """Return the group a row of so many weights takes where only divisors are accepted: the largest up to `group`."""
    return max(size for size in range(1, group + 1) if columns % size == 0)


def _linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def _loader(tokens: torch.Tensor, batch: int) -> Any:
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens.long()]
    return torch.utils.data.DataLoader(samples, batch_size=batch, shuffle=False)


def _scheme(model: torch.nn.Module, bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    """Return llm-compressor's config groups: rows of each length get the group that divides them."""
    lengths: dict[int, list[str]] = {}
    for name, layer in _linear_layers(model).items():
        lengths.setdefault(_rows_group(layer.in_features, group), []).append(name)
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group"}
    return {
        f"group_{size}": {"targets": names, "weights": {**weights, "group_size": size}}
        for size, names in lengths.items()
    }


def _oneshot(model: Any, tokens: torch.Tensor, recipe: list[Any]) -> None:
    from llmcompressor import oneshot

    oneshot(
        model=model,
        dataset=_loader(tokens, 8),
        recipe=recipe,
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
        tokenizer=model.config.name_or_path,
    )


def _compressed_qparams(model: torch.nn.Module, bits: int, symmetric: bool) -> dict[str, Any]:
    # its codes are signed, and so are its zero points
    return {
        name: (layer.weight_scale, None if symmetric else layer.weight_zero_point + 2 ** (bits - 1))
        for name, layer in _linear_layers(model).items()
    }


def gptq(model: Any, tokens: torch.Tensor, bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    """GPTQ of llm-compressor with its defaults: static activation order, block 128, dampening 1 %."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    _oneshot(model, tokens, [GPTQModifier(config_groups=_scheme(model, bits, group, symmetric), ignore=["lm_head"])])
    return _compressed_qparams(model, bits, symmetric)


def awq(model: Any, tokens: torch.Tensor, bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    """AWQ of llm-compressor with its defaults (20 grid points, duo scaling), rounding to nearest after it."""
    from compressed_tensors.quantization import fake_quantize
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        # it pins memory for copies to an accelerator, which fails where there is none
        IntermediatesCache.pin_memory = lambda *_: None
    scheme = _scheme(model, bits, group, symmetric)
    _oneshot(model, tokens, [AWQModifier(), QuantizationModifier(config_groups=scheme, ignore=["lm_head"])])
    with torch.no_grad():
        for layer in _linear_layers(model).values():
            # its weights stay unrounded until they are packed
            args = layer.quantization_scheme.weights
            layer.weight.copy_(fake_quantize(layer.weight, layer.weight_scale, layer.weight_zero_point, args))
    return _compressed_qparams(model, bits, symmetric)


def autoround(model: Any, tokens: torch.Tensor, bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    """AutoRound with 200 steps, its default, and batch 8; its defaults for a CPU otherwise."""
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    rounding = AutoRound(
        model,
        tokenizer=AutoTokenizer.from_pretrained(model.config.name_or_path),
        bits=bits,
        group_size=group,
        sym=symmetric,
        dataset=_loader(tokens, 1),
        iters=AUTOROUND_STEPS,
        seqlen=tokens.shape[1],
        nsamples=len(tokens),
        batch_size=8,
        device_map="cpu",
    )
    quantized, _ = rounding.quantize()
    return {name: _rounded_qparams(layer, symmetric) for name, layer in _linear_layers(quantized).items()}


def _rounded_qparams(layer: Any, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    scale = layer.scale.reshape(layer.weight.shape[0], -1)
    if symmetric:
        return scale, None
    return scale, torch.as_tensor(layer.zp).expand(layer.scale.shape).reshape(scale.shape)


_COMPRESSOR = ("llmcompressor", "compressed-tensors")

CALIBRATED_PEERS: dict[str, Peer] = {
    f"{name}{', symmetric' if symmetric else ''}": Peer(partial(method, symmetric=symmetric), packages, widths)
    for name, method, packages, widths in (
        ("GPTQ", gptq, _COMPRESSOR, 1),
        ("AWQ", awq, _COMPRESSOR, 1),
        ("AutoRound", autoround, ("auto-round",), 32),
    )
    for symmetric in (False, True)
}


def calibrated(
    method: str, folder: Path, tokens: torch.Tensor, bits: int, group: int, fresh: bool = False
) -> Calibrated:
    """Return a peer's result from the cache, or run the peer in a process of its own and keep what it found.

    Args:
        method: a name in `CALIBRATED_PEERS`.
        folder: float model.
        tokens: calibration tokens [samples, length].
        bits: code width.
        group: weights that share a scale.
        fresh: run again even if the cache has a result.

    Raises:
        subprocess.CalledProcessError: the peer failed; its output was printed.
    """
    CACHE.mkdir(exist_ok=True)
    path = CACHE / f"{_key(method, folder, tokens, bits, group)}.safetensors"
    if fresh or not path.exists():
        given = path.with_suffix(".tokens")
        save_file({"tokens": tokens.contiguous()}, given)
        command = [sys.executable, __file__, method, str(folder), str(given), str(bits), str(group), str(path)]
        log = path.with_suffix(".log")
        with log.open("w") as out:
            done = subprocess.run(command, check=False, env={**os.environ, **_THREADS}, stdout=out, stderr=out)
        if done.returncode:
            print(log.read_text()[-4000:], file=sys.stderr)
            done.check_returncode()
        given.unlink()
    return _read(path)


def fits(method: str, shapes: list[tuple[int, int]]) -> bool:
    """Whether a peer quantizes all layers of these shapes."""
    widths = CALIBRATED_PEERS[method].widths_of
    return all(side % widths == 0 for shape in shapes for side in shape)


def _key(method: str, folder: Path, tokens: torch.Tensor, bits: int, group: int) -> str:
    packages = ("torch", "transformers", *CALIBRATED_PEERS[method].packages)
    weights = sorted(folder.glob("*.safetensors"))
    found = hashlib.sha256(json.dumps([f"{name} {version(name)}" for name in packages]).encode())
    for path in weights:
        found.update(path.read_bytes())
    found.update(tokens.long().numpy().tobytes())
    name = method.lower().replace(", ", "-")
    return f"{folder.name}-{name}-{bits}bit-g{group}-{found.hexdigest()[:12]}"


def _read(path: Path) -> Calibrated:
    tensors = load_file(path)
    notes = json.loads(path.with_suffix(".json").read_text())
    layers = {name: (tensors[f"{name}.weight"], bits) for name, bits in notes["stored_bits"].items()}
    others = {name: t for name, t in tensors.items() if name.removesuffix(".weight") not in layers}
    return Calibrated(layers, others, notes["seconds"], notes["processor_seconds"])


def _processor_seconds() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def run(method: str, folder: Path, tokens: torch.Tensor, bits: int, group: int, out: Path) -> None:
    """Quantize in this process and write `out` and its .json."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    load = partial(AutoModelForCausalLM.from_pretrained, folder, dtype=torch.float32)
    before, model = dict(load().named_parameters()), load()
    wall, processor = time.perf_counter(), _processor_seconds()
    qparams = CALIBRATED_PEERS[method].quantize(model, tokens, bits, group)
    notes = {"seconds": time.perf_counter() - wall, "processor_seconds": _processor_seconds() - processor}
    weights = {name: layer.weight.detach() for name, layer in _linear_layers(model).items()}
    tensors, sizes = {}, {}
    for name, (scale, zero) in qparams.items():
        tensors[f"{name}.weight"] = decode(weights[name], scale.detach(), zero, bits).contiguous()
        sizes[name] = stored_bits(weights[name], bits, scale.numel(), zero is None)
    tensors |= _changed(before, model, set(qparams))
    out.with_suffix(".json").write_text(json.dumps({**notes, "stored_bits": sizes}, indent=1))
    save_file(tensors, out)


def _changed(before: dict[str, torch.Tensor], model: torch.nn.Module, layers: set[str]) -> dict[str, torch.Tensor]:
    """Return the parameters besides `layers` that are no longer what they were, bfloat16 rounding aside."""
    now = {name: p.detach().float() for name, p in model.named_parameters() if name in before}
    return {
        name: value.contiguous()
        for name, value in now.items()
        if name.removesuffix(".weight") not in layers and not torch.allclose(value, before[name], rtol=2**-8)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one calibrated peer; benchmarks/quality.py calls this.")
    parser.add_argument("method", choices=CALIBRATED_PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("bits", type=int)
    parser.add_argument("group", type=int)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    run(given.method, given.folder, load_file(given.tokens)["tokens"], given.bits, given.group, given.out)


if __name__ == "__main__":
    main()
