"""A recording that is larger than what the program may hold in memory."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests.support.fixtures import Launch
from tests.support.program import PATIENCE, Program, media

GIGABYTE = 1 << 30
PIECE = bytes(range(256)) * 4096
MB = 1 << 20
ALLOWED_MB = 32
BOUNDARY = "0123456789abcdef0123456789abcdef"
BEFORE = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
).encode()
BEHIND = (
    f'\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\nWhisper'
    f"\r\n--{BOUNDARY}--\r\n"
).encode()


def form() -> Iterator[bytes]:
    yield BEFORE
    for _ in range(GIGABYTE // len(PIECE)):
        yield PIECE
    yield BEHIND


def peak_mb(process: psutil.Process) -> float:
    """The most memory that it has had since ``forget_peak``."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def forget_peak(process: psutil.Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def transcribe(program: Program) -> dict[str, object]:
    address = urlsplit(program.url)
    connection = http.client.HTTPConnection(
        str(address.hostname), address.port, timeout=4 * PATIENCE
    )
    length = len(BEFORE) + GIGABYTE + len(BEHIND)
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    headers = {"Content-Type": kind, "Content-Length": str(length)}
    connection.request("POST", "/v1/audio/transcriptions", form(), headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    found: dict[str, object] = json.loads(answer.read())
    connection.close()
    return found


def test_a_recording_of_a_gigabyte_is_forwarded_and_takes_no_memory(launch: Launch) -> None:
    changes = {"set": {"language": "en"}}
    models = {"Whisper": media("Transcription", served_model_name="large", request=changes)}
    program = launch(models, max_body_mb=2000)
    program.command("Whisper", "start")
    program.becomes("Whisper", state="ready")
    processes = [psutil.Process(program.pid), *program.relays()]
    before = [process.memory_info().rss / MB for process in processes]
    for process in processes:
        forget_peak(process)

    found = transcribe(program)

    digest = hashlib.sha256()
    for _ in range(GIGABYTE // len(PIECE)):
        digest.update(PIECE)
    assert found["files"] == [["file", "a.wav", GIGABYTE, digest.hexdigest()]]
    assert found["fields"] == [["model", "large"], ["language", "en"]]
    grown = [peak_mb(one) - mb for one, mb in zip(processes, before, strict=True)]
    assert max(grown) < ALLOWED_MB, before
