"""Settings and their values as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from nupes_client.schemas.specs import LayerOverrideSpec
from nupes_client.wording import NOTHING, plain, setting


@pytest.mark.parametrize(
    ("pointer", "words"),
    [
        ("/seed", "seed"),
        ("/weights/group_size", "weights: group size"),
        ("/weights/exponent/scope", "weights: exponent: scope"),
        ("weights/bits/", "weights: bits"),
        ("", ""),
    ],
)
def test_a_setting_is_named_by_its_path(pointer: str, words: str) -> None:
    assert setting(pointer) == words


@pytest.mark.parametrize("value", [None, [], {}, {"value": None}], ids=str)
def test_where_there_is_nothing_a_dash_stands(value: Any) -> None:
    assert plain(value) == NOTHING


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (1, "1"),
        (0.5, "0.5"),
        ("data-free", "data-free"),
        ("group_size", "group_size"),
    ],
    ids=repr,
)
def test_a_value_is_said_without_the_marks_of_json(value: Any, words: str) -> None:
    assert plain(value) == words


def test_values_of_a_list_are_said_in_turn_the_missing_ones_too() -> None:
    assert plain(["lm_head", 3, None, True]) == f"lm_head, 3, {NOTHING}, yes"


def test_an_object_says_its_fields_by_name() -> None:
    assert plain({"group_size": 64, "layers": ["a", "b"]}) == "group size: 64, layers: a, b"


def test_fields_of_an_object_that_are_null_are_left_out() -> None:
    assert plain({"bits": 4, "value": None}) == "bits: 4"
    assert plain([{"bits": 4, "value": None}, {"value": 1.5}]) == "bits: 4, value: 1.5"


def test_fields_that_are_no_empty_or_zero_are_said() -> None:
    assert plain({"symmetric": False, "seed": 0, "exclude": []}) == f"symmetric: no, seed: 0, exclude: {NOTHING}"


def test_an_object_in_an_object_leaves_out_its_nulls_too() -> None:
    assert plain({"exponent": {"value": None, "scope": "tensor"}}) == "exponent: scope: tensor"


def test_a_setting_of_a_job_says_what_was_asked_for() -> None:
    override = LayerOverrideSpec(match="down_proj", bits=6)
    assert plain([override.model_dump(mode="json")]) == "match: down_proj, bits: 6, skip: no"
