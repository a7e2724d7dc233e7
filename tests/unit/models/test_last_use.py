"""Who used a model last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.models.last_use import LastUse

USERS = "abc"


@given(st.lists(st.sampled_from(USERS), max_size=12), st.sampled_from(USERS))
def test_the_last_use_by_others_is_known_to_each_user(uses: list[str], asking: str) -> None:
    last = LastUse()
    for now, user in enumerate(uses):
        last.record(user, float(now))
    others = [float(now) for now, user in enumerate(uses) if user != asking]
    assert last.by_others(asking) == (others[-1] if others else None)
