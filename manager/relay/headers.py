"""Which headers pass: those of a request to the model's server, and those of its answer back."""

from __future__ import annotations

from manager.relay.response import Headers, Response

_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    ]
)
# The client's credentials are for the manager. Host and length are those of our own
# connection; a compressed answer could not be metered. Model servers answer any Origin with
# leave to read, credentials included: passed through, every web page could use the models.
_NOT_FORWARDED = _HOP_BY_HOP | {
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


# Of an answer: its length is stated again, and the others are for the manager alone to set.
_SET_BY_MANAGER = frozenset(
    ("content-length", "set-cookie", "x-accel-buffering", "x-llm-manager-request")
)


def outgoing_headers(headers: Headers) -> Headers:
    connection = ",".join(value for name, value in headers if name.lower() == "connection")
    dropped = _NOT_FORWARDED | _names(connection)
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    kept.append(("Accept-Encoding", "identity"))
    return kept


def returned_headers(response: Response, is_stream: bool) -> Headers:
    dropped = _HOP_BY_HOP | _SET_BY_MANAGER | _names(response.header("Connection"))
    headers = [
        (name, value)
        for name, value in response.header_items
        if (key := name.lower()) not in dropped and not key.startswith("access-control-")
    ]
    if is_stream:
        # nginx would collect a stream until its buffer is full.
        headers.append(("X-Accel-Buffering", "no"))
    elif response.length is not None:
        # As it was understood, not as it was written: not every client reads "7, 7".
        headers.append(("Content-Length", str(response.length)))
    return headers


def _names(connection: str) -> set[str]:
    """The headers that a Connection header names as hop-by-hop."""
    return {name.strip().lower() for name in connection.split(",")}
