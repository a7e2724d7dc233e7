"""What the tests of several packages share: bounded waiting, and servers to talk to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import hypothesis
import pytest

from tests.support.servers import PATIENCE, FakeModel, Peer, RawServer

# How long an example takes says nothing about it on a machine that does other things as well.
# And the examples of a test may share its folder or its server: they leave both as they were.
hypothesis.settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("patient")

# The cards are played: what a developer's shell hides of real ones must not hide these.
for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
    os.environ.pop(name, None)

pytest_plugins = ["tests.support.fixtures", "tests.support.played_machine"]

T = TypeVar("T")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: half of the time is waiting for processes."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], T]], T]:
    """Calls a function again and again until it returns something true, which it hands back."""

    def eventually(condition: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s, still {value!r}"
            time.sleep(0.005)
        return value

    return eventually


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Peer], None]], RawServer]]:
    """Starts servers that speak as the test says, byte by byte."""
    servers: list[RawServer] = []

    def serve(script: Callable[[Peer], None]) -> RawServer:
        servers.append(RawServer(script))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
        assert server.faults == []


def _parts_in_the_body(peer: Peer) -> None:
    while request := peer.request():
        wanted = json.loads(request.partition(b"\r\n\r\n")[2])
        for part in wanted["parts"]:
            peer.send(part.encode("latin-1"))
        if wanted["then"] == "reset":
            peer.reset()
        if wanted["then"] != "wait":
            return


@pytest.fixture(scope="module")
def parrot() -> Iterator[RawServer]:
    """A server that answers with the bytes that the request's JSON body asks for.

    ``parts`` are sent one after the other, as latin-1; ``then`` says what comes behind them:
    ``wait`` for the next request, ``close``, or ``reset``.
    """
    server = RawServer(_parts_in_the_body)
    yield server
    server.close()
    assert server.faults == []


@pytest.fixture(scope="module")
def fake_model() -> Iterator[Callable[..., FakeModel]]:
    """Starts fake upstreams with the flags given, once for each set of flags in a file."""
    models: dict[str, FakeModel] = {}

    def fake_model(**flags: Any) -> FakeModel:
        key = repr(sorted(flags.items()))
        if key not in models:
            models[key] = FakeModel(**flags)
        return models[key]

    yield fake_model
    for model in models.values():
        model.close()
