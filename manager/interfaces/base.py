"""What a mode is. A plugin is a subclass of Interface in a file of ``interface_plugin_dir``."""

from __future__ import annotations

from typing import Any, ClassVar

from manager import tokens
from manager.interfaces.endpoints import ENDPOINTS, Endpoint
from manager.interfaces.stream_protocol import ANY_STREAM, OPENAI_STREAM
from manager.tokens import TokenUsage


class Interface:
    """One mode of a model.

    ``mode`` is its name in the config. ``endpoints`` are the paths that it answers, each below
    ``/v1/``. ``may_refuse_probe``: a 4xx answer to its probe makes it ready as well, since servers
    differ in what they take.

    The other two are for paths that `endpoints.ENDPOINTS` does not know:
    ``streams_end_with_done``: their streams end with ``data: [DONE]``, so that one without it was
    cut short. ``reports_usage_on_request``: their servers understand
    ``stream_options.include_usage``.
    """

    mode: ClassVar[str]
    endpoints: ClassVar[tuple[str, ...]]
    may_refuse_probe: ClassVar[bool] = False
    streams_end_with_done: ClassVar[bool] = False
    reports_usage_on_request: ClassVar[bool] = False

    def endpoint(self, path: str) -> Endpoint:
        """What is known of one of ``endpoints``."""
        return ENDPOINTS.get(path) or Endpoint(
            path,
            OPENAI_STREAM if self.streams_end_with_done else ANY_STREAM,
            self.reports_usage_on_request,
        )

    def probe(self, model: str) -> tuple[str, dict[str, Any]] | None:
        """The smallest real request: its path and the fields of its body, in a form a file as its
        name and its bytes. None where none is small: then its health has to do. ``model`` is what
        the upstream calls itself."""
        raise NotImplementedError(f"{type(self).__name__} has no probe")

    def usage(self, body: bytes) -> TokenUsage | None:
        """The tokens that a whole answer reports; None where it reports none."""
        return tokens.from_body(body)
