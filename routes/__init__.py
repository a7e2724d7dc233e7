"""HTTP and nothing else: read, check, call the manager, answer."""

from routes import ollama
from routes.app import create_app
from routes.services import Services

__all__ = ["Services", "create_app", "ollama"]
