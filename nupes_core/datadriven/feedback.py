"""Column-wise error feedback where rounding is to the nearest level of the power table (method §3, step 1).

GPTQ's recursion (arXiv 2210.17323, algorithm 1): the error of each column is spread over the columns still to come by
the Cholesky factor of the inverse Hessian. Scales, signs and exponent choices of a group are searched again when the
recursion reaches it, on the compensated weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nupes_core.datadriven.latent import Coded
from nupes_core.quantizer.grid import level_lookup
from nupes_core.quantizer.scales import index_scales
from nupes_core.quantizer.search import engine

DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it, as in GPTQ."""

BLOCK_COLUMNS = 128
"""Columns after which the rest of the matrix is updated at once."""


@dataclass(frozen=True)
class Compensated:
    """Result of the recursion: the coded matrix, and the compensated weights [rows, cols] that were rounded to it."""

    coded: Coded
    target: torch.Tensor


def inverse_factor(H: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Return U [cols, cols], upper triangular, with UᵀU = (H + damping)⁻¹.

    Args:
        H: [cols, cols], second moments of the inputs; columns that never saw an input count as uncorrelated.
        damping: share of the mean diagonal; raised tenfold until the factorization succeeds.
    """
    H = H.to(torch.float64, copy=True)
    diagonal = H.diagonal()
    diagonal[diagonal <= 0] = diagonal.mean().clamp_min(1e-12)
    mean, applied = float(diagonal.mean()), 0.0
    while True:
        diagonal += (damping - applied) * mean
        applied = damping
        lower, failed = torch.linalg.cholesky_ex(H)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                factor: torch.Tensor = upper.float()
                return factor
        damping *= 10


def feed_back(w: torch.Tensor, start: Coded, U: torch.Tensor) -> Compensated:
    """Quantize column by column, each column's error spread over the later ones.

    Args:
        w: float32 [rows, cols].
        start: gives format, bases and exponents; its scales are replaced.
        U: from `inverse_factor`.
    """
    run = _Recursion(w, start, U)
    for first in range(0, start.format.cols, run.step):
        run.block(range(first, min(first + run.step, start.format.cols)))
    return run.result()


class _Recursion:
    """State of the recursion over the columns."""

    def __init__(self, w: torch.Tensor, start: Coded, U: torch.Tensor) -> None:
        fmt = start.format
        self.format, self.start, self.U = fmt, start, U
        self.w = w.clone()
        self.h = U.diagonal().square().reciprocal()
        self.step = max(BLOCK_COLUMNS // fmt.group_size, 1) * fmt.group_size
        self.bases = start.row_bases()
        row_block = torch.arange(fmt.rows, device=w.device) // fmt.block_rows
        self.row_exponents = start.exponents[row_block]
        self.lookup = level_lookup(fmt.layout, fmt.bits, w.device)
        self.codes = torch.empty_like(start.codes)
        self.index, self.sign = start.index.clone(), start.sign.clone()
        self.choice = start.choice.clone()

    def block(self, columns: range) -> None:
        """Quantize some columns (whole groups) and update all later ones by their errors."""
        U = self.U[columns.start : columns.stop, columns.start : columns.stop]
        W = self.w[:, columns.start : columns.stop]
        errors = torch.empty_like(W)
        for j in range(len(columns)):
            if j % self.format.group_size == 0:
                scale, middles, tables = self._search(columns.start + j, W[:, j : j + self.format.group_size])
            column = W[:, j]
            x = torch.where(scale != 0, column / scale, 0.0)
            code = (x.unsqueeze(1) > middles).sum(1)
            self.codes[:, columns.start + j] = code.to(torch.uint8)
            error = (column - tables.gather(1, code.unsqueeze(1)).squeeze(1) * scale) / U[j, j]
            W[:, j + 1 :].addr_(error, U[j, j + 1 :], alpha=-1)
            errors[:, j] = error
        later = self.U[columns.start : columns.stop, columns.stop :]
        self.w[:, columns.stop :].addmm_(errors, later, alpha=-1)

    def result(self) -> Compensated:
        coded = replace(self.start, codes=self.codes, index=self.index, sign=self.sign, choice=self.choice)
        return Compensated(coded, self.w)

    def _search(self, first: int, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Search the scales of the group that starts at column `first`; return scales [rows], midpoints and levels."""
        fmt, group = self.format, first // self.format.group_size
        h = self.h[first : first + w.shape[1]]
        narrow = replace(fmt, cols=w.shape[1], group_size=w.shape[1])
        found = engine(w.device).search_rows(w.contiguous(), h / h.mean(), self.bases, self.row_exponents, narrow)
        words = found.words.long().squeeze(1)
        self.index[:, group] = words & ((1 << fmt.log_bits) - 1)
        if fmt.has_sign:
            self.sign[:, group] = 1.0 - 2 * ((words >> fmt.log_bits) & 1)
        self.choice[:, group] = words >> (fmt.word_bits - fmt.choice_bits)
        scale = self.sign[:, group] * index_scales(self.index[:, group, None], self.bases, fmt).squeeze(1)
        exponent = self.row_exponents.long().gather(1, self.choice[:, group, None]).squeeze(1)
        tables = self.lookup[exponent]
        return scale, (tables[:, 1:] + tables[:, :-1]) / 2, tables
