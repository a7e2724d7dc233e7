"""Hosts, origins and proxies in config.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from manager.config import admits
from tests.support.config_files import (
    good_or_problems,
    only_problem,
    program,
)

# Hosts.


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("LLM.Example.org", "llm.example.org"),
        ("llm.example.org.", "llm.example.org"),
        ("gpu_box", "gpu_box"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("10.example.org", "10.example.org"),
    ],
)
def test_a_name_of_this_machine_is_read_as_a_host_header_has_it(
    home: Path, written: str, read: str
) -> None:
    assert program(home, f"allowed_hosts: ['{written}']").allowed_hosts == (read,)


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("*", "write each name"),
        ("*.example.org", "write each name"),
        ("https://llm.example.org", "write llm.example.org"),
        ("llm.example.org:8080", "write llm.example.org"),
        ("http://llm.example.org:8080/v1", "write llm.example.org"),
        ("192.168.1.5", "need not be listed"),
        ("192.168.1.5:8080", "need not be listed"),
        ("::1", "need not be listed"),
        ("[::1]:8080", "need not be listed"),
        ("127.1", "expected a DNS name"),  # browsers: 127.0.0.1
        ("0x7f.0x1", "expected a DNS name"),
        ("a..b", "expected a DNS name"),
        ("-a.org", "expected a DNS name"),
        ("a b", "expected a DNS name"),
        ("a" * 64, "expected a DNS name"),
        (".".join(["abcdefgh"] * 30), "expected a DNS name"),
        (".", "expected a DNS name"),
        ("bücher.example", "xn--"),
        ("\u212awik.example", "xn--"),  # the Kelvin sign, whose small letter is a k
    ],
)
def test_what_no_host_header_can_be_held_to_is_refused(home: Path, written: str, part: str) -> None:
    text = f"program:\n  allowed_hosts:\n    - ok.example\n    - '{written}'\n"
    line, message = only_problem(home, text)
    assert line == 4
    assert part in message


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("*", "*"),
        ("https://Chat.Example.org", "https://chat.example.org"),
        ("https://chat.example.org/", "https://chat.example.org"),
        ("https://chat.example.org:443", "https://chat.example.org"),
        ("http://chat.example.org:0443/", "http://chat.example.org:443"),
        ("HTTP://localhost:80", "http://localhost"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://192.168.1.5:8080", "http://192.168.1.5:8080"),
        ("http://[0::1]:80", "http://[::1]"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("tauri://localhost", "tauri://localhost"),
        ("moz-extension://*", "moz-extension://*"),
        ("https://*.Example.org/", "https://*.example.org"),
        ("https://*.example.org:443", "https://*.example.org"),
        ("http://*.localhost:3000", "http://*.localhost:3000"),
        ("http://LOCALHOST:*", "http://localhost:*"),
        ("http://[0::1]:*", "http://[::1]:*"),
        ("https://*:*", "https://*:*"),
    ],
)
def test_an_origin_is_read_as_browsers_send_it(home: Path, written: str, read: str) -> None:
    assert program(home, f"cors_origins: ['{written}']").cors_origins == (read,)


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("null", "any file"),
        ("*://example.org", "a * stands for"),
        ("https://*example.org", "a * stands for"),
        ("https://chat*.example.org", "a * stands for"),
        ("https://chat.*.org", "a * stands for"),
        ("https://*.*.org", "a * stands for"),
        ("https://**", "a * stands for"),
        ("https://*.", "a * stands for"),
        ("https://example.*", "a * stands for"),
        ("http://192.168.1.*", "a * stands for"),
        ("http://*.168.1.5", "a * stands for"),
        ("http://localhost:30*", "a * stands for"),
        ("moz-extension://*.x", "a * stands for"),
        ("https://*/app", "write https://*"),
        ("https://*.example.org/*", "write https://*.example.org"),
        ("chat.example.org", "expected an origin"),
        ("localhost:3000", "expected an origin"),
        ("//chat.example.org", "expected an origin"),
        ("https://chat.example.org/app", "write https://chat.example.org"),
        ("https://chat.example.org?x", "write https://chat.example.org"),
        ("https://chat.example.org//", "write https://chat.example.org"),
        ("https://ada:hunter2@chat.example.org", "no user"),
        ("https://chat.example.org:0", "there is no port 0"),
        ("https://chat.example.org:65536", "there is no port 65536"),
        ("https://chat.example.org:", "expected https://"),
        ("https://", "expected https://"),
        ("https:///", "expected https://"),
        ("file://", "expected file://"),
        ("http://127.1", "expected http://"),
        ("http://::1", "expected http://"),
        ("http://[127.0.0.1]", "expected http://"),
        ("http://a b", "expected http://"),
        ("https://bücher.example", "xn--"),
    ],
)
def test_what_no_browser_sends_as_an_origin_is_refused(home: Path, written: str, part: str) -> None:
    line, message = only_problem(home, f"program:\n  cors_origins: ['{written}']\n")
    assert line == 2
    assert part in message
    assert "hunter2" not in message


MOZ = "moz-extension://*"
BELOW = "https://*.example.org"
LOCAL = "http://localhost:*"


@pytest.mark.parametrize(
    ("pattern", "sent"),
    [
        ("*", "https://any.example"),
        ("*", "null"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        (MOZ, "moz-extension://2f6a4c5e-1b1d-4a53-9d3b-0d2c5a8e7f10"),
        ("file://*", "file://"),
        (BELOW, "https://chat.example.org"),
        (BELOW, "https://a.b.example.org"),
        (BELOW, "HTTPS://Chat.Example.org"),
        (f"{BELOW}:8443", "https://chat.example.org:8443"),
        (f"{BELOW}:*", "https://chat.example.org:8443"),
        (LOCAL, "http://localhost"),
        (LOCAL, "http://localhost:3000"),
        ("http://[::1]:*", "http://[::1]:3000"),
        ("https://*", "https://any.example"),
    ],
)
def test_a_pattern_admits_what_it_stands_for(pattern: str, sent: str) -> None:
    assert admits(("https://other.example", pattern), sent)


@pytest.mark.parametrize(
    ("pattern", "sent"),
    [
        (MOZ, "moz-extension:"),
        (MOZ, "moz-extension://a/b"),
        (MOZ, "chrome-extension://abc"),
        (MOZ, "xmoz-extension://abc"),
        (MOZ, "null"),
        (BELOW, "null"),
        (BELOW, ""),
        (BELOW, "https://example.org"),
        (BELOW, "https://.example.org"),
        (BELOW, "https://evilexample.org"),
        (BELOW, "https://chat.example.org.evil.com"),
        (BELOW, "https://evil.com/?x=.example.org"),
        (BELOW, "https://evil.com/.example.org"),
        (BELOW, "https://evil.com?.example.org"),
        (BELOW, "https://evil.com#.example.org"),
        (BELOW, "https://evil.com\\.example.org"),
        (BELOW, "https://evil.com@chat.example.org"),
        (BELOW, "https://chat.example.org@evil.com"),
        (BELOW, "https://evil.com, https://chat.example.org"),
        (BELOW, "https://evil.com%2f.example.org"),
        (BELOW, "http://chat.example.org"),
        (BELOW, "https://chat.example.org:8443"),
        (BELOW, "https://chat.example.org\n"),
        (BELOW, "https://*.example.org.evil.com"),
        (LOCAL, "http://localhost.evil.com"),
        (LOCAL, "http://localhost:3000.evil.com"),
        (LOCAL, "http://localhost:3000/x"),
        (LOCAL, "http://localhost:"),
        (LOCAL, "https://localhost:3000"),
        (LOCAL, "http://localhost@evil.com"),
        ("https://*", "http://any.example"),
        ("https://*", "https://"),
        ("https://*", "https://any.example:8443"),
        ("https://*", "null"),
    ],
)
def test_a_pattern_admits_nothing_else(pattern: str, sent: str) -> None:
    assert not admits(("https://other.example", pattern), sent)


@given(st.sampled_from([MOZ, BELOW, LOCAL, "https://*", "file://*"]), st.text())
def test_what_a_pattern_admits_begins_and_ends_as_it_does(pattern: str, middle: str) -> None:
    start, _, end = pattern.partition("*")
    sent = start + middle + end
    if admits((pattern,), sent):
        assert not set("/?#@\\ \n,%") & set(middle)


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("0.0.0.0/0", "is everybody"),
        ("::/0", "is everybody"),
        ("10.0.0.5/8", "write 10.0.0.0/8 for the whole network, or 10.0.0.5"),
        ("fd00::1/8", "write fd00::/8"),
        ("::ffff:10.0.0.0/104", "write it as 10.0.0.0/8"),
        ("::ffff:0.0.0.0/96", "write it as 0.0.0.0/0"),
        ("10.0.0.1/33", "expected an address or a network"),
        ("10.0.0", "expected an address or a network"),
        ("proxy.example.org", "expected an address or a network"),
        ("*", "expected an address or a network"),
        ("127.0.0.1:80", "expected an address or a network"),
        ("fe80::1%eth0", "expected an address or a network"),
    ],
)
def test_a_proxy_is_an_address_or_a_network_and_not_everybody(
    home: Path, written: str, part: str
) -> None:
    line, message = only_problem(home, f"program:\n  trusted_proxies: ['{written}']\n")
    assert line == 2
    assert part in message


@given(st.sampled_from(["allowed_hosts", "cors_origins", "trusted_proxies"]), st.text())
def test_no_text_in_these_lists_ends_in_a_traceback(home: Path, key: str, written: str) -> None:
    text = yaml.safe_dump({"program": {key: [written, f"https://{written}"]}}, allow_unicode=True)
    good_or_problems(home, text.encode("utf-8", "surrogatepass"))
