"""Which headers of a request pass to the model's server."""

from __future__ import annotations

from manager.streams import HOP_BY_HOP, Headers, names_in

# The client's credentials are for the manager. Host and length are those of our own
# connection; a compressed answer could not be metered. Model servers answer any Origin with
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


def outgoing_headers(headers: Headers) -> Headers:
    connection = ",".join(value for name, value in headers if name.lower() == "connection")
    dropped = _NOT_FORWARDED | names_in(connection)
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    kept.append(("Accept-Encoding", "identity"))
    return kept
