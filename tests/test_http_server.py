"""The HTTP server's end, whatever its loop is doing at that moment."""

from __future__ import annotations

import threading

import pytest
from flask import Flask

from routes.server import HttpServer


def test_a_loop_that_ends_before_it_is_woken_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HttpServer(Flask("test"), "127.0.0.1", 0, threads=4, max_body_mb=1)
    server.start()
    (loop,) = (thread for thread in threading.enumerate() if thread.name == "http")
    trigger = server._listeners[0].trigger
    pull = type(trigger)._physical_pull

    def late() -> None:
        pull(trigger)  # as a worker does that has just finished
        loop.join(20)
        assert not loop.is_alive()
        pull(trigger)  # our own

    monkeypatch.setattr(trigger, "_physical_pull", late)
    server.close(1.0)
