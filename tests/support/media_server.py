"""A model server for recordings, speech and pictures. What it is asked for says how it answers:

- a form: its fields and files, as JSON, as text, or with ``stream`` as OpenAI's events. With the
  ``prompt`` "cut" a stream ends before its last event, with "vllm" it is as vLLM's.
- ``/v1/audio/speech``: bytes in two pieces. With the ``input`` "wait" the second comes once the
  voices were asked for. The voice "alloy" is refused, with the status in its arguments or 400.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from werkzeug.formparser import MultiPartParser
from werkzeug.wsgi import LimitedStream

TOKENS = {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "total_tokens": 17}
WORDS = ["one", " two", " three"]
SOUND = [b"\xff\xf3first", b"\x00second"]
_voices_asked = threading.Event()


class Digest:
    """A file that is not kept."""

    def __init__(self, *_: object, **__: object) -> None:
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.size += len(data)
        self.sha256.update(data)

    def seek(self, _offset: int) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/v1/audio/voices"):
            _voices_asked.set()
        self.answer_json({"path": self.path})

    def do_POST(self) -> None:
        print(f"asked at {self.path}", flush=True)
        if self.headers.get_content_type() == "multipart/form-data":
            self.answer_form()
            return
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("voice") == "alloy":
            status = int(sys.argv[1]) if len(sys.argv) > 1 else 400
            self.answer_json({"error": {"message": "no voice alloy"}}, status)
        elif asked.get("stream"):
            kinds = ("partial_image", "completed")
            events = [{"type": f"image_generation.{kind}", "b64_json": "x"} for kind in kinds]
            self.answer_events([*events[:-1], {**events[-1], "usage": TOKENS}])
        elif "input" in asked:
            self.answer_pieces(self.sound(asked), "audio/mpeg")
        else:
            self.answer_json({"path": self.path, "asked": asked, "usage": TOKENS})

    def answer_form(self) -> None:
        boundary = self.headers.get_param("boundary")
        length = int(self.headers["Content-Length"])
        fields, files = MultiPartParser(stream_factory=Digest).parse(
            LimitedStream(self.rfile, length), str(boundary).encode(), length
        )
        digests: list[tuple[str, str | None, int, str]] = [
            (name, file.filename, file.stream.size, file.stream.sha256.hexdigest())
            for name, file in files.items(multi=True)
        ]
        prompt, text = fields.get("prompt"), "".join(WORDS)
        if fields.get("stream") == "true" and prompt == "vllm":
            choices = [{"delta": {"content": word}, "finish_reason": None} for word in WORDS]
            choices.append({"delta": {}, "finish_reason": "stop"})
            self.answer_events(
                [
                    *({"object": "transcription.chunk", "choices": [one]} for one in choices),
                    "[DONE]",
                ]
            )
        elif fields.get("stream") == "true":
            events: list[Any] = [{"type": "transcript.text.delta", "delta": word} for word in WORDS]
            last = {"type": "transcript.text.done", "text": text, "usage": TOKENS}
            self.answer_events(events if prompt == "cut" else [*events, last])
        elif fields.get("response_format") == "text":
            self.answer_pieces([text.encode(), b"\n"], "text/plain; charset=utf-8")
        else:
            seen = {"path": self.path, "fields": list(fields.items(multi=True)), "files": digests}
            usage = TOKENS if prompt == "tokens" else {"type": "duration", "seconds": 9}
            self.answer_json({"text": text, **seen, "usage": usage})

    def sound(self, asked: dict[str, Any]) -> Iterable[bytes]:
        first, second = SOUND
        yield first
        if asked["input"] == "wait":
            _voices_asked.wait()
        yield second

    def answer_json(self, content: object, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer_events(self, events: Iterable[Any]) -> None:
        lines = (event if isinstance(event, str) else json.dumps(event) for event in events)
        self.answer_pieces((f"data: {line}\n\n".encode() for line in lines), "text/event-stream")

    def answer_pieces(self, pieces: Iterable[bytes], kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
