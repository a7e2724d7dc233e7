"""One request to one upstream and its answer back."""

from manager.relay import content_encoding
from manager.relay.forward import Outcome, RelayRequest, error_in, forward
from manager.relay.payload import Payload, json_fault
from manager.relay.response import Headers, UpstreamError, UpstreamRefused
from manager.relay.upstream import Exchange, Upstream
from manager.relay.watcher import Watcher

__all__ = [
    "Exchange",
    "Headers",
    "Outcome",
    "Payload",
    "RelayRequest",
    "Upstream",
    "UpstreamError",
    "UpstreamRefused",
    "Watcher",
    "content_encoding",
    "error_in",
    "forward",
    "json_fault",
]
