"""The power grid: level tables of the three layouts (method §1) and the codec between weights and codes.

Power functions are the only continuous automorphisms of (R₊*, ×) (PowerQuant, arXiv 2301.09858), so decoding is a table
of 2^bits levels times the scale of the group, whatever the exponent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

MIN_EXPONENT = 0.3
EXPONENT_STEP = 1 / 200
MAX_EXPONENT_CODE = 255

IQ4_NL_INTEGERS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Code book of the block type `IQ4_NL` of llama.cpp."""


def exponent_code(a: float) -> int:
    """Return the stored uint8 of an exponent, the nearest of 0.300, 0.305 … 1.575."""
    return min(max(round((a - MIN_EXPONENT) / EXPONENT_STEP), 0), MAX_EXPONENT_CODE)


def exponent_value(code: int) -> float:
    """Return the exponent that a stored uint8 stands for."""
    return MIN_EXPONENT + code * EXPONENT_STEP


def levels(layout: str, bits: int, a: torch.Tensor) -> torch.Tensor:
    """Return the ascending level tables of a layout.

    Args:
        layout: `signed`: sign(k)·(|k|/2^(b−1))^(1/a), k = −2^(b−1) … 2^(b−1)−1, meant for a signed scale; `midrise`:
            ±((i+½)/(2^(b−1)−½))^(1/a), without a zero; `paper`: sign(q)·(|q|/M)^(1/a), M = 2^(b−1)−1; its last code,
            which the paper leaves unused, repeats the level 1; `IQ4_NL`: 16 levels of llama.cpp, closer around 0.
        bits: code width b.
        a: [...] exponents.

    Returns:
        float32 [..., 2^bits]; the largest magnitude is 1.
    """
    base = _BASES[layout](bits).to(a.device)
    table = base.sign() * base.abs() ** (1 / a.double().unsqueeze(-1))
    return table.float()


def _signed(bits: int) -> torch.Tensor:
    half = 1 << (bits - 1)
    return torch.arange(-half, half, dtype=torch.float64) / half


def _midrise(bits: int) -> torch.Tensor:
    half = 1 << (bits - 1)
    return (torch.arange(-half, half, dtype=torch.float64) + 0.5) / (half - 0.5)


def _paper(bits: int) -> torch.Tensor:
    M = (1 << (bits - 1)) - 1
    return torch.arange(-M, M + 2, dtype=torch.float64).clamp(max=M) / M


def _iq4_nl(bits: int) -> torch.Tensor:
    return torch.tensor(IQ4_NL_INTEGERS, dtype=torch.float64) / -IQ4_NL_INTEGERS[0]


_BASES: dict[str, Callable[[int], torch.Tensor]] = {
    "signed": _signed,
    "midrise": _midrise,
    "paper": _paper,
    "IQ4_NL": _iq4_nl,
}


def integer_levels(layout: str, bits: int) -> tuple[torch.Tensor, int]:
    """Return float32 [2^bits] whole numbers, and what they are divided by to be the levels of exponent 1.

    Of the layouts that engines store as integers times a scale: `signed`, `IQ4_NL`.
    """
    if layout == "IQ4_NL":
        return torch.tensor(IQ4_NL_INTEGERS, dtype=torch.float32), -IQ4_NL_INTEGERS[0]
    half = 1 << (bits - 1)
    return torch.arange(-half, half, dtype=torch.float32), half


def level_lookup(layout: str, bits: int, device: torch.device) -> torch.Tensor:
    """Return float32 [256, 2^bits]: the level table of every stored exponent."""
    codes = torch.arange(MAX_EXPONENT_CODE + 1, device=device, dtype=torch.float64)
    return levels(layout, bits, MIN_EXPONENT + codes * EXPONENT_STEP)


def encode(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the index of the nearest level: nearest in the weight domain is 1–5 % better than rounding powers.

    Args:
        x: [n, g] weights over their scale.
        table: [n, 2^bits] ascending levels.

    Returns:
        int64 [n, g].
    """
    return torch.searchsorted(((table[:, 1:] + table[:, :-1]) / 2).contiguous(), x.contiguous())
