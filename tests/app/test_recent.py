from __future__ import annotations

from app.core.recent import Recent


def test_a_value_is_kept_until_others_outweigh_it_the_one_unused_for_longest_first() -> None:
    recent: Recent[str] = Recent(10)
    for key in ("a", "b", "c"):
        recent.put(key, key.upper(), weight=3)
    assert recent.get("a") == "A"
    recent.put("d", "D", weight=4)
    assert {key: recent.get(key) for key in "abcd"} == {"a": "A", "b": None, "c": "C", "d": "D"}


def test_a_value_put_again_weighs_once() -> None:
    recent: Recent[int] = Recent(10)
    for number in range(20):
        recent.put("a", number, weight=5)
    recent.put("b", 1, weight=5)
    assert (recent.get("a"), recent.get("b")) == (19, 1)


def test_what_is_too_heavy_alone_drives_out_nothing() -> None:
    recent: Recent[int] = Recent(10)
    recent.put("a", 1, weight=10)
    recent.put("b", 2, weight=11)
    assert (recent.get("a"), recent.get("b")) == (1, None)
