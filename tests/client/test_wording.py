"""Settings are shown to people in plain words."""

from __future__ import annotations

from typing import Any

import pytest

from nupes_client.wording import NOTHING, plain, setting


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, NOTHING),
        ([], NOTHING),
        ({}, NOTHING),
        (0, "0"),
        (False, "no"),
        (True, "yes"),
        (0.8, "0.8"),
        ("lm_head", "lm_head"),
        (["nupes", "gguf"], "nupes, gguf"),
        ({"mode": "fixed", "value": 0.8}, "mode: fixed, value: 0.8"),
        ({"mode": "search", "value": None}, "mode: search"),
        ({"group_size": 64, "exponent": {"scope": "layer", "value": None}}, "group size: 64, exponent: scope: layer"),
        ({"smooth": False, "bits": 0}, "smooth: no, bits: 0"),
        ({"value": None}, NOTHING),
    ],
)
def test_values_are_said_without_the_marks_of_json_and_without_what_is_left_open(value: Any, words: str) -> None:
    assert plain(value) == words


def test_the_path_of_a_setting_reads_as_words() -> None:
    assert setting("/weights/group_size") == "weights: group size"
    assert setting("/gates") == "gates"
