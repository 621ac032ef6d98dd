"""Cyclic coordinate descent on the layer-wise squared error, from where error feedback ends (method §3, step 1).

Error feedback decides each column once and never looks back. Here every code is decided again, given all the others:
the best real value of a weight is ŵ + (E·H)_j / H_jj, and the nearest level to it lowers tr(E·H·Eᵀ) or leaves it (as in
QuantEase, arXiv 2309.01885, which descends on uniform grids). Scales follow group by group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nupes_core.datadriven.feedback import BLOCK_COLUMNS, DAMPING, Compensated
from nupes_core.datadriven.latent import Coded
from nupes_core.quantizer.grid import level_lookup
from nupes_core.quantizer.scales import index_scales

PASSES = 2
"""Rounds over all columns; many more bring 2 % of the error of the block."""

SCALE_OFFSETS = (-2, -1, 1, 2)
"""Steps of the log2 scale that are tried for each group."""


def descend(w: torch.Tensor, start: Coded, H: torch.Tensor, passes: int = PASSES) -> Compensated:
    """Lower tr((W − Ŵ)·H·(W − Ŵ)ᵀ) by changing codes and scales one by one.

    Args:
        w: float32 [rows, cols].
        start: coded matrix.
        H: float32 [cols, cols], second moments of the inputs.
        passes: rounds over all columns.

    Returns:
        The coded matrix, and the real values [rows, cols] that its codes were rounded from.
    """
    H = H + DAMPING * float(H.diagonal().mean()) * torch.eye(len(H), device=H.device)
    state = _Descent(w, start, H)
    for _ in range(passes):
        state.descend_codes()
        state.descend_scales()
    state.descend_codes()
    return Compensated(state.coded(), state.target)


@dataclass
class _Descent:
    """Codes and scales on the way.

    Attributes:
        error: W − Ŵ [rows, cols].
        target: the real values that codes were rounded from last.
    """

    w: torch.Tensor
    start: Coded
    H: torch.Tensor

    def __post_init__(self) -> None:
        fmt = self.format = self.start.format
        lookup = level_lookup(fmt.layout, fmt.bits, self.w.device)
        blocks = torch.arange(fmt.rows, device=self.w.device) // fmt.block_rows
        exponents = self.start.exponents[blocks].long().gather(1, self.start.choice)
        self.tables = lookup[exponents]  # [rows, groups, levels]
        self.codes, self.index = self.start.codes.clone(), self.start.index.clone()
        self.scale = self.start.scales()
        self.error = self.w - self.start.pack().dequantize()
        self.target = self.w.clone()

    def coded(self) -> Coded:
        """Return the coded matrix."""
        return replace(self.start, codes=self.codes, index=self.index)

    def descend_codes(self) -> None:
        """Decide each code again; what the error of a block of columns changes elsewhere is applied at once."""
        fmt = self.format
        G = self.error @ self.H
        for first in range(0, fmt.cols, BLOCK_COLUMNS):
            last = min(first + BLOCK_COLUMNS, fmt.cols)
            before = self.error[:, first:last].clone()
            near = G[:, first:last].contiguous()
            for j in range(first, last):
                moved = self._decide(j, near[:, j - first])
                near.addr_(moved, self.H[j, first:last], alpha=-1)
            G[:, last:].addmm_(before - self.error[:, first:last], self.H[first:last, last:], alpha=-1)

    def descend_scales(self) -> None:
        """Move the scale of each group by some steps where that lowers the error."""
        fmt = self.format
        last_index = (1 << fmt.log_bits) - 1
        G = self.error @ self.H
        for group in range(fmt.groups):
            columns = slice(group * fmt.group_size, min((group + 1) * fmt.group_size, fmt.cols))
            level = self.tables[:, group].gather(1, self.codes[:, columns].long())
            curvature = ((level @ self.H[columns, columns]) * level).sum(1)
            slope = (G[:, columns] * level).sum(1)
            best_gain, best_index = torch.zeros_like(slope), self.index[:, group].clone()
            best_scale = self.scale[:, group].clone()
            for offset in SCALE_OFFSETS:
                index = torch.where(best_index > 0, (self.index[:, group] + offset).clamp(1, last_index), 0)
                scale = self._scales(index, group)
                step = scale - self.scale[:, group]
                gain = step * (2 * slope - step * curvature)
                better = gain > best_gain
                best_gain = torch.where(better, gain, best_gain)
                best_index = torch.where(better, index, best_index)
                best_scale = torch.where(better, scale, best_scale)
            moved = (best_scale - self.scale[:, group]).unsqueeze(1) * level
            self.error[:, columns] -= moved
            G.addmm_(moved, self.H[columns], alpha=-1)
            self.index[:, group], self.scale[:, group] = best_index, best_scale

    def _decide(self, j: int, gradient: torch.Tensor) -> torch.Tensor:
        """Choose the level of column j again and return by how much the decoded column moved [rows]."""
        group = j // self.format.group_size
        scale, tables = self.scale[:, group], self.tables[:, group]
        decoded = self.w[:, j] - self.error[:, j]
        wanted = decoded + gradient / self.H[j, j]
        x = torch.where(scale != 0, wanted / scale, 0.0).unsqueeze(1)
        code = torch.searchsorted((tables[:, 1:] + tables[:, :-1]) / 2, x)
        found = tables.gather(1, code).squeeze(1) * scale
        self.codes[:, j], self.target[:, j] = code.squeeze(1).to(torch.uint8), wanted
        self.error[:, j] = self.w[:, j] - found
        return found - decoded

    def _scales(self, index: torch.Tensor, group: int) -> torch.Tensor:
        found = index_scales(index.unsqueeze(1), self.start.row_bases(), self.format).squeeze(1)
        return self.start.sign[:, group] * found
