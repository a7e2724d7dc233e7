"""The local token: its file, the links made with it, and the sessions begun with those."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path

import pytest

from manager.access import local_token
from manager.access.local_token import FILE, LINK_SECONDS, LocalToken, LocalTokenError

NOW = 1_795_400_000_000
ADDRESS = "http://127.0.0.1:8080/"

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")


def code(folder: Path, now_ms: int = NOW) -> str:
    """Of a new link."""
    link = local_token.sign_in_link(ADDRESS, local_token.read(folder), now_ms)
    address, _, found = link.partition("#")
    assert address == "http://127.0.0.1:8080/login/link"
    return found


def replace(folder: Path, content: str) -> None:
    (folder / FILE).unlink()
    descriptor = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "w") as file:
        file.write(content)


# --- the file -------------------------------------------------------------------------------------


@posix
def test_the_file_is_its_owners_alone_and_kept_over_a_restart(tmp_path: Path) -> None:
    first = LocalToken(tmp_path).value
    assert first is not None
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert (tmp_path / FILE).read_text() == f"{first}\n"
    assert LocalToken(tmp_path).value == local_token.read(tmp_path) == first


@posix
def test_a_token_that_others_could_read_is_replaced_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    burned = LocalToken(tmp_path).value
    (tmp_path / FILE).chmod(0o640)
    with caplog.at_level(logging.INFO):
        token = LocalToken(tmp_path)
    assert token.value not in (None, burned)
    assert "was not private and is replaced" in caplog.text
    assert str(token.value) not in caplog.text
    assert token.check(str(burned)) is None


@posix
def test_a_link_that_somebody_has_planted_is_replaced_and_not_followed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("x" * 50)
    theirs.chmod(0o600)
    (tmp_path / FILE).symlink_to(theirs)
    token = LocalToken(tmp_path)
    assert not (tmp_path / FILE).is_symlink()
    assert theirs.read_text() == "x" * 50
    assert token.check("x" * 50) is None


@posix
def test_a_running_program_takes_no_token_that_is_not_private_any_more(tmp_path: Path) -> None:
    token = LocalToken(tmp_path)
    secret = str(token.value)
    assert token.check(secret)
    (tmp_path / FILE).chmod(0o644)
    assert token.check(secret) is None
    (tmp_path / FILE).chmod(0o600)
    assert token.check(secret)


@pytest.mark.parametrize("content", ["", "short", "a b" * 20, "é" * 40, "x" * 300])
def test_what_is_no_token_is_as_none(tmp_path: Path, content: str) -> None:
    token = LocalToken(tmp_path)
    replace(tmp_path, content)
    assert token.check(content) is None
    assert token.check("") is None
    with pytest.raises(LocalTokenError, match="start LLM-Manager"):
        local_token.read(tmp_path)


def test_where_the_program_has_never_run_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LocalTokenError, match="--data-dir"):
        local_token.read(tmp_path)


# --- links and sessions ---------------------------------------------------------------------------


def test_a_link_is_good_once(tmp_path: Path) -> None:
    token = LocalToken(tmp_path)
    first, second = code(tmp_path), code(tmp_path)
    generation = token.accept(first, NOW)
    assert generation is not None
    assert token.is_session(generation)
    assert token.accept(first, NOW) is None
    assert token.accept(second, NOW) == generation
    assert str(token.value) not in f"{first} {generation}"


def test_a_link_is_good_for_ten_minutes_and_not_before_its_time(tmp_path: Path) -> None:
    token = LocalToken(tmp_path)
    assert token.accept(code(tmp_path), NOW + (LINK_SECONDS - 1) * 1000)
    assert token.accept(code(tmp_path), NOW + LINK_SECONDS * 1000) is None
    assert token.accept(code(tmp_path), NOW - 2000) is None


def test_a_used_link_is_not_good_again_in_another_spelling(tmp_path: Path) -> None:
    token = LocalToken(tmp_path)
    used = code(tmp_path)
    assert token.accept(used, NOW)
    arabic = used[:10].translate({ord(str(n)): chr(0x660 + n) for n in range(10)}) + used[10:]
    for spelled in (used, "0" + used, "00" + used, arabic):
        assert token.accept(spelled, NOW) is None, spelled


def test_a_link_ends_with_the_program_that_may_have_seen_its_use(tmp_path: Path) -> None:
    seconds = [1000.0]
    before = LocalToken(tmp_path, lambda: seconds[0])
    seconds[0] += 60
    old = code(tmp_path, NOW)
    assert before.accept(old, NOW)
    seconds[0] += 2
    after = LocalToken(tmp_path, lambda: seconds[0])
    seconds[0] += 1
    assert after.accept(old, NOW + 3000) is None
    assert after.accept(code(tmp_path, NOW + 3000), NOW + 3000)


@pytest.mark.parametrize("set_by", [-3_600_000, 28_800_000])
def test_links_are_good_under_a_clock_that_was_set_and_used_ones_are_not(
    tmp_path: Path, set_by: int
) -> None:
    seconds = [1000.0]
    token = LocalToken(tmp_path, lambda: seconds[0])
    seconds[0] += 60
    used = code(tmp_path, NOW)
    assert token.accept(used, NOW)
    seconds[0] += 1
    then = NOW + 1000 + set_by
    assert token.accept(code(tmp_path, then), then)
    assert token.accept(used, then) is None
    assert token.accept(used, NOW + 2000) is None  # set to the right time again


def test_a_code_that_was_changed_or_made_up_is_worth_nothing(tmp_path: Path) -> None:
    token = LocalToken(tmp_path)
    good = code(tmp_path)
    expires, nonce, signature = good.split(".")
    later = int(expires) - 1
    other = ("1" if signature[-1] == "0" else "0") + signature[1:]
    forged = ["", ".", "..", good + "0", f"{later}.{nonce}.{signature}", f"{expires}.{nonce}.", "é"]
    for made in (*forged, f"{expires}.{nonce}.{other}", f"{expires}.{nonce[:-1]}_.{signature}"):
        if made != good:
            assert token.accept(made, NOW) is None, made


def test_to_replace_the_token_ends_its_sessions_and_links(tmp_path: Path) -> None:
    token = LocalToken(tmp_path)
    old = str(token.value)
    generation, unused = token.accept(code(tmp_path), NOW), code(tmp_path)
    assert generation is not None
    replace(tmp_path, "a-token-of-the-owner's-own-choice-0123456789\n")
    assert not token.is_session(generation)
    assert token.accept(unused, NOW) is None
    assert token.check(old) is None
    assert token.check("a-token-of-the-owner's-own-choice-0123456789") not in (None, generation)
    (tmp_path / FILE).unlink()
    assert token.value is None
    assert token.check("a-token-of-the-owner's-own-choice-0123456789") is None


@posix
def test_the_page_that_leads_a_browser_to_the_link_is_its_owners_alone(tmp_path: Path) -> None:
    LocalToken(tmp_path)
    link = f"{ADDRESS}login/link#{code(tmp_path)}"
    page = local_token.redirect_page(tmp_path, link)
    assert page.is_absolute()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert f"url={link}" in page.read_text()
