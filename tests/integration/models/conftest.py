"""What the tests of a model with a real server share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.servers import FakeModel


@pytest.fixture
def model() -> Iterator[Callable[..., FakeModel]]:
    """Fake upstreams of one test alone."""
    with contextlib.ExitStack() as stack:

        def model(**flags: Any) -> FakeModel:
            one = FakeModel(**flags)
            stack.callback(one.close)
            return one

        yield model
