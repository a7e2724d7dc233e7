"""The HTML pages."""

from routes.pages import assets, headers, login, views

__all__ = ["assets", "headers", "login", "views"]
