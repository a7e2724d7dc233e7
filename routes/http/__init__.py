"""What waitress does not do for us."""

from routes.http.client import (
    Client,
    allowed_origin,
    check_host,
    check_is_no_foreign_page,
    client_of,
    cors_headers,
    preflight,
    sandbox,
)
from routes.http.server import HttpServer, ListenError
from routes.http.slots import Slot, Slots

__all__ = [
    "Client",
    "HttpServer",
    "ListenError",
    "Slot",
    "Slots",
    "allowed_origin",
    "check_host",
    "check_is_no_foreign_page",
    "client_of",
    "cors_headers",
    "preflight",
    "sandbox",
]
