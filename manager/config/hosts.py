"""Readers for hosts: the names of this machine, the web pages that may use it, its proxies, and
servers that others start."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote

from manager.config.readers import text
from manager.config.yaml_reader import InvalidValue, Value, reader
from manager.interfaces import ENDPOINTS

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LIKE_A_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_PLACE = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::([0-9]{1,5}|\*))?")
# What a browser sends: nothing of a page's address but these. The name is empty in file://.
_SENT = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<name>[a-z0-9._-]*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)
_PLACE_OF_AN_APP = re.compile(r"[a-z0-9._-]+")
_PATTERNS = (
    "a * stands for a whole name, such as moz-extension://* and https://*.example.org, or for the"
    ' port, such as http://localhost:*; "*" alone is every web page there is'
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_IPV4_IN_IPV6 = ipaddress.IPv6Network("::ffff:0:0/96")
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")
NO_HEALTH = "none"
"""`health` of a server that is well as soon as its port takes connections."""
_ENDPOINTS = tuple(path.removeprefix("/v1") for path in ENDPOINTS)


@reader(type="string")
def host(value: Value) -> str:
    """A DNS name by which this machine is called: what a Host header has, without its port."""
    written = _in_ascii(text(value))
    if "*" in written:
        raise InvalidValue(
            "a * would admit every web page that takes such a name for itself:"
            " write each name, such as llm.example.org"
        )
    name = written.partition("://")[2] or written
    name = re.split("[/?#]", name)[0]
    if match := _PLACE.fullmatch(name):
        name = match[1]
    name = name.strip("[]").removesuffix(".")
    if _address(name):
        raise InvalidValue(
            "addresses are allowed as they are: take this out, it need not be listed"
        )
    if not _is_name(name):
        raise InvalidValue(f"expected a DNS name such as llm.example.org, found {value.found}")
    if name != written.removesuffix("."):
        raise InvalidValue(f"expected a name without scheme, port and path: write {name}")
    return name


@reader(type="string")
def origin(value: Value) -> str:
    """The origin of a web page as browsers send it, a pattern of them, or ``*``."""
    written = _in_ascii(text(value))
    if written == "*":
        return written
    if written == "null":
        raise InvalidValue(
            "null is what any file and any frame without rights says of itself:"
            ' write the origin of a page, or "*" for every web page there is'
        )
    scheme, separator, place = written.partition("://")
    if "*" in scheme:
        raise InvalidValue(_PATTERNS)
    if not separator or not _SCHEME.fullmatch(scheme):
        raise InvalidValue(
            "expected an origin such as https://chat.example.org or http://localhost:3000"
        )
    if "@" in place:  # what is before it may be a password
        raise InvalidValue("an origin has no user: write what is behind the @ alone")
    alone = re.split("[/?#]", place)[0]
    if place not in (alone, f"{alone}/"):
        raise InvalidValue(f"an origin has no path: write {scheme}://{alone}")
    match = _PLACE.fullmatch(alone)
    name = _place(scheme, match[1]) if match else None
    if match is None or name is None:
        if "*" in alone:
            raise InvalidValue(_PATTERNS)
        raise InvalidValue(f"expected {scheme}://, a name and perhaps :port, found {value.found}")
    if match[2] == "*":
        return f"{scheme}://{name}:*"
    port = int(match[2] or _DEFAULT_PORTS.get(scheme, 1))
    if not 0 < port < 65536:
        raise InvalidValue(f"there is no port {port}: write one from 1 to 65535")
    has_own_port = match[2] and port != _DEFAULT_PORTS.get(scheme)
    return f"{scheme}://{name}:{port}" if has_own_port else f"{scheme}://{name}"


def admits(origins: tuple[str, ...], sent: str) -> bool:
    """Whether an Origin header's value is among these, which `origin` has read.

    A ``*`` alone is all. In a pattern it stands for a whole name (``moz-extension://*``), for
    one or more labels before a name (``https://*.example.org``), and for any port or none.
    """
    sent = sent.lower()
    if "*" in origins or sent in origins:
        return True
    found = _SENT.fullmatch(sent)
    return found is not None and any(
        _is_like(found, *one.partition("://")[::2]) for one in origins if "*" in one
    )


def _is_like(sent: re.Match[str], scheme: str, place: str) -> bool:
    pattern = _PLACE.fullmatch(place)
    if pattern is None or sent["scheme"] != scheme or pattern[2] not in ("*", sent["port"]):
        return False
    name: str = sent["name"]
    if pattern[1] == "*":
        return bool(name) or scheme not in _DEFAULT_PORTS
    if pattern[1].startswith("*."):
        return name.endswith(pattern[1][1:]) and _is_name(name)
    return name == pattern[1]


@reader(type="string")
def network(value: Value) -> Network:
    """The address or the network of a proxy."""
    written = text(value)
    try:
        given = ipaddress.ip_interface(written)
    except ValueError:
        given = None
    if given is None or "%" in written:
        raise InvalidValue(
            "expected an address or a network, such as 127.0.0.1 or 10.1.0.0/16,"
            f" found {value.found}"
        )
    found = given.network
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_IPV4_IN_IPV6):
        bits = int(found.network_address) & 0xFFFFFFFF
        raise InvalidValue(f"write it as {ipaddress.IPv4Network((bits, found.prefixlen - 96))}")
    if found.prefixlen == 0:
        raise InvalidValue(
            f"{found} is everybody, and who is believed can pass for any other: write the"
            " address of your proxy, such as 127.0.0.1"
        )
    if given.ip != found.network_address:
        raise InvalidValue(
            f"write {found} for the whole network, or {given.ip} for this address alone"
        )
    return found


@reader(type="string")
def server_url(value: Value) -> str:
    """Where a server is that others start: ``http://`` or ``https://``, a host, and perhaps a port
    and a path, without a slash at its end. No message has what may be a secret in it."""
    written = text(value)
    scheme, _, rest = written.partition("://")
    scheme = scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise InvalidValue(
            "expected an address such as https://api.example.org/v1 or http://10.0.0.5:8080"
        )
    place, slash, path = rest.partition("/")
    if "@" in place:
        raise InvalidValue(
            'write no user and no password here: the server is sent api_key: "${NAME}"'
        )
    if "?" in rest or "#" in rest:
        raise InvalidValue("write the address without a ? or # and what is behind it")
    path = (slash + path).rstrip("/")
    match = _PLACE.fullmatch(place.lower())
    name = _place(scheme, match[1]) if match and "*" not in place else None
    if match is None or name is None or not _PATH.fullmatch(path):
        raise InvalidValue(f"expected {scheme}://, a host in ASCII, perhaps a port and a path")
    port = int(match[2] or _DEFAULT_PORTS[scheme])
    if not 0 < port < 65536:
        raise InvalidValue(f"there is no port {port}: write one from 1 to 65535")
    if path.endswith(_ENDPOINTS):
        raise InvalidValue(
            "write the address without the path of an endpoint, such as https://api.example.org/v1"
        )
    has_own_port = port != _DEFAULT_PORTS[scheme]
    return f"{scheme}://{name}{f':{port}' if has_own_port else ''}{path}"


@reader(type="string", pattern=f"^(/.*|{NO_HEALTH})$")
def health(value: Value) -> str:
    """The path at which a server says whether it is well, or `NO_HEALTH`."""
    written = text(value)
    if written == NO_HEALTH:
        return written
    if not _PATH.fullmatch(written) or not written or written.startswith("//"):
        raise InvalidValue(
            f"expected a path of its server, such as /healthz or /api/health, or {NO_HEALTH};"
            f" found {value.found}"
        )
    if ".." in unquote(written).split("/"):
        raise InvalidValue("write the path without .. in it")
    return written


def _in_ascii(written: str) -> str:
    if not written.isascii():
        raise InvalidValue(
            "write it as browsers send it, in ASCII: other scripts begin with xn-- there"
        )
    return written.lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_name(name: str) -> bool:
    """Browsers take a name for an address if its last part is like a number."""
    labels = name.split(".")
    is_number = _LIKE_A_NUMBER.fullmatch(labels[-1])
    return len(name) <= 253 and not is_number and all(map(_LABEL.fullmatch, labels))


def _place(scheme: str, name: str) -> str | None:
    """A host as browsers write it, or a pattern of them; None where it is none."""
    if name == "*":
        return name
    if name.startswith("*.") and scheme in _DEFAULT_PORTS:
        return name if _is_name(name[2:]) else None
    if name.startswith("["):
        address = _address(name[1:-1])
        return f"[{address}]" if isinstance(address, ipaddress.IPv6Address) else None
    if scheme in _DEFAULT_PORTS:
        return name if _address(name) or _is_name(name) else None
    return name if _PLACE_OF_AN_APP.fullmatch(name) else None
