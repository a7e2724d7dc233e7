from __future__ import annotations

from manager.interfaces.base import Interface
from manager.interfaces.endpoints import OF_IMAGE, paths_of


class Image(Interface):
    """Pictures: ``/v1/images/generations``."""

    mode = "Image"
    endpoints = paths_of(OF_IMAGE)

    def probe(self, _model: str) -> None:
        """Even the smallest picture may take minutes."""
