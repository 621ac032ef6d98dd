from __future__ import annotations

import pytest
from starlette.requests import Request

from app.core.conditional import check_match, etag, not_modified
from app.core.problems import PreconditionFailedError


def request(*headers: tuple[str, str]) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "headers": raw})


@pytest.mark.parametrize(
    ("value", "same"),
    [('"3"', True), ('W/"3"', True), ('"1", "3"', True), ("*", True), ('"33"', False), ("3", False), ("", False)],
)
def test_if_none_match_compares_weakly(value: str, same: bool) -> None:
    assert not_modified(request(("if-none-match", value)), etag(3)) is same


def test_if_match_compares_strongly() -> None:
    check_match(request(), etag(3))
    check_match(request(("if-match", '"2", "3"')), etag(3))
    check_match(request(("if-match", "*")), etag(3))
    for value in ('"2"', 'W/"3"', "3"):
        with pytest.raises(PreconditionFailedError, match='"3"'):
            check_match(request(("if-match", value)), etag(3))


def test_several_header_lines_count() -> None:
    assert not_modified(request(("if-none-match", '"1"'), ("if-none-match", '"3"')), etag(3))
