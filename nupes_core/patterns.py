"""Regular expressions that strangers send: matched with a time limit, without holding the interpreter lock. Torch-free.

`re` can take exponential time on a pattern such as `(a+)+$` and blocks every thread of the process meanwhile.
"""

from __future__ import annotations

import regex

from nupes_core.errors import InvalidConfigError

TIME_LIMIT_S = 0.1
"""For one pattern on one name; an honest one takes microseconds."""


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
        return regex.search(pattern, name, timeout=TIME_LIMIT_S, concurrent=True) is not None
    except TimeoutError as error:
        raise InvalidConfigError(
            f"the pattern {pattern!r} takes too long on {name!r}",
            hint="Repetitions inside repetitions, such as (a+)+, are what makes a pattern slow.",
        ) from error
