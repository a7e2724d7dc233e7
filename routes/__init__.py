"""HTTP and nothing else: read, check, call the manager, answer."""

from routes.app import create_app

__all__ = ["create_app"]
