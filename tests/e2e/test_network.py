"""Two hosts on one link: what the other one may do with a program as it is shipped, and with one
that listens on the network and nothing else."""

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
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
answers = []
for method, address, body, headers in json.loads(sys.argv[1]):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, headers, method=method)
    try:
        with opener.open(request, timeout=20) as answer:
            answers.append([answer.status, answer.read().decode()])
    except urllib.error.HTTPError as error:
        answers.append([error.code, error.read().decode()])
    except OSError as error:
        answers.append([0, str(error)])
print(json.dumps(answers))
"""

Sent = tuple[str, str, Any, dict[str, str]]
"""Method, path, JSON body and headers of a request."""


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


class Link:
    """Two network namespaces with a link between them."""

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
            run("ip", "netns", "del", name)  # the link goes with its ends

    def ask(self, *requests: Sent, here: bool = False) -> list[tuple[int, str]]:
        """Status and text of each answer to the other host, or to ours; 0 where there is none."""
        host, address = (self.ours, "127.0.0.1") if here else (self.other, OURS)
        sent = [
            (method, f"http://{address}:{self.port}{path}", body, headers)
            for method, path, body, headers in requests
        ]
        arguments = [sys.executable, "-c", ASK, json.dumps(sent)]
        answers = json.loads(run("ip", "netns", "exec", host, *arguments))
        return [(status, text) for status, text in answers]


def get(path: str, **headers: str) -> Sent:
    return "GET", path, None, headers


def post(path: str, body: Any, **headers: str) -> Sent:
    return "POST", path, body, {"Content-Type": "application/json", **headers}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    yield link
    link.remove()


def start(launch: Launch, link: Link, **settings: Any) -> Program:
    wrapper = ["ip", "netns", "exec", link.ours]
    program = launch({"Model": fake()}, wrapper=wrapper, **settings)
    link.port = program.port
    return program


PAGES = ("/", "/models", "/settings", "/setup")
CALLS = ("/api/models", "/api/config", "/api/keys", "/metrics")


def test_as_it_is_shipped_no_other_host_reaches_it(launch: Launch, link: Link) -> None:
    start(launch, link)
    paths = ("/health", "/v1/models", *PAGES, *CALLS)
    for status, error in link.ask(*map(get, paths)):
        assert (status, "refused" in error) == (0, True)
    local = [status for status, _ in link.ask(*map(get, paths), here=True)]
    assert local == [403 if path == "/setup" else 200 for path in paths]


def test_on_the_network_models_answer_and_the_rest_takes_credentials(
    launch: Launch, link: Link
) -> None:
    program = start(launch, link, host="0.0.0.0")
    chatting = post(CHAT, chat("Model"))
    answer, *others = link.ask(chatting, get("/v1/models"), get("/health"))
    assert (answer[0], "token0" in answer[1]) == (200, True)
    assert [status for status, _ in others] == [200, 200]
    for status, text in link.ask(*map(get, (*PAGES, *CALLS))):
        assert status == 403
        assert "No password is set yet" in text
        assert "llm-manager open" in text
    changes = ("/api/models/Model/stop", "/api/keys", "/api/config/reload")
    for status, text in link.ask(*(post(path, {}) for path in changes)):
        assert (status, "no_password_yet" in text) == (403, True)
    # What the other host writes into its request changes nothing.
    names = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Host")
    forged = [get("/api/models", **{name: "127.0.0.1"}) for name in names]
    assert [status for status, _ in link.ask(*forged)] == [403] * len(names)
    # All of it is in the output of the start.
    assert "no API key is asked for" in program.output
    assert "there is no account" in program.output

    owner = bearer(program.local_token)
    read, refused, key, token = link.ask(
        get("/api/models"),
        post("/api/keys", {"name": "ann"}),
        post("/api/keys", {"name": "ann"}, **owner),
        post("/api/tokens", {"name": "ops", "role": "admin"}, **owner),
        here=True,
    )
    assert (read[0], refused[0]) == (200, 401)
    with_key = bearer(json.loads(key[1])["secret"])
    with_token = bearer(json.loads(token[1])["secret"])
    *statuses, locked = link.ask(
        chatting,
        post(CHAT, chat("Model"), **with_key),
        get("/api/models", **with_key),
        get("/api/models", **with_token),
        get("/api/config/text", **with_token),
    )
    assert [status for status, _ in statuses] == [401, 200, 401, 200]
    assert (locked[0], "config_locked" in locked[1]) == (403, True)
