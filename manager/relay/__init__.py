"""One request to one upstream and its answer back."""

from manager.relay import content_encoding, ollama
from manager.relay.body import Body, RawBody, Spooled
from manager.relay.form import Form, encoded_form
from manager.relay.forward import Carriers, forward
from manager.relay.outgoing import is_true
from manager.relay.payload import Payload, json_fault
from manager.relay.relay_processes import RelayProcesses
from manager.relay.remote_upstream import RemoteUpstream
from manager.relay.request import ClientConnection, HandedOver, Outcome, RelayRequest, RelayResponse
from manager.relay.response import UpstreamError, UpstreamRefused
from manager.relay.upstream import Exchange, Upstream
from manager.relay.watcher import Watcher
from manager.streams import ClientHead, Headers

__all__ = [
    "Body",
    "Carriers",
    "ClientConnection",
    "ClientHead",
    "Exchange",
    "Form",
    "HandedOver",
    "Headers",
    "Outcome",
    "Payload",
    "RawBody",
    "RelayProcesses",
    "RelayRequest",
    "RelayResponse",
    "RemoteUpstream",
    "Spooled",
    "Upstream",
    "UpstreamError",
    "UpstreamRefused",
    "Watcher",
    "content_encoding",
    "encoded_form",
    "forward",
    "is_true",
    "json_fault",
    "ollama",
]
