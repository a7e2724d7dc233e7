"""What is measured, as processes of the bench's own: the upstream, nginx and the program.

Each is a context manager that ends what it started, whatever happens inside.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
START_TIMEOUT = 30.0
STOP_TIMEOUT = 20.0
MODEL, COLD_MODEL = "bench", "bench-cold"
COLD_BOOT = 1.0  # seconds that the cold model takes to open its port

# Relative paths are under the folder given with -p.
NGINX_CONFIG = """\
worker_processes auto;
error_log stderr;
pid nginx.pid;
daemon off;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 1000000;
    upstream model {{
        server 127.0.0.1:{upstream_port};
        keepalive 256;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


class BenchError(Exception):
    """A server could not be started or asked; the message says which and why."""


@dataclass(frozen=True)
class Program:
    """LLM-Manager, serving. `start_seconds` is from its start to its `Listening` line; `token`
    makes who sends it an admin."""

    port: int
    pid: int
    start_seconds: float
    token: str

    def memory_mb(self) -> float:
        """Resident memory of the serving process, its children not counted."""
        try:
            rss: int = psutil.Process(self.pid).memory_info().rss
        except psutil.Error as error:
            raise BenchError(f"the program's memory cannot be read: {error}") from error
        return rss / 2**20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def post(port: int, path: str, body: dict[str, object], token: str = "") -> None:
    """Make one JSON request and read its answer whole. Raises BenchError unless it succeeds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"POST {path}: {error!r}") from error
    finally:
        connection.close()
    if answer.status >= 300:
        raise BenchError(f"POST {path}: {answer.status} {text[:500]}")


def post_chat(port: int, model: str) -> None:
    """Have one chat answered. Raises BenchError if it is not."""
    messages = [{"role": "user", "content": "Hello"}]
    post(port, "/v1/chat/completions", {"model": model, "messages": messages})


@contextlib.contextmanager
def process(
    arguments: list[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, its output in `log`, in a session of its own so that only we end it; `env`
    is added to the environment."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_TIMEOUT)
        finally:  # also after a second Ctrl-C
            child.kill()
            child.wait()


def end_left_in(folder: Path) -> None:
    """Kill what still has `folder` as its working directory.

    Models do: a program that crashed has left its own running, and they have no parent by
    which to find them.
    """
    for left in psutil.process_iter(["cwd"]):
        if left.info["cwd"] == str(folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()


def check_alive(child: subprocess.Popen[bytes], name: str, log: Path) -> None:
    if child.poll() is not None:
        last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BenchError(f"{name} ended with code {child.returncode}:\n{last_lines}")


def wait_for_chat(child: subprocess.Popen[bytes], name: str, port: int, log: Path) -> None:
    """Return as soon as a chat request is answered."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        with contextlib.suppress(BenchError):
            post_chat(port, MODEL)
            return
        check_alive(child, name, log)
        time.sleep(0.001)
    raise BenchError(f"{name} has not answered within {START_TIMEOUT:.0f} s")


def upstream_command(boot: float = 0.0) -> list[str]:
    """The bench's model server; it listens on `PORT`, or on a `--port` added to this."""
    return [sys.executable, str(HERE / "upstream.py"), "--boot", str(boot)]


@contextlib.contextmanager
def upstream(log: Path, boot: float = 0.0) -> Iterator[int]:
    """The model server alone, once it answers; its port."""
    port = free_port()
    with process([*upstream_command(boot), "--port", str(port)], log) as child:
        wait_for_chat(child, "the upstream", port, log)
        yield port


def find_nginx() -> str | None:
    """Where nginx is; Debian has it in a folder that is not on every user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which("nginx", path=path)


@contextlib.contextmanager
def nginx(executable: str, folder: Path, upstream_port: int) -> Iterator[int]:
    """nginx before the upstream, unbuffered and with kept connections; its port."""
    port, log = free_port(), folder / "nginx.log"
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(port=port, upstream_port=upstream_port))
    with process([executable, "-p", str(folder), "-c", str(config)], log) as child:
        wait_for_chat(child, "nginx", port, log)
        yield port


def measured_models() -> dict[str, dict[str, object]]:
    """Two models: one to measure with, one with a boot time to be started cold."""

    def model(boot: float) -> dict[str, object]:
        scheme = {"required_devices": [], "command": upstream_command(boot), "memory_mb": {}}
        return {"mode": "Chat", "upstream": scheme}

    return {MODEL: model(0.0), COLD_MODEL: model(COLD_BOOT)}


def program_config(
    port: int, models: Mapping[str, object], settings: Mapping[str, object] | None = None
) -> dict[str, object]:
    """A config with these models, each of which stays up unless it says otherwise."""
    return {
        "program": {
            "host": "127.0.0.1",
            "port": port,
            "alive_time": 0,
            **(settings or {}),
        },
        "Local-Models": models,
    }


@contextlib.contextmanager
def program(
    wsgi: Path,
    folder: Path,
    models: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """LLM-Manager with these models, or those to measure with, once it listens."""
    port, log = free_port(), folder / "program.log"
    config = folder / "config.yaml"
    entries = program_config(port, models or measured_models(), settings)
    config.write_text(json.dumps(entries, indent=2))  # JSON is YAML
    data = folder / "data"
    arguments = [sys.executable, str(wsgi), "--config", str(config), "--data-dir", str(data)]
    started = time.monotonic()
    try:
        with process(arguments, log, env) as child:
            while b"Listening on http://" not in log.read_bytes():
                check_alive(child, "the program", log)
                if time.monotonic() - started > START_TIMEOUT:
                    raise BenchError(f"the program has not listened within {START_TIMEOUT:.0f} s")
                time.sleep(0.002)
            try:
                seconds = time.monotonic() - started
                written = data / "admin-token"  # not by versions before there was one
                token = written.read_text().strip() if written.exists() else ""
                yield Program(port, child.pid, seconds, token)
            except BenchError:
                check_alive(child, "the program", log)  # if that is why, say its last words
                raise
    finally:
        end_left_in(folder)
