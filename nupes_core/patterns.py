"""Regular expressions that strangers send: matched with a time limit. Torch-free.

`re` can take exponential time on a pattern such as `(a+)+$` and blocks every thread of the process meanwhile. The
limits are seconds of the processor as the library `regex` counts them: those of all threads of the process together.
"""

from __future__ import annotations

import regex

from nupes_core.errors import InvalidConfigError

QUICK_S = 0.005
"""An honest pattern takes microseconds on a name. It is spared giving up the interpreter lock, which in a process with
many busy threads takes long to come back, so long that the pattern seemed slow."""

TIME_LIMIT_S = 0.5
"""For one pattern on one name, while other threads go on."""


def check_pattern(setting: str, pattern: str) -> None:
    """Refuse what is no regular expression.

    Raises:
        InvalidConfigError: quotes the setting and the pattern.
    """
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise InvalidConfigError(f"{setting} is {pattern!r}, not a regular expression: {error}") from error


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` is found anywhere in `name`.

    Raises:
        InvalidConfigError: it takes longer than `TIME_LIMIT_S`.
    """
    try:
        return regex.search(pattern, name, timeout=QUICK_S, concurrent=False) is not None
    except TimeoutError:
        return _patiently_matches(pattern, name)


def _patiently_matches(pattern: str, name: str) -> bool:
    try:
        return regex.search(pattern, name, timeout=TIME_LIMIT_S, concurrent=True) is not None
    except TimeoutError as error:
        raise InvalidConfigError(
            f"the pattern {pattern!r} takes too long on {name!r}",
            hint="Repetitions inside repetitions, such as (a+)+, are what makes a pattern slow.",
        ) from error
