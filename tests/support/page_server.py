"""A model server with pages: the files of a folder, and an account of each request elsewhere.

    PORT=9001 python tests/support/page_server.py FOLDER

It answers any method at any path. ``/moved?to=X`` leads to X, and a chat reports its tokens. Each
request is a line of ``requests.jsonl`` in the folder. Whatever a header could do to the origin that
it answers at, it tries.
"""

from __future__ import annotations

import json
import mimetypes
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

SEEN = "requests.jsonl"
KEPT = 4096  # bytes of a body there
HOSTILE = {
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Allow-Origin": "*",
    "Alt-Svc": 'h2=":1"',
    "Clear-Site-Data": '"cookies", "storage"',
    "Content-Security-Policy": "default-src *",
    "Content-Security-Policy-Report-Only": "default-src 'none'; report-uri /spy",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "NEL": '{"report_to": "spy", "max_age": 1000}',
    "Report-To": '{"group": "spy", "max_age": 1000, "endpoints": []}',
    "Reporting-Endpoints": 'spy="/spy"',
    "Service-Worker-Allowed": "/",
    "Set-Cookie": "planted=1; Path=/",
    "Set-Cookie2": "planted=1",
    "Set-Login": "logged-out",
    "Strict-Transport-Security": "max-age=1000",
    "WWW-Authenticate": 'Basic realm="LLM-Manager"',
}
USAGE = {"prompt_tokens": 11, "completion_tokens": 4}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = Path()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        seen: dict[str, Any] = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body.decode("latin-1"),
        }
        with (self.folder / SEEN).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**seen, "body": seen["body"][:KEPT]}) + "\n")
        address = urlsplit(self.path)
        file = self.folder / (address.path.strip("/") or "index.html")
        if address.path == "/moved":
            self._send(302, b"", "text/plain", {"Location": parse_qs(address.query)["to"][0]})
        elif self.headers.get("If-None-Match") == "here":
            self._send(304, b"", "text/plain", {})
        elif self.command in ("GET", "HEAD") and file.is_file():
            kind = mimetypes.guess_type(file.name)[0] or "text/plain"
            self._send(200, file.read_bytes(), kind, {"Accept-Ranges": "bytes"})
        elif address.path.endswith("/chat/completions"):
            choice = {"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
            self._send_json({"choices": [choice], "usage": USAGE})
        else:
            self._send_json(seen)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer

    def _send_json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), "application/json", {})

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HOSTILE, **headers, "Content-Type": kind}.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


if __name__ == "__main__":
    Handler.folder = Path(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
