"""A server that others start: it is ready while it answers. I/O, never under a lock."""

from __future__ import annotations

from manager.models.health import Stage
from manager.models.probe import HEALTH_TIMEOUT_SECONDS, find_fault
from manager.models.server import NotAnsweringError, Server, StartCancelledError
from manager.models.startup import Start
from manager.relay import RemoteUpstream, UpstreamError


class RemoteStart(Start):
    """One attempt to reach the server at the model's ``url``: nothing is launched, and nothing is
    asked that would cost money."""

    def run(self) -> Server:
        """Raises NotAnsweringError, StartCancelledError."""
        settings, shared = self._settings, self._shared
        assert settings.url is not None
        try:
            upstream = RemoteUpstream(settings.url, settings.api_key, shared.connections)
        except UpstreamError as error:
            raise NotAnsweringError(str(error)) from error
        server = Server(
            launched=None,
            settings=settings,
            interface=self._interface,
            scheme="",
            passed_over={},
            upstream=upstream,
            started_at=self.began,
            start_seconds=0.0,
        )
        fault = find_fault(
            Stage.HEALTH, server, shared, HEALTH_TIMEOUT_SECONDS, lambda: self.cancelled
        )
        if self.cancelled or fault is not None:
            upstream.close()
            raise StartCancelledError if self.cancelled else NotAnsweringError(str(fault))
        server.start_seconds = shared.clock.monotonic() - self.began
        return server
