"""Runs the program, sends it requests, and checks that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil
import pytest
import requests
import yaml

from manager.access import local_token
from tests.support import nvidia_smi
from tests.support.cards import Cards

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "support" / "fake_upstream.py"
PLAIN = Path(__file__).with_name("plain_server.py")
MEDIA = Path(__file__).with_name("media_server.py")
CHAT = "/v1/chat/completions"
PASSWORD = "a long secret word"
NOBODY = {"Authorization": None}
"""Headers of a request without the local token."""
PLACES = 4  # for requests, of which pages may hold one
FEW_THREADS = 32 + PLACES

# The program's own mark on every process of a model, and the tests', which distinguishes their
# programs from others that run at the same time. (A model inherits nothing that begins like the
# first.)
RUN = "LLM_MANAGER_RUN"
MARK = "TEST_OF_LLM_MANAGER"
SECRET = re.compile(rb"[st]k-llm-[\w-]{20,}")
PATIENCE = 30.0  # seconds after which something will not happen any more

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = PATIENCE) -> T:
    """The first true value of the condition. Raises AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} seconds, still {value!r}"
        time.sleep(0.02)
    return value


def background(function: Callable[[], T]) -> Future[T]:
    """Calls the function in a thread of its own."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future


def free_port() -> int:
    """A port that nothing listens on, outside of the ranges of models and of the system."""
    while True:
        port = random.randrange(31000, 32768)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def needs_demo_model() -> None:
    """Skip the test where set-up has not put the demo model, or llama.cpp does not load."""
    advice = "needs: python3 scripts/setup.py --dev"
    pytest.importorskip("xllamacpp", reason=advice, exc_type=ImportError)
    if not list((ROOT / "data" / "models").glob("SmolLM2-*.gguf")):
        pytest.skip(advice)


def fake(
    *flags: object, mode: str = "Chat", prefix: Sequence[object] = (), **settings: Any
) -> dict[str, Any]:
    """A model for the config whose server is the fake upstream; `prefix` runs its command."""
    command = [*prefix, sys.executable, FAKE, "--mode", mode, *flags]
    return {"mode": mode, **settings, "Default": {"command": [str(part) for part in command]}}


def scheme(
    memory: Mapping[str, int],
    *flags: object,
    required: Sequence[str] | None = None,
    takes: Sequence[int] | None = None,
    prefix: Sequence[object] = (),
) -> dict[str, Any]:
    """A scheme whose server takes what it declares. `memory` is by device, in the driver's
    order; `required` where it is not one of each; `takes` what it really takes of each card."""
    required = list(memory) if required is None else list(required)
    takes = [memory[name] for name in required] if takes is None else takes
    command = [*prefix, sys.executable, FAKE, *flags, "--takes", *takes]
    return {
        "required_devices": required,
        "memory_mb": dict(memory),
        "command": [str(part) for part in command],
    }


def on(device: str, mb: int, *flags: object, **settings: Any) -> dict[str, Any]:
    """A model that takes `mb` of one device; see `scheme` for `takes` and `prefix`."""
    of_scheme = {key: settings.pop(key) for key in ("takes", "prefix") if key in settings}
    return {**settings, "Default": scheme({device: mb}, *flags, **of_scheme)}


def env_of(cards: Cards) -> dict[str, str]:
    """What a program needs that is to see these cards, and none that this machine may have."""
    folder = cards.bin.with_name("no-nvml")
    folder.mkdir(exist_ok=True)
    (folder / "pynvml.py").write_text('raise ImportError("the cards are played")\n')
    return {**cards.env, "PYTHONPATH": str(folder)}


def held_on(cards: Cards, linger: float = 0) -> dict[int, int]:
    """MB that processes hold, by the card's index, those of ended ones that linger as well."""
    held = nvidia_smi.held(str(cards.held), linger)
    return {card: mb for card, mb in held.items() if mb}


def plain(*flags: str, **settings: Any) -> dict[str, Any]:
    """A model whose server answers anything, or with `--silent` no request at all."""
    return {**settings, "Default": {"command": [sys.executable, str(PLAIN), *flags]}}


def media(mode: str, *flags: object, **settings: Any) -> dict[str, Any]:
    """A model whose server takes recordings, speaks and draws."""
    command = [sys.executable, str(MEDIA), *map(str, flags)]
    return {"mode": mode, **settings, "Default": {"command": command}}


def gated(gate: Path) -> list[str]:
    """A prefix of a command that waits until the file `gate` exists."""
    return ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.02; done; exec "$@"', str(gate)]


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that does nothing while the block runs."""
    process = psutil.Process(pid)
    process.suspend()
    try:
        # The signal is on its way only; until it is there the process goes on answering.
        eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def chat(model: str, fake: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A body for the chat endpoint; `fake` is how the fake upstream is to answer it."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return body | ({"fake": fake} if fake else {})


def error_of(response: requests.Response) -> dict[str, Any]:
    """The error of an answer, in the one shape that all of them have."""
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


def events_of(response: requests.Response) -> list[Any]:
    """The JSON of each event of a streamed answer, "[DONE]" as a string."""
    lines = [line[6:] for line in response.iter_lines() if line.startswith(b"data: ")]
    return ["[DONE]" if line == b"[DONE]" else json.loads(line) for line in lines]


def text_of(events: Sequence[Any]) -> str:
    """What a streamed chat said."""
    choices = [event["choices"][0] for event in events if isinstance(event, dict)]
    return "".join(choice["delta"].get("content", "") for choice in choices)


class Page:
    """A page's stream of server-sent events, of which it reads those of some kinds."""

    def __init__(self, response: requests.Response, kinds: Sequence[str]) -> None:
        self._response = response
        self._kinds = kinds
        self._lines = response.iter_lines()

    def next(self) -> Any:
        """The data of the next event."""
        deadline = time.monotonic() + PATIENCE
        kind = ""
        for line in self._lines:
            if line.startswith(b"event: "):
                kind = line[7:].decode()
            if line.startswith(b"data: ") and kind in self._kinds:
                return json.loads(line[6:])
            assert time.monotonic() < deadline, "only signs of life came"
        raise AssertionError("the stream has ended")

    def until(self, wanted: Callable[[Any], bool]) -> list[Any]:
        """The data of the events up to the first that is wanted, that one included."""
        deadline = time.monotonic() + PATIENCE
        seen = [self.next()]
        while not wanted(seen[-1]):
            assert time.monotonic() < deadline, f"it did not come; what came: {seen}"
            seen.append(self.next())
        return seen

    def close(self) -> None:
        self._response.close()


class Program:
    """One config and one data folder, and the program that runs on them. `env` is what it finds
    in its environment besides ours, such as that of `Cards`; `arguments` are for its command line,
    and `mark` is in the environment of all of its processes."""

    def __init__(
        self,
        folder: Path,
        models: dict[str, Any],
        wrapper: Sequence[str] = (),
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.data = folder / "data"
        self.url = ""
        self.may_log_tracebacks = False
        self.headers: dict[str, str] = {}  # of all that it is asked
        self.has_accounts = False
        self._wrapper = wrapper
        self._arguments = arguments
        self._env = dict(env or {})
        self.mark = uuid.uuid4().hex
        self._output: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(models, **settings)

    # --- its life -----------------------------------------------------------------------

    def configure(self, models: dict[str, Any], **settings: Any) -> None:
        """Writes the config; `settings` are those of `program`."""
        document = {"program": {"threads": 64, **settings}, "Local-Models": models}
        self.config.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")

    def start(self, port: int = 0) -> Program:
        """Runs it until it says that it listens, on a free port unless one is given."""
        began = len(self._output)
        options = ["--config", self.config, "--port", str(port), "--data-dir", self.data]
        self.process = subprocess.Popen(
            [*self._wrapper, sys.executable, ROOT / "wsgi.py", *options, *self._arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self._env, MARK: self.mark},
        )
        for stream in (self.process.stdout, self.process.stderr):
            threading.Thread(target=self._read, args=(stream,), daemon=True).start()

        def address() -> str | None:
            said = [line for line in self._output[began:] if line.startswith("Listening on ")]
            if not said and self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode}:\n{self.output}")
            return said[0].split()[-1] if said else None

        self.url = eventually(address)
        return self

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends it in an orderly way, which leaves no process of any model."""
        self.process.send_signal(by)
        self.ends_well()

    def ends_well(self) -> None:
        """Waits for the end of a program that was asked to end."""
        assert self.process.wait(PATIENCE * 2) == 0, self.output
        assert self.processes() == []

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def finish(self) -> None:
        """Ends what is left of it, at the end of a test."""
        try:
            if self.process.poll() is None:
                self.end()
        finally:
            if self.process.poll() is None:
                self.kill()
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            print(self.output)  # pytest shows it where the test has failed
        if not self.may_log_tracebacks:
            assert "Traceback" not in self.output
        assert self._secrets_written() == []

    def _secrets_written(self) -> list[str]:
        """Where a key's or a token's secret is that nobody should find there."""
        places = ["its output"] if SECRET.search(self.output.encode()) else []
        with contextlib.suppress(OSError):  # of a folder that was closed, or on a full disk
            for path in self.data.rglob("*"):
                is_token = path == self.data / local_token.FILE
                if path.is_file() and not is_token and SECRET.search(path.read_bytes()):
                    places.append(str(path))
        return places

    @property
    def output(self) -> str:
        """All that it has printed."""
        return "".join(self._output)

    @property
    def usage_db(self) -> Path:
        return self.data / "usage.db"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def processes(self, model: str | None = None) -> list[psutil.Process]:
        """The living processes of one model's servers, or of all."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                environment = process.environ()
                is_ours = environment.get(MARK) == self.mark and RUN in environment
                is_wanted = model in (None, environment.get("LLM_MANAGER_MODEL"))
                if is_ours and is_wanted and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The living processes that price, of this program or left behind by an earlier one."""
        return self._running("jobs.worker")

    def relays(self) -> list[psutil.Process]:
        """The living relay processes, as above."""
        return self._running("manager.streams.relay_process")

    def _running(self, module: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_ours = process.environ().get(MARK) == self.mark
                is_meant = module in process.cmdline()
                if is_ours and is_meant and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._output.append(line)

    # --- what it answers ----------------------------------------------------------------

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request, on a connection of its own: as the machine's owner, with the local token,
        or with the headers that are given; see `NOBODY`."""
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the environment is not for loopback
            if not path.startswith("/v1"):
                session.headers["Authorization"] = f"Bearer {self.local_token}"
            session.headers.update(self.headers)
            return session.request(method, self.url + path, **{"timeout": PATIENCE, **options})

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return self.request("POST", path, json={} if body is None else body, **options)

    def ask(
        self, model: str, fake: dict[str, Any] | None = None, **fields: Any
    ) -> requests.Response:
        """A chat; with `stream=True` the answer is still to be read."""
        stream = bool(fields.get("stream"))
        return self.post(CHAT, chat(model, fake, **fields), stream=stream)

    @contextlib.contextmanager
    def held(self, model: str) -> Iterator[requests.Response]:
        """A streamed answer that goes on until the block ends, and is then disconnected."""
        endless = {"chunks": 5000, "interval": 0.1}
        with self._with_a_slot(lambda: self.ask(model, endless, stream=True)) as answer:
            pieces = answer.iter_content(1)  # dropping it would close the connection
            next(pieces)
            yield answer

    def page(self, path: str, *kinds: str) -> Page:
        """A stream of server-sent events; without ``kinds`` those of models and of log lines."""
        answer = self._with_a_slot(lambda: self.get(path, stream=True))
        return Page(answer, kinds or ("model", "line"))

    def _with_a_slot(self, ask: Callable[[], requests.Response]) -> requests.Response:
        """An answer, once there is a slot for it: that of an answer that a client has just
        read or left is released a moment later."""

        def answer() -> requests.Response | None:
            response = ask()
            if response.status_code != 503:
                return response
            response.close()
            return None

        response = eventually(answer)
        assert response.status_code == 200, response.text
        return response

    def raw(self, data: bytes) -> socket.socket:
        """A connection on which these bytes have been sent."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        connection.sendall(data)
        return connection

    def raw_chat(self, model: str, fake: dict[str, Any], **fields: Any) -> socket.socket:
        """A connection on which a whole chat has been asked for."""
        return self.raw(raw_post(CHAT, json.dumps(chat(model, fake, **fields)).encode()))

    # --- authorization ------------------------------------------------------------------

    def add_account(self, name: str, role: str = "admin") -> None:
        """One with `PASSWORD`."""
        body = {"name": name, "role": role, "password": PASSWORD}
        answer = self.post("/api/accounts", body)
        assert answer.status_code == 201, answer.text
        self.has_accounts = True

    @property
    def local_token(self) -> str:
        try:
            return local_token.read(self.data)
        except local_token.LocalTokenError:  # a disk that only the program sees
            return local_token.read(Path(f"/proc/{self.pid}/root{self.data}"))

    def sign_in_link(self) -> str:
        """One that makes a browser the owner's."""
        return local_token.sign_in_link(self.url, self.local_token, int(time.time() * 1000))

    def add_key(self, name: str, **fields: Any) -> str:
        """The secret of a new API key."""
        answer = self.post("/api/keys", {"name": name, **fields})
        assert answer.status_code == 201, answer.text
        secret: str = answer.json()["secret"]
        return secret

    # --- its models ---------------------------------------------------------------------

    def model(self, name: str) -> dict[str, Any]:
        """What it says about one model."""
        view: dict[str, Any] = self.get(f"/api/models/{name}").json()
        return view

    def command(self, name: str, verb: str) -> dict[str, Any]:
        """Has a model started, stopped or restarted, and waits for that."""
        response = self.post(f"/api/models/{name}/{verb}?wait=1")
        assert response.status_code == 200, response.text
        view: dict[str, Any] = response.json()
        return view

    def becomes(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Waits until a model's fields have these values."""

        def view() -> dict[str, Any] | None:
            view = self.model(name)
            return view if wanted.items() <= view.items() else None

        try:
            return eventually(view)
        except AssertionError:
            raise AssertionError(f"{name} is not {wanted} but {self.model(name)}") from None

    def stats(self, name: str) -> dict[str, Any]:
        """What the model's fake upstream has seen."""
        with requests.Session() as session:
            session.trust_env = False
            address = f"http://127.0.0.1:{self.model(name)['port']}/stats"
            seen: dict[str, Any] = session.get(address, timeout=PATIENCE).json()
            return seen

    def environment(self, name: str) -> dict[str, str]:
        """The environment that the model's server was started with."""
        return psutil.Process(self.model(name)["pid"]).environ()

    def visible(self, name: str) -> str | None:
        """The cards that the model's server may use."""
        return self.environment(name).get("CUDA_VISIBLE_DEVICES")

    def devices(self) -> dict[str, dict[str, Any]]:
        """What it says about each device, by its id."""
        return {device["id"]: device for device in self.get("/api/devices").json()["devices"]}

    def counted(self, name: str, **labels: str) -> float:
        """The value of one of its metrics; 0 where nothing was counted yet."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            found, _, rest = series.partition("{")
            if found == name and wanted <= set(rest.rstrip("}").split(",")):
                return float(value)
        return 0.0

    def logs(self, name: str) -> list[Path]:
        """A model's log files: one a run."""
        return sorted((self.data / "logs" / name).glob("*.log"))

    def log(self, name: str) -> str:
        """What the model's latest run has printed."""
        return self.get(f"/api/models/{name}/logs").text


def raw_post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """The bytes of a request; `length` is the one to declare where it is not the body's."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the answer on a connection."""
    with http.client.HTTPResponse(connection, method="POST") as response:
        response.begin()
        return response.status, response.read()


def reset(connection: socket.socket) -> None:
    """Closes a connection as a crashed client's system does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
