"""What a mode is. A plugin is a subclass of Interface in a file of ``interface_plugin_dir``."""

from __future__ import annotations

from typing import Any, ClassVar

from manager import tokens
from manager.tokens import TokenUsage


class Interface:
    """One mode of a model.

    ``mode`` is its name in the config. ``endpoints`` are the paths that it answers, each below
    ``/v1/``. ``streams_end_with_done``: its streams end with ``data: [DONE]``, so that one
    without it was truncated. ``reports_usage_on_request``: its servers understand
    ``stream_options.include_usage``.
    """

    mode: ClassVar[str]
    endpoints: ClassVar[tuple[str, ...]]
    streams_end_with_done: ClassVar[bool] = False
    reports_usage_on_request: ClassVar[bool] = False

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        """The smallest real request: its path and its JSON body. ``model`` is what the
        upstream calls itself."""
        raise NotImplementedError(f"{type(self).__name__} has no probe")

    def usage(self, body: bytes) -> TokenUsage | None:
        """The tokens that a whole answer reports; None where it reports none."""
        return tokens.from_body(body)
