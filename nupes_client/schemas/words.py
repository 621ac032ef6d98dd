"""What pydantic finds wrong with a value, in the words of people who know neither pydantic nor Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NUMBER, _WHOLE = "must be a number", "must be a whole number"
_OBJECT = "must be an object"

_WORDS = {
    "missing": "is needed",
    "extra_forbidden": "is not known here",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": "must be a finite number",
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "list_type": "must be a list",
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
}
"""By pydantic's type of an error; names in braces are of its context."""

_PREFIX = "Value error, "


def in_plain_words(error: Mapping[str, Any]) -> str:
    """Say what is wrong with a value.

    Args:
        error: an entry of `pydantic.ValidationError.errors()`.

    Returns:
        What the value must be, with the number that it is; a text that was sent is not repeated: it may be a secret.
    """
    words = _WORDS.get(error["type"])
    if words is None:
        return str(error["msg"]).removeprefix(_PREFIX)
    found = error.get("input")
    got = f", not {found}" if isinstance(found, int | float) and not isinstance(found, bool) else ""
    limits = {name: _short(value) for name, value in (error.get("ctx") or {}).items()}
    return words.format_map(limits) + got


def _short(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit
