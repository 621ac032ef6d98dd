"""The data-free search, the decoder and the bit streams, compiled for the CPU; `reference` explains them.

Compiled on first use (a few seconds) and cached on disk. The kernels hold no lock and treat every row alike, so the
result does not depend on the number of threads that share the rows.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np

_config: Any = numba.config


def _provide_cache_folder() -> None:
    """Point numba to a writable cache: a read-only installation in a container without a home has none by default."""
    own = Path(__file__).parent / "__pycache__"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    candidates = (own if own.exists() else own.parent, home if home.exists() else home.parent)
    if not _config.CACHE_DIR and not any(os.access(folder, os.W_OK) for folder in candidates):
        _config.CACHE_DIR = str(_private_folder(Path(tempfile.gettempdir()) / f"nupes-numba-{os.getuid()}"))


def _private_folder(path: Path) -> Path:
    """Return `path` if it is ours alone, else a fresh folder: what lies in a cache is executed."""
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return path if ours else Path(tempfile.mkdtemp(prefix=path.name))


_provide_cache_folder()

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
Array = np.ndarray[Any, Any]

_FAST_MATH = {"nnan", "ninf", "nsz", "arcp", "contract", "afn", "reassoc"}


def _exact(function: Kernel) -> Kernel:
    return cast("Kernel", numba.njit(cache=True, nogil=True)(function))


def _fast(function: Kernel) -> Kernel:
    """Let the compiler reorder sums, so that they become vector instructions."""
    return cast("Kernel", numba.njit(cache=True, nogil=True, fastmath=_FAST_MATH)(function))


FRACTIONS: Array = np.exp2(np.arange(128) / 128).astype(np.float32)
"""2^(i/128): with the exponent of a float, every scale that can be stored, the same on every machine."""


class Trials(NamedTuple):
    """Which scales a search tries, and how a word is put together.

    Attributes:
        group_size: weights of a group; the last of a row may be shorter.
        log_bits: bits of the log2 index, the lowest of a word.
        step: 1/128 octaves between neighbouring indices.
        signs: 2 if a sign bit follows the index, else 1.
        stride: indices between trials of the first pass.
        headroom: octaves above the largest weight where the trials start.
        floor: share of the root mean square where they end.
        tiny: groups whose largest weight is below this are taken as zero.
    """

    group_size: int
    log_bits: int
    step: int
    signs: int
    stride: int
    headroom: float
    floor: float
    tiny: float


@_fast
def group_error(x: Array, h: Array, inverse: float, lut: Array) -> Any:
    """Return Σ h·(x/m − level)², levels looked up by cell: one gather for each weight."""
    one = np.float32(1)
    half = np.float32(lut.shape[0] >> 1)
    error = np.float32(0)
    for i in range(x.shape[0]):
        y = x[i] * inverse
        cell = np.uint32(np.int32((min(max(y, -one), one) + one) * half))
        d = y - lut[cell]
        error += h[i] * d * d
    return error


@_exact
def search_group(
    x: Array, h: Array, unit: float, scales: Array, span: Any, luts: Array, which: Array, t: Trials
) -> Any:
    """Return (error / unit², index, sign, choice) of the best scale: each `stride`-th, then those around the best."""
    low, top = span
    best = np.float32(np.inf)
    best_index, best_sign, best_choice = top, 0, 0
    for choice in range(which.shape[0]):
        lut = luts[which[choice]]
        for sign in range(t.signs):
            for index in range(top, low - 1, -t.stride):
                ratio = scales[index] / unit
                error = group_error(x, h, np.float32(1 - 2 * sign) / scales[index], lut) * ratio * ratio
                if error < best:
                    best, best_index, best_sign, best_choice = error, index, sign, choice
    lut, flip, centre = luts[which[best_choice]], np.float32(1 - 2 * best_sign), best_index
    for index in range(max(centre - t.stride + 1, low), min(centre + t.stride, top + 1)):
        ratio = scales[index] / unit
        error = group_error(x, h, flip / scales[index], lut) * ratio * ratio
        if error < best:
            best, best_index = error, index
    return best, best_index, best_sign, best_choice


@_exact
def encode_group(x: Array, inverse: float, middles: Array, low: Array, codes: Array) -> None:
    """Write the index of the nearest level of each weight: bisection on the midpoints, all weights side by side."""
    for i in range(x.shape[0]):
        low[i] = 0
    width = np.uint32((middles.shape[0] + 1) >> 1)
    while width > 0:
        for i in range(x.shape[0]):
            upper = low[i] + width
            low[i] = upper if x[i] * inverse > middles[upper - np.uint32(1)] else low[i]
        width = np.uint32(width >> np.uint32(1))
    for i in range(x.shape[0]):
        codes[i] = low[i]


@_exact
def fill_scales(base: int, step: int, fractions: Array, scales: Array) -> None:
    """Write the scale of every index, `step`/128 octaves apart, the last at `base`; index 0 is the scale 0."""
    scales[0] = 0
    for index in range(1, scales.shape[0]):
        octave = base - (scales.shape[0] - 1 - index) * step
        scales[index] = fractions[octave & 127] * 2.0 ** (octave >> 7)


@_fast
def size_of(x: Array) -> Any:
    """Return (largest magnitude, sum of squares over its square)."""
    amax = np.float32(0)
    for i in range(x.shape[0]):
        amax = max(amax, abs(x[i]))
    inverse = np.float32(1) / max(amax, np.float32(1e-30))
    square = np.float32(0)
    for i in range(x.shape[0]):
        square += (x[i] * inverse) * (x[i] * inverse)
    return amax, square


@_exact
def trial_span(x: Array, base: int, t: Trials) -> Any:
    """Return (largest weight, (lowest index, top index)) of a search; the top index is 0 for a group of zeros."""
    amax, square = size_of(x)
    if amax < t.tiny:
        return amax, (0, 0)
    last = (1 << t.log_bits) - 1
    octave = np.log2(np.float64(amax))
    start = last + int(np.ceil((128 * (octave + t.headroom) - base) / t.step))
    end = last + int(np.floor((128 * (octave + np.log2(t.floor * np.sqrt(square / x.shape[0]))) - base) / t.step))
    top = min(max(start, 1), last)
    return amax, (min(max(end, 1), top), top)


@_exact
def search_rows(
    w: Array, h: Array, bases: Array, which: Array, luts: Array, middles: Array, t: Trials, out: Any
) -> None:
    """Search and encode rows.

    Reads w float32 [n, cols], h float32 [cols], bases int16 [n], which int64 [n, candidates]: rows of luts
    float32 [tables, cells] and middles float32 [tables, 2^bits − 1]. Writes to `out`: codes uint8 [n, cols], words
    uint16 [n, groups], errors float64 [n].
    """
    codes, words, errors = out
    scales = np.empty(1 << t.log_bits, np.float32)
    low = np.empty(t.group_size, np.uint32)
    middle = np.uint8((middles.shape[1] + 1) >> 1)
    for r in range(w.shape[0]):
        fill_scales(bases[r], t.step, FRACTIONS, scales)
        total = 0.0
        for g in range(words.shape[1]):
            group = slice(g * t.group_size, min((g + 1) * t.group_size, w.shape[1]))
            x, code = w[r, group], codes[r, group]
            unit, span = trial_span(x, bases[r], t)
            if span[1] == 0:
                code[:] = middle
                words[r, g] = 0
                continue
            error, index, sign, choice = search_group(x, h[group], unit, scales, span, luts, which[r], t)
            words[r, g] = (((choice * t.signs) + sign) << t.log_bits) | index
            encode_group(x, np.float32(1 - 2 * sign) / scales[index], middles[which[r, choice]], low, code)
            total += np.float64(error) * unit * unit
        errors[r] = total


@_exact
def decode_rows(codes: Array, words: Array, bases: Array, which: Array, tables: Array, t: Trials, out: Array) -> None:
    """Decode rows: the inverse of `search_rows`, tables float32 [tables, 2^bits], out float32 [n, cols]."""
    scales = np.empty(1 << t.log_bits, np.float32)
    for r in range(out.shape[0]):
        fill_scales(bases[r], t.step, FRACTIONS, scales)
        for g in range(words.shape[1]):
            word = np.int64(words[r, g])
            sign = (word >> t.log_bits) & (t.signs - 1)
            m = scales[word & (scales.shape[0] - 1)] * np.float32(1 - 2 * sign)
            table = tables[which[r, (word >> t.log_bits) // t.signs]]
            for i in range(g * t.group_size, min((g + 1) * t.group_size, out.shape[1])):
                out[r, i] = table[codes[r, i]] * m


@_exact
def pack_bits(values: Array, bits: int, packed: Array) -> None:
    """Write values [count], each below 2^bits, to packed uint8 [⌈count·bits/8⌉]: eight values are `bits` bytes."""
    waiting = np.uint64(0)
    filled = 0
    at = 0
    for i in range(values.shape[0]):
        waiting |= np.uint64(values[i]) << np.uint64(filled)
        filled += bits
        while filled >= 8:
            packed[at] = waiting & np.uint64(255)
            waiting >>= np.uint64(8)
            filled -= 8
            at += 1
    if filled:
        packed[at] = waiting & np.uint64(255)


@_exact
def unpack_bits(packed: Array, bits: int, values: Array) -> None:
    """Read values [count], the inverse of `pack_bits`."""
    mask = np.uint64((1 << bits) - 1)
    waiting = np.uint64(0)
    filled = 0
    at = 0
    for i in range(values.shape[0]):
        while filled < bits:
            waiting |= np.uint64(packed[at]) << np.uint64(filled)
            filled += 8
            at += 1
        values[i] = waiting & mask
        waiting >>= np.uint64(bits)
        filled -= bits


@_fast
def group_sums(x: Array, h: Array, grid: Array, limits: Any, sums: Array) -> None:
    """Write the sums over groups that `nupes_core.gguf.superblocksearch` fits grids by.

    Reads x and h float32 [n, size], grid float32 [2, n]: inverse of the step and offset; limits: least and largest c.
    Writes sums float32 [5, n]: Σhcc, Σhcx, Σhc, Σhx, Σh for c = round((x + offset) / step).
    """
    least, most = np.float32(limits[0]), np.float32(limits[1])
    for g in range(x.shape[0]):
        inverse, offset = grid[0, g], grid[1, g]
        cc = cx = c1 = hx = h1 = np.float32(0)
        for i in range(x.shape[1]):
            c = min(max(np.rint((x[g, i] + offset) * inverse), least), most)
            weighted = h[g, i] * c
            cc += weighted * c
            cx += weighted * x[g, i]
            c1 += weighted
            hx += h[g, i] * x[g, i]
            h1 += h[g, i]
        sums[0, g], sums[1, g], sums[2, g], sums[3, g], sums[4, g] = cc, cx, c1, hx, h1


@_exact
def group_codes(x: Array, grid: Array, limits: Any, codes: Array) -> None:
    """Write c − least, uint8 [n, size], of `group_sums`."""
    least, most = np.float32(limits[0]), np.float32(limits[1])
    for g in range(x.shape[0]):
        inverse, offset = grid[0, g], grid[1, g]
        for i in range(x.shape[1]):
            codes[g, i] = np.uint8(min(max(np.rint((x[g, i] + offset) * inverse), least), most) - least)
