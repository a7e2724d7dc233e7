"""The running program of a data folder, as its owner's commands see it: over HTTP, as the admin
that the local token makes. `http.client` is enough for that: no proxy and no redirect is followed.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psutil

from commands import options
from commands.options import CommandError
from manager.access import LocalTokenError, local_token
from manager.storage import data_dir

_TIMEOUT_SECONDS = 20.0  # a stream of events has a sign of life every 15 seconds
_MAX_LINES = 1000  # of a log, at the end of a start
# On systems where a socket on `::` does not listen on IPv4, another user could listen there.
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Client:
    """Calls of the API. The address is that on which the program of the folder's lock listens: the
    token is sent to nobody else."""

    def __init__(self, folder: Path) -> None:
        """Raises CommandError where no program runs on the folder, or its token cannot be read."""
        self._folder = folder
        pid = data_dir.owner(folder)
        if pid is None:
            raise CommandError(f"LLM-Manager does not run on {folder}: start it, or say --data-dir")
        self._process, self._address = find_listener(pid)
        try:
            self._token = local_token.read(folder)
        except LocalTokenError as error:
            raise CommandError(str(error)) from error

    @property
    def url(self) -> str:
        """Where a browser of this machine finds the pages, with a slash at the end."""
        return pages_url(*self._address)

    def is_running(self) -> bool:
        return self._process.is_running()

    def sign_in_page(self) -> tuple[str, Path]:
        """A link that signs a browser in as admin, and a private file that leads a browser there.
        Raises OSError."""
        link = local_token.sign_in_link(self.url, self._token, options.now_ms())
        return link, local_token.redirect_page(self._folder, link)

    def models(self) -> list[dict[str, Any]]:
        """Raises CommandError, as all calls do."""
        found: list[dict[str, Any]] = self._call("GET", "/api/models")["models"]
        return found

    def models_are_open(self) -> bool:
        """Whether `/v1` takes requests without an API key."""
        found: bool = self._call("GET", "/api/session")["models_are_open"]
        return found

    def about(self) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", "/api/about")
        return found

    def devices(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "/api/devices")["devices"]
        return found

    def preview(self, name: str, entry: str) -> dict[str, Any]:
        """What a start of a model with this entry would do; see `POST /api/config/preview`."""
        body = {"name": name, "entry": entry}
        found: dict[str, Any] = self._call("POST", "/api/config/preview", body)
        return found

    def config_fault(self) -> str | None:
        """What keeps the config's file from being in use, as far as it is watched: see
        `GET /api/config/file`."""
        found = self._call("GET", "/api/config/file")
        if found["waiting"]:
            return str(found["waiting"]["message"])
        lines = (f"line {one['line']}: {one['message'] or 'wrong'}" for one in found["problems"])
        return "; ".join(lines) or None

    def reload(self) -> None:
        self._call("POST", "/api/config/reload")

    def start(self, name: str) -> Iterator[str]:
        """Starts a model that does not run. The lines of its log until it answers. Raises
        CommandError where it does not come to that."""
        path = f"/api/models/{quote(name, safe='')}"
        # The last line of an earlier run comes first.
        skipped = len(self._log(path, 1))
        query = urlencode({"only": "model", "log": f"model/{name}", "lines": 1})
        with self._opened("GET", f"/api/events?{query}") as response:
            events = _events(response)
            # First all is reported as it is: what comes for this model then is of this start.
            next((view for kind, view in events if kind == "model" and view["name"] == name), None)
            self._call("POST", f"{path}/start")
            shown = 0
            for kind, found in events:
                if kind == "lines":
                    lines, skipped = found[skipped:], 0
                    shown += len(lines)
                    yield from lines
                elif kind == "model" and found["name"] == name:
                    if found["state"] == "ready":  # which may be known before the last lines are
                        yield from self._log(path, _MAX_LINES)[shown:]
                        return
                    if found["state"] in ("failed", "stopped"):
                        # It may be of a model of that name that was removed just before.
                        now = self._call("GET", path)
                        if now["state"] in ("failed", "stopped"):
                            raise CommandError(f"{name} did not start: {now['last_error']}")
        raise CommandError(f"{self.url} does not answer any more")

    def _log(self, path: str, lines: int) -> list[str]:
        """The last lines of the model's latest run."""
        with self._opened("GET", f"{path}/logs?lines={lines}") as log:
            return log.read().decode().splitlines()

    def refresh_devices(self) -> None:
        self._call("GET", "/api/devices")

    def start_auto_start(self) -> None:
        for model in self._call("GET", "/api/config")["models"]:
            if model["auto_start"]:
                self._call("POST", f"/api/models/{quote(model['name'], safe='')}/start")

    def stop_all(self) -> None:
        self._call("POST", "/api/models/stop")

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        with self._opened(method, path, body) as response:
            return json.loads(response.read())

    @contextmanager
    def _opened(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """An answer to read, which is no refusal."""
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_SECONDS)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        sent = json.dumps(body or {}) if method == "POST" else None
        try:
            connection.request(method, path, body=sent, headers=headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise CommandError(json.loads(response.read())["error"]["message"])
            yield response
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CommandError(f"{self.url} does not answer: {error}") from error
        finally:
            connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """The kind and the data of each server-sent event."""
    kind = ""
    for line in response:
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def pages_url(host: str, port: int) -> str:
    """Where a browser on this machine finds the program that listens there."""
    host = _ANY_HOST.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def find_listener(pid: int) -> tuple[psutil.Process, tuple[str, int]]:
    """The process, and the address where this machine reaches it. Raises CommandError."""
    try:
        process = psutil.Process(pid)
        is_new = hasattr(process, "net_connections")  # since psutil 6
        sockets = (process.net_connections if is_new else process.connections)("inet")
    except psutil.Error as error:
        raise CommandError(f"LLM-Manager (pid {pid}) cannot be examined: {error}") from None
    for socket in sockets:
        if socket.status == psutil.CONN_LISTEN:
            host, port = socket.laddr
            return process, (_ANY_HOST.get(host, host), port)
    raise CommandError(f"LLM-Manager (pid {pid}) does not listen yet: try again in a moment")
