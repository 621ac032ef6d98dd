"""Where words go: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nupes_client.errors import LocalFileError
from nupes_client.wording import NOTHING

UNITS = ("B", "kB", "MB", "GB", "TB")
UNLIMITED = 10_000
"""Columns of a pipe."""


def stdout() -> Console:
    """The console of results."""
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False)


def stderr() -> Console:
    """The console of progress, hints and errors."""
    return Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False, markup=False)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """Print a model, models or a dictionary as JSON, indented for people, stable for programs."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[str] = (), empty: str = "(none)"
) -> None:
    """Print a table, or to people what `empty` says; without a terminal nothing is cut off.

    Args:
        columns: heads.
        rows: cells of each row; None is shown as a dash.
        numbers: heads of columns that align right.
        empty: what to say where there are no rows, best what to do to have some.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    right = set(numbers)
    for place, column in enumerate(columns):
        justify: Literal["right", "left"] = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    if not table.row_count:
        note(empty)
        return
    console = stdout()
    if not console.is_terminal:
        console.width = UNLIMITED
    console.print(table)


def print_line(text: str) -> None:
    """Print a line of result."""
    stdout().print(text)


def print_markdown(text: str) -> None:
    """Print Markdown as it is meant to look."""
    from rich.markdown import Markdown

    stdout().print(Markdown(text))


def note(text: str) -> None:
    """Print a line for people."""
    stderr().print(text)


def complain(text: str, hint: str | None = None) -> None:
    """Print an error and what to do about it."""
    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), text))
    if hint:
        console.print(Text.assemble(("  try: ", "bold"), hint))


def size(count: float) -> str:
    """Return bytes in words: `11.9 MB`."""
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count /= 1000
        unit += 1
    return f"{count:.{1 if unit else 0}f} {UNITS[unit]}"


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure with `digits` significant digits, large ones in full (`3,410,000`), a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if 10**digits <= abs(value) < math.inf else f"{value:.{digits}g}"


def fixed(value: float | None, decimals: int) -> str:
    """Return a figure with `decimals` digits behind the point, a dash for None."""
    return NOTHING if value is None else f"{value:.{decimals}f}"


def percent(share: float | None) -> str:
    """Return a share as `12.3%`, a dash for None."""
    return NOTHING if share is None else f"{share:.1%}"


def _cell(value: object) -> str:
    return NOTHING if value is None else str(value)


def _plain(value: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return value
    return [item.model_dump(mode="json") for item in value]


def write_file(path: Path, content: bytes) -> None:
    """Write a result that the user wants in a file.

    Raises:
        LocalFileError: it can not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise LocalFileError(f"{path} can not be written: {error.strerror}") from error
