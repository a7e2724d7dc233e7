"""The head of an HTTP answer: read from a model's server, written to a client. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_BYTES = 1 << 18
_LENGTH = re.compile("[0-9]{1,18}")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_A_VALUE = re.compile(rb"[\r\n\0]")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: ([^\r\n]*))?\r?$")

HOP_BY_HOP = frozenset(
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
# Its length is stated again, what a server says of its own origin is not true of ours, and the
# others are for the manager alone to set.
_NOT_RETURNED = HOP_BY_HOP | {
    "alt-svc",
    "clear-site-data",
    "content-length",
    "nel",
    "refresh",
    "report-to",
    "reporting-endpoints",
    "service-worker-allowed",
    "set-cookie",
    "set-cookie2",
    "set-login",
    "strict-transport-security",
    "x-accel-buffering",
    "x-llm-manager-request",
}

_BODILESS = (204, 304)

Headers = list[tuple[str, str]]


class NotHttp(ValueError):
    """The bytes are not the head of an answer."""


@dataclass(frozen=True)
class AnswerHead:
    """``headers`` keeps order and repetition, ``joined`` has them by name in small letters;
    ``length`` is the declared length of the body in
    bytes, None where it is chunked or ends with its connection; ``keeps_alive``: the connection
    goes on after it, if it has an end of its own."""

    minor: int
    status: int
    reason: str
    headers: Headers
    joined: Mapping[str, str]
    length: int | None
    is_chunked: bool
    keeps_alive: bool

    def header(self, name: str) -> str:
        """A header's value, "" where there is none; repeated ones joined by commas."""
        return self.joined.get(name.lower(), "")

    @property
    def is_web_page(self) -> bool:
        """Then what answers is not a model's server."""
        return self.status < 300 and self.header("content-type").lower().startswith("text/html")

    def is_stream(self, may_be_plain: bool) -> bool:
        """Some servers call a stream that was asked for plain text; an error is never one."""
        kind = self.header("content-type").lower()
        is_plain = may_be_plain and self.length is None and kind.startswith("text/plain")
        return self.status < 400 and (is_plain or kind.startswith("text/event-stream"))

    def returned(self, *, is_stream: bool, hides_limits: bool) -> Headers:
        """Those that the client gets. ``hides_limits``: it has limits of ours, so that those of
        the model's server would mislead. Model servers answer any Origin with leave to read: passed
        on, every web page could use the models."""
        prefixes = ("access-control-", "x-ratelimit-") if hides_limits else ("access-control-",)
        dropped = _NOT_RETURNED
        if connection := self.header("connection"):
            dropped = dropped | names_in(connection)
        headers = [
            (name, value)
            for name, value in self.headers
            if (key := name.lower()) not in dropped and not key.startswith(prefixes)
        ]
        if is_stream:
            # nginx would collect a stream until its buffer is full.
            headers.append(("X-Accel-Buffering", "no"))
        elif self.length is not None and self.status not in _BODILESS:
            # As it was understood, not as it was written: not every client reads "7, 7".
            headers.append(("Content-Length", str(self.length)))
        return headers


def read_head(data: bytes) -> tuple[AnswerHead | None, int]:
    """The head of the answer proper and where its body begins; None, and where that head begins,
    where more has to come. "100 Continue" and its like come before the answer. Raises NotHttp
    (RFC 9112, section 6.3)."""
    start = 0
    while True:
        end = data.find(b"\r\n\r\n", start)
        begun = data[start : start + 60]
        size = (end if end >= 0 else len(data)) - start
        if size > _MAX_BYTES:
            raise NotHttp(f"the answer's head is longer than {_MAX_BYTES >> 10} KB: {begun!r}")
        if end < 0:
            if not b"HTTP/1.".startswith(begun[:7]):
                raise NotHttp(f"what came is not an HTTP answer: {begun!r}")
            return None, start
        status_line, *lines = data[start:end].split(b"\r\n")
        match = _STATUS_LINE.match(status_line)
        if not match:
            raise NotHttp(f"what came is not an HTTP answer: {status_line[:60]!r}")
        start = end + 4
        minor, status = int(match[1]), int(match[2])
        if status >= 200:
            headers = [_header(line) for line in lines]
            joined: dict[str, str] = {}
            for name, value in headers:
                key = name.lower()
                joined[key] = f"{joined[key]}, {value}" if key in joined else value
            length, is_chunked = _framing(status, joined)
            persistent = joined.get("connection", "").lower()
            keeps_alive = "close" not in persistent and (minor == 1 or "keep-alive" in persistent)
            reason = (match[3] or b"").decode("latin-1")
            head = AnswerHead(
                minor, status, reason, headers, joined, length, is_chunked, keeps_alive
            )
            return head, start


def names_in(connection: str) -> set[str]:
    """The headers that a Connection header names as hop-by-hop."""
    return {name.strip().lower() for name in connection.split(",")}


@dataclass(frozen=True)
class ClientHead:
    """What is known of the head of an answer before it comes: the client speaks HTTP 1.``minor``,
    its connection goes on afterwards if ``keeps_alive``, and it gets these ``headers`` of ours."""

    minor: int
    keeps_alive: bool
    headers: Headers

    @classmethod
    def of(cls, fields: list[Any]) -> ClientHead:
        """From ``fields``, as they come out of JSON."""
        minor, keeps_alive, headers = fields
        return cls(minor, keeps_alive, headers)

    def fields(self) -> list[Any]:
        return [self.minor, self.keeps_alive, self.headers]

    def write(self, status: int, reason: str, headers: Headers, length: int | None) -> bytes:
        """The head of an answer with the model's server's ``headers``."""
        theirs = {name.lower() for name, _ in headers}
        lines = [f"HTTP/1.{self.minor} {status} {reason}"]
        lines += [f"{name}: {value}" for name, value in headers]
        for name, value in self.headers:
            if name == "Server" and "server" in theirs:
                lines.append(f"Via: {value}")
            elif name != "Date" or "date" not in theirs:
                lines.append(f"{name}: {value}")
        if self.is_framed(length):
            lines.append("Transfer-Encoding: chunked")
        if not self.goes_on(length):
            lines.append("Connection: close")
        elif not self.minor:
            lines.append("Connection: Keep-Alive")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def is_framed(self, length: int | None) -> bool:
        """Whether the body goes out in chunks."""
        return length is None and self.minor == 1

    def goes_on(self, length: int | None) -> bool:
        """Whether the connection is kept after the answer: where its end shows without that."""
        return self.keeps_alive and (length is not None or self.minor == 1)


@functools.lru_cache(256)  # a server says mostly the same
def _header(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    # A bare CR or LF would be one header here and two to the client.
    if not colon or not _NAME.fullmatch(name) or _NOT_IN_A_VALUE.search(value):
        raise NotHttp(f"a header is not well formed: {line[:60]!r}")
    return name.decode("latin-1"), value.strip().decode("latin-1")


def _framing(status: int, headers: Mapping[str, str]) -> tuple[int | None, bool]:
    """The body's declared length, and whether it is chunked."""
    if status in _BODILESS:
        return 0, False
    encoding = headers.get("transfer-encoding", "").lower()
    if encoding == "chunked":
        return None, True
    if encoding:
        raise NotHttp(f"the answer's transfer encoding is not known: {encoding[:60]!r}")
    declared = headers.get("content-length", "")
    if _LENGTH.fullmatch(declared):
        return int(declared), False
    lengths = {value.strip() for value in declared.split(",")} - {""}
    if not lengths:
        return None, False
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise NotHttp("the answer's Content-Length is not one number")
    return int(length), False
