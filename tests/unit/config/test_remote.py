"""Servers that others start, in config.yaml: `url` and `api_key`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.config_files import load, only_problem, problems

URL = "https://api.example.org/v1"


def text(*lines: str) -> str:
    """A file with one model `m`, whose keys begin on line 3."""
    return "Local-Models:\n  m:\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (URL, URL),
        ("HTTPS://API.example.org:443/v1/", URL),
        ("http://10.0.0.5:8080", "http://10.0.0.5:8080"),
        ("http://10.0.0.5:80/", "http://10.0.0.5"),
        ("http://gpu_box:9000//", "http://gpu_box:9000"),
        ('"http://[FE80::1]:8080/llm"', "http://[fe80::1]:8080/llm"),
        ("https://example.org/Paas/v4", "https://example.org/Paas/v4"),
    ],
)
def test_a_url_is_read_as_requests_need_it(home: Path, written: str, read: str) -> None:
    model = load(home, text(f"url: {written}")).models["m"]
    assert (model.url, model.schemes, model.api_key) == (read, (), None)


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("api.example.org", "expected an address such as https://"),
        ("ftp://example.org", "expected an address such as https://"),
        ("https://", "a host in ASCII"),
        ("https:///v1", "a host in ASCII"),
        ("https://bücher.example", "a host in ASCII"),
        ("https://*.example.org", "a host in ASCII"),
        ('"https://example.org/a b"', "a host in ASCII"),
        ("https://example.org:0", "no port 0"),
        ("https://example.org:65536", "no port 65536"),
        ("https://example.org/v1?key=hunter2", "without a ? or #"),
        ('"https://example.org#hunter2"', "without a ? or #"),
        ("https://me:hunter2@example.org", 'api_key: "${NAME}"'),
        ("https://hunter2@example.org", 'api_key: "${NAME}"'),
        (f"{URL}/chat/completions", "without the path of an endpoint"),
        ("https://example.org/v1/messages/", "without the path of an endpoint"),
        ("[x]", "expected text"),
    ],
)
def test_a_url_that_leads_nowhere_is_a_problem_that_shows_no_password(
    home: Path, written: str, part: str
) -> None:
    line, message = only_problem(home, text("mode: Chat", f"url: {written}"))
    assert line == 4
    assert part in message
    assert "hunter2" not in message


def test_a_key_is_that_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER", "s3cr3t")
    assert load(home, text(f"url: {URL}", 'api_key: "${PROVIDER}"')).models["m"].api_key == "s3cr3t"
    assert load(home, text(f"url: {URL}", "api_key: sk-1")).models["m"].api_key == "sk-1"
    assert load(home, text(f"url: {URL}", "api_key: $${X}")).models["m"].api_key == "${X}"


def test_a_key_that_the_environment_does_not_have_is_never_sent_as_it_is_written(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROVIDER", raising=False)
    line, message = only_problem(home, text(f"url: {URL}", 'api_key: "${PROVIDER}"'))
    assert line == 4
    assert "the environment has no PROVIDER" in message


@pytest.mark.parametrize("value", ["", "hunter2\r\nX-A: 1", "hunter2 hunter2", "hunter2é"])
def test_a_key_that_no_header_can_have_is_a_problem_that_does_not_show_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("PROVIDER", value)
    line, message = only_problem(home, text(f"url: {URL}", 'api_key: "${PROVIDER}"'))
    assert line == 4
    assert "the value of the variable is no key" in message
    assert "hunter2" not in message


def test_a_key_without_a_url_is_a_problem(home: Path) -> None:
    line, message = only_problem(home, text("api_key: sk-1", "s: {command: [x]}"))
    assert (line, "url, which is missing" in message) == (3, True)
    assert "sk-1" not in message


@pytest.mark.parametrize("other", ["GPU: {command: [x]}", "command: [x]", "env: {A: b}"])
def test_a_url_and_a_scheme_are_one_too_many(home: Path, other: str) -> None:
    line, message = only_problem(home, text(f"url: {URL}", other))
    assert (line, "keep one of them" in message) == (4, True)


def test_an_unknown_key_beside_a_url_is_a_problem(home: Path) -> None:
    ((line, message),) = problems(home, text(f"url: {URL}", "apikey: sk-1"))
    assert (line, "did you mean api_key?" in message) == (4, True)
    assert "sk-1" not in message


def test_keys_that_mean_nothing_beside_a_url_are_warnings(home: Path) -> None:
    keys = ["port: 9", "auto_start: true", "alive_time: 5", "start_timeout: 5", "pinned: true"]
    loaded = load(home, text(f"url: {URL}", *keys, "price: {per_hour: 1}", "max_concurrency: 2"))
    assert [(each.line, each.message.partition(":")[0]) for each in loaded.warnings] == [
        (4, "port"),
        (5, "auto_start"),
        (6, "alive_time"),
        (7, "start_timeout"),
        (8, "pinned"),
        (9, "per_hour"),
    ]
    assert loaded.models["m"].port is None
