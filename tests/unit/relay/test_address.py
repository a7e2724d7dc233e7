"""Where a request goes below the address of a server."""

from __future__ import annotations

import pytest

from manager.relay.remote_upstream import RemoteUpstream
from manager.relay.upstream import Address


@pytest.mark.parametrize(
    ("url", "target", "path"),
    [
        ("https://api.example.org", "/v1/chat/completions", "/v1/chat/completions"),
        ("https://api.example.org/v1", "/v1/chat/completions", "/v1/chat/completions"),
        ("https://example.org/llm", "/v1/embeddings", "/llm/v1/embeddings"),
        ("https://example.org/llm/v1", "/v1/embeddings?a=/v1/b", "/llm/v1/embeddings?a=/v1/b"),
        (
            "https://example.org/api/paas/v4",
            "/v1/chat/completions",
            "/api/paas/v4/chat/completions",
        ),
        ("https://example.org/v1", "/tokenize", "/tokenize"),
        ("https://example.org/llm/v1", "/health", "/llm/health"),
        ("http://127.0.0.1:8080", "/health", "/health"),
        ("https://example.org/v1x/vault", "/v1/rerank", "/v1x/vault/v1/rerank"),
    ],
)
def test_the_version_in_a_base_url_is_there_once(url: str, target: str, path: str) -> None:
    (line, *_) = RemoteUpstream(url, None, 1).address.head("POST", target, [])
    assert line == f"POST {path} HTTP/1.1"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.example.org/v1", "api.example.org"),
        ("http://example.org:8080/v1", "example.org:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_the_host_is_that_of_the_url_whatever_a_client_asks_for(url: str, host: str) -> None:
    target = "/v1/models?url=http://elsewhere.example//@elsewhere.example"
    _, *lines = RemoteUpstream(url, None, 1).address.head("GET", target, [])
    assert lines == [f"Host: {host}"]


def test_a_key_is_sent_and_not_shown() -> None:
    upstream = RemoteUpstream("https://example.org", "s3cr3t", 1)
    head = upstream.address.head("POST", "/v1/rerank", [("X-A", "1")])
    assert head[1:] == ["Host: example.org", "X-A: 1", "Authorization: Bearer s3cr3t"]
    assert "s3cr3t" not in repr(upstream.address)
    assert Address("h").head("GET", "/", []) == ["GET / HTTP/1.1", "Host: h"]
