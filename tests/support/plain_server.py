"""A model server of no known mode: it answers any POST, with the text of its body's ``say`` as the
type ``kind`` where there is one. With --silent it answers none."""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"status": "ok"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(f"asked at {self.path}", flush=True)
        if "--silent" in sys.argv:
            threading.Event().wait()
        asked = json.loads(body)
        if "say" in asked:
            self.send(asked["say"].encode(), asked["kind"])
        else:
            self.answer({"path": self.path, "asked": asked})

    def answer(self, content: object) -> None:
        self.send(json.dumps(content).encode(), "application/json")

    def send(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
