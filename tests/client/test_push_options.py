"""`--push …` of `nupes quantize`."""

from __future__ import annotations

import pytest

from nupes_client.cli.groups import PushOptions
from nupes_client.cli.options import Format
from nupes_client.cli.wish import Wish, WishError


def test_the_options_become_the_field_of_the_job() -> None:
    wish = Wish((PushOptions(push="team/tiny", push_secret="hub", push_public=True, push_revision="4-bit"),))
    push = wish.body("mdl_1", {}).push_to_hub
    assert push is not None
    assert (push.repo, push.secret, push.private, push.revision, push.formats) == (
        "team/tiny",
        "hub",
        False,
        "4-bit",
        [],
    )
    assert Wish((PushOptions(),)).body("mdl_1", {}).push_to_hub is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (PushOptions(push="team/tiny"), "--push needs a stored token"),
        (PushOptions(push_secret="hub"), "--push-secret says how"),
        (PushOptions(push="tiny", push_secret="hub"), "--push: write it as namespace/name"),
        (PushOptions(push="team/..", push_secret="hub"), "--push: write it as namespace/name"),
        (PushOptions(push="team/tiny", push_secret="a b"), "--push-secret"),
        (PushOptions(push="team/tiny", push_secret="hub", push_revision="a..b"), "--push-revision: must be the name"),
        (PushOptions(push="team/tiny", push_secret="hub", push_format=[Format.GGUF]), "format `gguf` is to be pushed"),
    ],
)
def test_what_can_not_be_pushed_is_said_in_options_before_anything_is_sent(options: PushOptions, said: str) -> None:
    with pytest.raises(WishError) as refused:
        Wish((options,)).check()
    assert said in str(refused.value)
