"""Where one HTTP request ends and the next begins: what is doubtful there is refused.

waitress reads some heads kindly that a proxy before it may read otherwise; a request could hide
behind another. RFC 9112 is meant by the numbers below.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from waitress.buffers import OverflowableBuffer
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.utilities import BadRequest, RequestHeaderFieldsTooLarge

log = logging.getLogger(__name__)

MAX_HEADERS = 256
_MAX_LINE = 4096  # bytes, of a chunk's size or of a trailer
_MAX_TRAILERS = 32
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_REQUEST_LINE = re.compile(rb"[A-Z]+ (?P<target>[\x21-\x7e]+) HTTP/1\.(?P<minor>[01])")
_TARGET = re.compile(rb"\s*[A-Z]+ ([\x21-\x7e]+) ")
_ORIGIN = re.compile(rb"\r\nOrigin:[ \t]*([\x21-\x7e]+)[ \t]*\r\n", re.IGNORECASE)
_ABSOLUTE = re.compile(rb"https?://(?P<authority>[^/?#]+)(?:[/?].*)?", re.IGNORECASE)
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.~_!$&'()*+;=%-]*)(?::[0-9]{0,5})?")
# Extensions (";name=value") are allowed to be there, and mean nothing to us.
_CHUNK = re.compile(rb"(?P<size>[0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e]*)?")


class _NotStored(BadRequest):
    code = 507
    reason = "Insufficient Storage"


class RequestParser(HTTPRequestParser):
    """One request, as it arrives."""

    # waitress's own, which has no types.
    empty: bool
    body_rcv: Any
    path = ""  # which waitress logs, also of a request whose head could not be read
    header_plus: bytes

    def path_and_origin(self) -> tuple[str, str | None]:
        """Of a refused request, as far as its head is known."""
        if self.headers:
            return self.path, self.headers.get("ORIGIN")
        target, origin = _TARGET.match(self.header_plus), _ORIGIN.search(self.header_plus)
        return (
            target[1].decode("latin-1") if target else "",
            origin[1].decode("latin-1") if origin else None,
        )

    def received(self, data: bytes) -> int:
        """How many of the bytes belong to this request."""
        is_in_head, before = self.body_rcv is None, self.header_plus
        taken = self._received(data)
        if self.error and is_in_head and not self.headers:
            self.header_plus = before + data  # which says who is to read the refusal
        return taken

    def _received(self, data: bytes) -> int:
        try:
            taken = int(super().received(data))
        except _TooManyHeaders:
            self.error = RequestHeaderFieldsTooLarge(f"more than {MAX_HEADERS} headers")
            self.completed = self.headers_finished = True
            return len(data)
        except OSError as error:  # of the temporary file that a large body is in
            log.error("a request's body cannot be stored: %s", error)
            self.error = _NotStored(
                "The request's body cannot be stored: the temporary folder is full or read-only"
            )
            self.completed = True
            return len(data)
        if self.empty:
            # A request of line ends only. Ignored, one every now and then would
            # hold its connection for ever.
            self.empty = False
            self.error = BadRequest("There is no request before the empty line")
        if self.completed:
            # The body is complete. waitress would continue the request, with the next one's head
            # added to this one's.
            self.expect_continue = False
        return taken

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # what could not be written is tried once more
            log.debug("a request's body was not stored: %s", error)

    def parse_header(self, header_plus: bytes) -> None:
        """Raises ParsingError, which is answered with 400."""
        start, *lines = header_plus.removesuffix(b"\r\n\r\n").split(b"\r\n")
        request_line = _REQUEST_LINE.fullmatch(start)
        if request_line is None:
            raise ParsingError("The first line is not METHOD /path HTTP/1.1")
        lines = [line for line in lines if line]  # of a request that was cut for its length
        if len(lines) > MAX_HEADERS:
            raise _TooManyHeaders
        fields = [_field(line) for line in lines]
        hosts = [value for name, value in fields if name.lower() == b"host"]
        self._check_target(request_line["target"], hosts)
        if len(hosts) > 1 or (request_line["minor"] == b"1" and not hosts):
            raise ParsingError("A request has one Host header")
        if any(not _HOST.fullmatch(host) for host in hosts):
            raise ParsingError("The Host header is not a host")
        self._check_length(fields, request_line["minor"])
        head = [start, *(b"%b: %b" % field for field in fields), b"", b""]
        try:
            # In one spelling: the blanks before a value cost waitress the square of their number.
            super().parse_header(b"\r\n".join(head))
        except ValueError as error:  # a target that is no URI, a length of thousands of digits
            raise ParsingError(f"The head cannot be read: {error}") from error
        if self.chunked:
            self.body_rcv = ChunkedBody(self.body_rcv.getbuf())

    @staticmethod
    def _check_target(target: bytes, hosts: list[bytes]) -> None:
        """A path, or a whole URI of the host that is also in the header (3.2): what checks the
        one must not be led past by the other. No proxy is here to take anything else."""
        if target.startswith(b"/"):
            return
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or [absolute["authority"].lower()] != [host.lower() for host in hosts]:
            raise ParsingError("What is asked for is neither a path nor a URI of this Host")

    @staticmethod
    def _check_length(fields: list[tuple[bytes, bytes]], minor: bytes) -> None:
        """Of a body there is one length, in one way (6.1, 6.3)."""
        lengths = [value for name, value in fields if name.lower() == b"content-length"]
        codings = [value for name, value in fields if name.lower() == b"transfer-encoding"]
        if len(lengths) + len(codings) > 1:
            raise ParsingError("The body's length is there twice")
        if codings and (codings[0].lower() != b"chunked" or minor != b"1"):
            raise ParsingError("The only Transfer-Encoding is chunked, in HTTP/1.1")


class ChunkedBody:
    """The body of a request in chunks (7.1), for waitress's parser."""

    def __init__(self, buffer: OverflowableBuffer) -> None:
        self.completed = False
        self.error: BadRequest | None = None
        self._buffer = buffer
        self._left = 0  # bytes of the chunk that has begun
        self._line = b""  # as much of a line as there is
        self._await = self._size
        self._trailers = 0

    def __len__(self) -> int:
        return int(self._buffer.__len__())

    def received(self, data: bytes) -> int:
        """How many of the bytes belong to this body."""
        before = len(self._line)
        data = self._line + data
        self._line = b""
        at = 0
        while at < len(data) and not (self.completed or self.error):
            if self._left:
                piece = data[at : at + self._left]
                self._buffer.append(piece)
                self._left -= len(piece)
                at += len(piece)
                continue
            end = data.find(b"\r\n", at)
            if end < 0 and self._await == self._end and data[at:] != b"\r":
                self._end(data[at:])  # no more is needed to see that it is none
            elif end > at + _MAX_LINE or (end < 0 and len(data) - at > _MAX_LINE):
                self.error = BadRequest("A line between the chunks is too long")
            elif end < 0:
                self._line = data[at:]
                at = len(data)
            else:
                self._await(data[at:end])
                at = end + 2
        return (len(data) if self.error else at) - before

    def getfile(self) -> Any:
        return self._buffer.getfile()

    def getbuf(self) -> OverflowableBuffer:
        return self._buffer

    def _size(self, line: bytes) -> None:
        size = _CHUNK.fullmatch(line)
        if size is None:
            self.error = BadRequest("A chunk's size is not one")
            return
        self._left = int(size["size"], 16)
        self._await = self._end if self._left else self._trailer

    def _end(self, line: bytes) -> None:
        if line:
            self.error = BadRequest("A chunk is longer than its size")
        self._await = self._size

    def _trailer(self, line: bytes) -> None:
        """What follows the last chunk is checked and discarded (7.1.2)."""
        if not line:
            self.completed = True
            return
        self._trailers += 1
        if self._trailers > _MAX_TRAILERS:
            self.error = BadRequest("There are too many trailers")
            return
        try:
            _field(line)
        except ParsingError as error:
            self.error = BadRequest(str(error))


class _TooManyHeaders(Exception):
    pass


def _field(line: bytes) -> tuple[bytes, bytes]:
    """A header's name and value. Raises ParsingError."""
    name, colon, value = line.partition(b":")
    # A line that begins with a blank, which once went on with the one before, has no such name.
    if not colon or not _NAME.fullmatch(name):
        raise ParsingError("A header is not NAME: VALUE")
    if _CONTROLS.search(value):
        raise ParsingError("A header's value has a control character")
    return name, value.strip(b" \t")
