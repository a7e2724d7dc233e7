"""Where a request comes from: its client's address, its Host, the page that sent it."""

from __future__ import annotations

import functools
import ipaddress
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flask import Response, request

from manager.config import Network, Program, admits
from manager.errors import ApiError
from manager.interfaces import RAW, is_for_models

# Names that reach a machine from its own containers, which no foreign name server answers for.
_OWN_NAMES = frozenset(("localhost", "host.docker.internal", "host.containers.internal"))
_PROXY_HEADERS = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")
_MAX_HOST = 260
SANDBOX = "sandbox allow-scripts allow-forms"
"""The policy of what models' servers answer below /upstream. With allow-same-origin in it a page of
theirs could do all that its reader may."""
_CORS_SECONDS = "7200"
_CORS_EXPOSED = (
    "Retry-After, X-LLM-Manager-Request, x-ratelimit-limit-requests, x-ratelimit-limit-tokens,"
    " x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests,"
    " x-ratelimit-reset-tokens"
)


class Client(NamedTuple):
    """``is_local``: on this machine itself; ``is_secure``: by TLS, as far as we know."""

    address: str
    is_local: bool
    is_secure: bool
    host: str | None


def client_of(environ: dict[str, Any], program: Program) -> Client:
    """Who is behind the proxies that the config names, or at the other end of the connection."""
    peer, host = environ.get("REMOTE_ADDR", ""), environ.get("HTTP_HOST")
    trusted = program.trusted_proxies
    if not trusted or not _is_within(peer, trusted):
        # A proxy on this machine that the config does not name may forward anybody.
        is_local = _is_loopback(peer) and not any(name in environ for name in _PROXY_HEADERS)
        return Client(peer, is_local, environ["wsgi.url_scheme"] == "https", host)
    address = peer
    # The nearest last: what a client wrote itself is before what the proxies have seen.
    for hop in reversed(environ.get("HTTP_X_FORWARDED_FOR", peer).split(",")):
        address = _without_port_of_hop(hop)
        if not _is_within(address, trusted):
            break
    # An address that is loopback on the proxy's machine is local only if that is this one; and a
    # proxy that names its client in another header has not set the one that is read here.
    is_named = "HTTP_X_FORWARDED_FOR" in environ or not any(n in environ for n in _PROXY_HEADERS)
    is_local = is_named and _is_loopback(peer) and _is_loopback(address)
    proto = environ.get("HTTP_X_FORWARDED_PROTO", "").partition(",")[0]
    is_secure = proto.strip().lower() == "https"
    return Client(address, is_local, is_secure, environ.get("HTTP_X_FORWARDED_HOST", host))


def _without_port_of_hop(hop: str) -> str:
    """An address as some proxies write it, with a port: else each port would be another client.
    Empty for what is none."""
    hop = hop.strip()
    bare = hop[1:].partition("]")[0] if hop.startswith("[") else hop
    if bare.count(":") == 1:
        bare = bare.partition(":")[0]
    found = _ip(bare)
    # What stands behind the % of an IPv6 address may be any text.
    return "" if found is None else str(found).partition("%")[0]


@functools.lru_cache(1024)
def _is_within(address: str, networks: tuple[Network, ...]) -> bool:
    found = _ip(address)
    return found is not None and any(found in network for network in networks)


@functools.lru_cache(1024)
def _is_loopback(address: str) -> bool:
    found = _ip(address)
    return found is not None and found.is_loopback


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)  # of a socket that takes both
    return found if mapped is None else mapped


def check_host(host: str | None, program: Program) -> None:
    """Raises ApiError 403 for a name that is none of this machine's. A page whose own name
    resolves to this machine (DNS rebinding) has the same origin as ours to its browser: only the
    name tells them apart."""
    if host is None:
        return
    # Longer ones are no names, and must not fill the cache.
    is_name = len(host) <= _MAX_HOST
    if not (is_name and _is_own_host(host, program.host, program.allowed_hosts)):
        name = _without_port(host)[:100]
        raise ApiError(
            403,
            "host_not_allowed",
            f"This LLM-Manager is not known as {name!r}. If it is meant to be, add the name to"
            " allowed_hosts, under program in config.yaml; else call it by its address",
        )


@functools.lru_cache(1024)
def _is_own_host(host: str, listening: str, allowed: tuple[str, ...]) -> bool:
    name = _without_port(host).lower().rstrip(".")
    if _ip(name.strip("[]")) is not None or name.endswith(".localhost"):
        return True
    return name in _OWN_NAMES or name in _machine_names() or name in (listening.lower(), *allowed)


@functools.lru_cache(1)
def _machine_names() -> frozenset[str]:
    name = socket.gethostname().lower()
    short = name.split(".")[0]
    return frozenset((name, short, f"{short}.local"))


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if name and port.isdecimal() else host


def allowed_origin(environ: dict[str, Any], host: str | None, program: Program) -> str | None:
    """The foreign origin that may use the models; None for a page of our own. Raises ApiError 403
    for others: a browser lets any page post to a local port, and only keeps the response from
    it."""
    origin = environ["HTTP_ORIGIN"]
    if host is not None and _is_same(origin, host):
        return None
    if may_use_models(environ["PATH_INFO"], origin, program.cors_origins):
        return str(origin)
    raise ApiError(
        403,
        "origin_not_allowed",
        f"Web pages of {origin[:100]!r} may not use this LLM-Manager. For the models alone they may"
        " if the origin is in cors_origins, under program in config.yaml",
    )


def check_is_no_foreign_page(environ: dict[str, Any]) -> None:
    """Raises ApiError 403 for a GET by a page of elsewhere, such as for a picture in it: that names
    no Origin, so that ``allowed_origin`` never sees it."""
    if "HTTP_ORIGIN" in environ:
        return
    if environ.get("HTTP_SEC_FETCH_SITE") in ("cross-site", "same-site"):
        raise ApiError(403, "origin_not_allowed", "Web pages of elsewhere may not ask for this")


def may_use_models(path: str, origin: str, cors_origins: tuple[str, ...]) -> bool:
    """Whether a page of a foreign origin may ask for the path."""
    return is_for_models(path) and admits(cors_origins, origin)


def sandbox(path: str, response: Response) -> None:
    """What is answered below /upstream is foreign content, errors too."""
    if path.startswith(RAW.path) and path[len(RAW.path) :][:1] in ("", "/"):
        response.headers["Content-Security-Policy"] = SANDBOX
        response.headers["Referrer-Policy"] = "no-referrer"  # a page's address is a secret


def cors_headers(origin: str) -> dict[str, str]:
    """What lets a page of an allowed origin read a response, refusals too."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _CORS_EXPOSED,
    }


def _is_same(origin: str, host: str) -> bool:
    try:
        return _bare(urlsplit(origin).netloc) == _bare(host)
    except ValueError:
        return False


def _bare(netloc: str) -> str:
    """Without a default port: a proxy may have added or dropped it."""
    return netloc.lower().removesuffix(":80").removesuffix(":443")


def preflight(
    origin: str, cors_origins: tuple[str, ...] = (), methods: str | None = "GET, POST"
) -> Response:
    """The response to a CORS preflight from an allowed origin."""
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    response = Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": methods or "GET",
            "Access-Control-Allow-Headers": wanted or "Authorization, Content-Type, X-Api-Key",
            "Access-Control-Max-Age": _CORS_SECONDS,
        },
    )
    # A page of the Internet that asks for a private address: a pattern may mean pages of anybody.
    is_private = request.headers.get("Access-Control-Request-Private-Network") == "true"
    if is_private and origin.lower() in cors_origins:
        response.headers["Access-Control-Allow-Private-Network"] = "true"
    return response
