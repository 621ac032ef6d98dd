"""What is wrong with a value is said in plain words, without repeating what may be a secret."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nupes_client.schemas.words import in_plain_words


class Wish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bits: int = Field(4, ge=2, le=8)
    share: float = Field(0.5, gt=0, lt=1, allow_inf_nan=False)
    grid: Literal["power", "uniform"] = "power"
    name: str = Field("x", min_length=1, max_length=3)
    names: list[str] = Field([], max_length=1)
    wait: bool = True


FOUND = {
    "must be at most 8, not 9": {"bits": 9},
    "must be at least 2, not 1": {"bits": 1},
    "must be a whole number": {"bits": "many"},
    "must be a whole number, not 2.5": {"bits": 2.5},
    "must be above 0, not 0": {"share": 0},
    "must be below 1, not 1": {"share": 1},
    "must be a number": {"share": "abc"},
    "must be a finite number, not nan": {"share": float("nan")},
    "must be 'power' or 'uniform'": {"grid": "cubic"},
    "must have at least 1 characters": {"name": ""},
    "must have at most 3 characters": {"name": "long"},
    "must be text, not 7": {"name": 7},
    "must be a list": {"names": "a"},
    "must have at most 1 entries": {"names": ["a", "b"]},
    "must be true or false": {"wait": "perhaps"},
    "is not known here": {"bit": "hf_secret"},
}


@pytest.mark.parametrize(("words", "fields"), FOUND.items(), ids=FOUND)
def test_each_kind_of_fault_has_its_words(words: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Wish.model_validate(fields)
    assert [in_plain_words(error) for error in caught.value.errors()] == [words]  # type: ignore[arg-type]
