"""Connections to upstreams, and requests through the relay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from manager.relay.upstream import Upstream
from tests.support.relayed import Relayed
from tests.support.servers import FakeModel, RawServer
from tests.support.upstreams import Connect, Eventually


@pytest.fixture
def connect() -> Iterator[Callable[[RawServer], Upstream]]:
    """Upstreams whose kept connections are dropped at the test's end."""
    with contextlib.ExitStack() as stack:

        def connect(server: RawServer) -> Upstream:
            upstream = Upstream(server.port, 20)
            stack.callback(upstream.close)
            return upstream

        yield connect


@pytest.fixture
def to_parrot(parrot: RawServer, connect: Connect) -> Upstream:
    return connect(parrot)


@pytest.fixture
def relay() -> Iterator[Callable[..., Relayed]]:
    relayed: list[Relayed] = []

    def relay(server: FakeModel | RawServer, **lease: Any) -> Relayed:
        relayed.append(Relayed(server.port, **lease))
        return relayed[-1]

    yield relay
    for one in relayed:
        one.upstream.close()


@pytest.fixture(scope="module")
def model(fake_model: Callable[..., FakeModel]) -> FakeModel:
    return fake_model()


@pytest.fixture
def to_model(relay: Callable[..., Relayed], model: FakeModel, eventually: Eventually) -> Relayed:
    """A request to the fake upstream in its mode Chat, which is idle."""
    eventually(lambda: model.stats()["open"] == 0)
    return relay(model)
