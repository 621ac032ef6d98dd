"""What forms put into addresses comes to the API as it reads it."""

from __future__ import annotations

import pytest

from app.web.queries import is_tidy, tidy


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("status=failed&name=", "status=failed"),
        ("label=pipeline%3Dnightly", "label.pipeline=nightly"),
        ("created_after=2026-01-31T10:30", "created_after=2026-01-31T10%3A30%3A00Z"),
        ("created_before=2026-01-31T10:30:05", "created_before=2026-01-31T10%3A30%3A05Z"),
        ("created_after=2026-01-31T10:30:05%2B01:00", "created_after=2026-01-31T10%3A30%3A05%2B01%3A00"),
        ("status=failed&status=running", "status=failed&status=running"),
        ("", ""),
    ],
)
def test_fields_of_a_form_are_put_as_the_api_reads_them_and_then_left_alone(sent: str, read: str) -> None:
    assert tidy(sent) == read
    assert is_tidy(read)
