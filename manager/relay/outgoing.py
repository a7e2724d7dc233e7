"""What of a request goes to the model's server, and what is changed in it."""

from __future__ import annotations

from typing import Any

from manager.interfaces import anthropic_error
from manager.relay.body import Spooled
from manager.relay.request import Lease, RelayRequest
from manager.streams import HOP_BY_HOP, Headers, names_in

# The client's credentials are for the manager. Host and length are those of our own
# connection. Model servers answer any Origin with
# leave to read, credentials included.
_NOT_FORWARDED = HOP_BY_HOP | {
    "host",
    "content-length",
    "content-encoding",  # the body is decoded
    "expect",
    "accept-encoding",
    "authorization",
    "x-api-key",
    "x-csrftoken",
    "cookie",
    "origin",
    # Who the client is, as a proxy in front of us has it.
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
}


def outgoing_headers(lease: Lease, request: RelayRequest) -> Headers:
    """All but those that go to the upstream whatever it is asked."""
    headers = request.headers
    connection = ",".join(value for name, value in headers if name.lower() == "connection")
    dropped = _NOT_FORWARDED | names_in(connection) if connection else _NOT_FORWARDED
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    # A compressed answer could not be metered. llama.cpp's page comes in no other way.
    accepted = ""
    if request.is_safe:
        encodings = (value for name, value in headers if name.lower() == "accept-encoding")
        accepted = ", ".join(encodings)
    kept.append(("Accept-Encoding", accepted or "identity"))
    if (own_key := lease.upstream.api_key) and request.endpoint.error is anthropic_error:
        kept.append(("x-api-key", own_key))  # all that Anthropic's own servers take
    return kept


def is_true(value: Any) -> bool:
    """What servers take for true: vLLM's reads texts and numbers as pydantic does."""
    if isinstance(value, str):
        return value.lower() in ("true", "t", "1", "yes", "y", "on")
    return value in (True, 1)


def outgoing_body(lease: Lease, request: RelayRequest) -> tuple[bytes | Spooled, bool]:
    """The body to send, and whether only the manager asked for a usage chunk."""
    fields = request.body.fields
    changes: dict[str, Any] = {}
    if lease.served_model_name is not None and not request.sets_model:
        changes["model"] = lease.served_model_name
    options = fields.get("stream_options")
    is_added = (
        is_true(fields.get("stream"))
        and lease.ask_usage
        and request.endpoint.asks_for_usage
        and (options is None or isinstance(options, dict))
        and not (options or {}).get("include_usage")
    )
    if is_added:
        changes["stream_options"] = {**(options or {}), "include_usage": True}
        if "continuous_usage_stats" in changes["stream_options"]:
            # vLLM's, which means something only with the other: usage in every chunk.
            changes["stream_options"]["continuous_usage_stats"] = False
    return request.body.with_changes(changes), is_added
