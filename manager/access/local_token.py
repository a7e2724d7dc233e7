"""The local token: it makes an admin of the machine's owner, who can read the data folder.

A script sends the token itself. A browser is given a link with a code that is good once and for
some minutes, so that no address, history or list of processes ever holds the token.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from manager.access import credentials
from manager.storage import data_dir as datadir

log = logging.getLogger(__name__)

FILE = "admin-token"
NAME = "local token"
"""The name of its user in the audit table."""
LINK_SECONDS = 600
_PAGE = "open.html"
_TOKEN = re.compile(r"[!-~]{32,256}")
_CODE = re.compile(r"([1-9]\d{0,11})\.[\w-]{22}\.[0-9a-f]{64}", re.ASCII)

_Stamp = tuple[int, ...]


class LocalTokenError(Exception):
    """There is no readable token; the message says why and what to do."""


def read(data_dir: Path) -> str:
    """The token, for what runs as the same user on this machine. Raises LocalTokenError."""
    path = data_dir / FILE
    try:
        found = _parse(datadir.read_private(path))
    except OSError as error:
        raise LocalTokenError(f"{path} cannot be read: {error}") from None
    if found is None:
        raise LocalTokenError(
            f"{path} is missing, or is not readable by its owner alone: start LLM-Manager, which"
            " writes it, or say with --data-dir where its data is"
        )
    return found


def is_token_of(data_dir: Path, secret: str) -> bool:
    """Whether it is the token; False where none can be read."""
    try:
        return _is_same(read(data_dir), secret)
    except LocalTokenError:
        return False


def sign_in_link(address: str, token: str, now_ms: int) -> str:
    """A link that signs a browser in, once and within `LINK_SECONDS`. The code is in the fragment,
    which no browser sends and no log of requests has. ``address`` is where the pages are."""
    expires = now_ms // 1000 + LINK_SECONDS
    nonce = secrets.token_urlsafe(16)
    return f"{address.rstrip('/')}/login/link#{expires}.{nonce}.{_sign(token, expires, nonce)}"


def redirect_page(data_dir: Path, link: str) -> Path:
    """A page in the data folder, for its owner alone, that leads a browser to the link. A browser
    is started with its address: every user of the machine can read what a process was started
    with, and would be faster than the browser. Raises OSError."""
    path = data_dir / _PAGE
    text = f'<!doctype html><meta http-equiv="refresh" content="0;url={link}"><title></title>\n'
    datadir.write_private(path, text.encode())
    return path.absolute()


class LocalToken:
    """The program's side: the token as its file has it now. Who replaces the file ends what was
    signed in with the token before; who removes it, all of that until the next start."""

    def __init__(self, data_dir: Path, monotonic: Callable[[], float] | None = None) -> None:
        """Writes the file where there is none that is private. With a clock (seconds), links that
        were made before now are not accepted: which of them were used is not known any more.
        Raises OSError."""
        self._path = data_dir / FILE
        self._monotonic = monotonic
        self._began = monotonic() if monotonic is not None else 0.0
        self._lock = threading.Lock()
        # Signatures of links. None is forgotten: a clock that is set back makes them new again.
        self._used: set[str] = set()
        self._known: tuple[_Stamp, str | None] = ((), None)
        if os.path.lexists(self._path) and self.value is None:
            log.warning("%s was not private and is replaced: scripts need the new one", self._path)
        if self.value is None:
            secret = credentials.new_secret(credentials.TOKEN_PREFIX)
            datadir.write_private(self._path, f"{secret}\n".encode())

    @property
    def value(self) -> str | None:
        """None where the file is missing, or is not private any more."""
        try:
            state = os.lstat(self._path)
        except OSError:
            return None
        stamp = (
            *(state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size),
            *(state.st_mode, state.st_uid),
        )
        known, value = self._known
        if stamp != known:
            try:
                value = _parse(datadir.read_private(self._path))
            except OSError as error:
                log.error("%s cannot be read: %s", self._path, error)
                return None
            self._known = (stamp, value)
        return value

    def check(self, secret: str) -> str | None:
        """The generation where this is the token, compared in constant time; else None."""
        value = self.value
        if value is None or not _is_same(value, secret):
            return None
        return _generation(value)

    def is_session(self, generation: str) -> bool:
        """Whether a session of this generation was begun with the current token."""
        value = self.value
        return value is not None and _is_same(_generation(value), generation)

    def accept(self, code: str, now_ms: int) -> str | None:
        """The generation where the code of a link is good, which uses it up; else None."""
        value, now = self.value, now_ms // 1000
        matched = _CODE.fullmatch(code)
        if value is None or matched is None:
            return None
        expires = int(matched[1])
        signed, _, signature = code.rpartition(".")
        nonce = signed.partition(".")[2]
        if not _is_same(_sign(value, expires, nonce), signature):
            return None
        if not now < expires <= now + LINK_SECONDS:
            return None
        if expires - LINK_SECONDS < self._started(now_ms):
            return None
        with self._lock:
            if signature in self._used:
                return None
            self._used.add(signature)
        return _generation(value)

    def _started(self, now_ms: int) -> int:
        """When the program began, by the wall clock as it is now: epoch seconds."""
        if self._monotonic is None:
            return 0
        return (now_ms - round((self._monotonic() - self._began) * 1000)) // 1000


def _parse(content: bytes | None) -> str | None:
    text = (content or b"").decode("ascii", "replace").strip()
    return text if _TOKEN.fullmatch(text) else None


def _generation(token: str) -> str:
    """What sessions remember of the token that they were begun with: it does not reveal it."""
    return _sign(token, "session")


def _sign(token: str, *parts: object) -> str:
    message = ".".join(map(str, parts)).encode()
    return hmac.new(token.encode(), message, hashlib.sha256).hexdigest()


def _is_same(one: str, other: str) -> bool:
    return credentials.is_same(credentials.digest(one), credentials.digest(other))
