"""Two hosts on one wire: what the other one may do with a program as it is shipped, and with one
that is opened to the network and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fixtures import Launch
from tests.support.program import CHAT, PATIENCE, Program, chat, fake

OURS, OTHERS = "10.213.77.1", "10.213.77.2"

ASK = """
import json, sys, urllib.error, urllib.request
address, method, body, headers = json.loads(sys.argv[1])
data = None if body is None else json.dumps(body).encode()
request = urllib.request.Request(address, data, headers, method=method)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    with opener.open(request, timeout=20) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
except OSError as error:
    print(json.dumps([0, str(error)]))
"""


def run(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout


def _may_make_hosts() -> bool:
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    name = f"lm{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        run("ip", "netns", "del", name)
    return made.returncode == 0


pytestmark = pytest.mark.skipif(
    not _may_make_hosts(), reason="needs root and network namespaces (iproute2)"
)


class Wire:
    """Two network namespaces with a cable between them."""

    def __init__(self) -> None:
        self.port = 0  # that the program listens on
        tag = uuid.uuid4().hex[:8]
        self.ours, self.other = f"lma{tag}", f"lmb{tag}"
        for name in (self.ours, self.other):
            run("ip", "netns", "add", name)
        ends = (f"va{tag}", f"vb{tag}")
        run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip((self.ours, self.other), ends, (OURS, OTHERS), strict=True):
            run("ip", "link", "set", end, "netns", name)
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            run("ip", "-n", name, "link", "set", end, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")

    def remove(self) -> None:
        for name in (self.ours, self.other):
            run("ip", "netns", "del", name)  # the cable goes with its ends

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: Any = None,
        *,
        here: bool = False,
        **headers: str,
    ) -> tuple[int, str]:
        """Status and text of what is answered to the other host, or to ours; 0 where nothing is."""
        host, address = (self.ours, "127.0.0.1") if here else (self.other, OURS)
        if body is not None:
            headers["Content-Type"] = "application/json"
        asked = json.dumps([f"http://{address}:{self.port}{path}", method, body, headers])
        said = run("ip", "netns", "exec", host, sys.executable, "-c", ASK, asked)
        status, text = json.loads(said)
        return status, text


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.remove()


def start(launch: Launch, wire: Wire, **settings: Any) -> Program:
    wrapper = ["ip", "netns", "exec", wire.ours]
    program = launch({"Model": fake()}, wrapper=wrapper, **settings)
    wire.port = program.port
    return program


PAGES = ("/", "/models", "/settings", "/setup")
CALLS = ("/api/models", "/api/config", "/api/keys", "/metrics")


def test_as_it_is_shipped_no_other_host_reaches_it(launch: Launch, wire: Wire) -> None:
    start(launch, wire)
    for path in ("/health", "/v1/models", *PAGES, *CALLS):
        status, why = wire.ask(path)
        assert (status, "refused" in why) == (0, True)
        assert wire.ask(path, here=True)[0] == (403 if path == "/setup" else 200)


def test_opened_to_the_network_models_answer_and_all_else_says_what_to_do(
    launch: Launch, wire: Wire
) -> None:
    program = start(launch, wire, host="0.0.0.0")
    status, text = wire.ask(CHAT, "POST", chat("Model"))
    assert (status, "token0" in text) == (200, True)
    assert wire.ask("/v1/models")[0] == wire.ask("/health")[0] == 200
    for path in (*PAGES, *CALLS):
        status, text = wire.ask(path)
        assert status == 403
        assert "No password is set yet" in text
        assert "llm-manager open" in text
    for path in ("/api/models/Model/stop", "/api/keys", "/api/config/reload"):
        status, text = wire.ask(path, "POST", {})
        assert (status, "no_password_yet" in text) == (403, True)
    # What the other host writes into its request changes nothing.
    for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Host"):
        assert wire.ask("/api/models", **{name: "127.0.0.1"})[0] == 403
    assert wire.ask("/api/models", here=True)[0] == 200
    # All of it is said at the start.
    assert "no API key is asked for" in program.output
    assert "there is no account" in program.output


def test_with_a_password_and_a_key_the_other_host_does_what_it_may(
    launch: Launch, wire: Wire
) -> None:
    program = start(launch, wire, host="0.0.0.0")
    owner = {"Authorization": f"Bearer {program.local_token}"}
    assert wire.ask("/api/keys", "POST", {"name": "ann"}, here=True)[0] == 401
    _, made = wire.ask("/api/keys", "POST", {"name": "ann"}, here=True, **owner)
    key = {"Authorization": f"Bearer {json.loads(made)['secret']}"}
    _, made = wire.ask("/api/tokens", "POST", {"name": "ops", "role": "admin"}, here=True, **owner)
    token = {"Authorization": f"Bearer {json.loads(made)['secret']}"}
    assert wire.ask(CHAT, "POST", chat("Model"))[0] == 401
    assert wire.ask(CHAT, "POST", chat("Model"), **key)[0] == 200
    assert wire.ask("/api/models", **key)[0] == 401
    assert wire.ask("/api/models", **token)[0] == 200
    status, text = wire.ask("/api/config/text", **token)
    assert (status, "config_locked" in text) == (403, True)
