"""The domain: models, their servers, requests to them. Knows no web framework."""

__version__ = "4.0.0.dev0"
