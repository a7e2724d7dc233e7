"""What the pages are made of, and what they refuse, as seen without a browser."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests

from routes.pages import assets
from tests.support.browser import address, pages
from tests.support.fixtures import Launch
from tests.support.program import FEW_THREADS, Program, error_of, fake

WEIGHT = 150_000  # bytes over the wire; the browser's tests count what the API adds
SECRETS = ("hf-secret", "sk-in-argument", "sk-behind-argument", "env-secret")
HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
_IMPORT = re.compile(r"""(?:from|import)\s*\(?["'](\.{1,2}/[^"']+)["']""")
_URL = re.compile(r"""url\(["']?([^"')]+)["']?\)""")


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    model = fake("--api-key=sk-in-argument", "--children", 0)
    model["Default"]["command"] += ["--api-key", "sk-behind-argument"]
    model["Default"]["env"] = {"HF_TOKEN": "hf-secret", "DATABASE_PASSWORD": "env-secret"}
    return launch_once(
        {"Model": fake(), "Secretive": model},
        threads=FEW_THREADS,
    )


class Document(HTMLParser):
    """What a page loads, and what it has that a strict policy forbids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.forbidden: list[str] = []
        self.token = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        has = dict(attributes)
        if tag == "meta" and has.get("name") == "csrf-token":
            self.token = has["content"] or ""
        loaded = has.get("src") or (has.get("href") if tag == "link" else None)
        if loaded:
            self.loads.append(loaded)
        is_data = has.get("type") == "application/json"
        if tag == "style" or (tag == "script" and not loaded and not is_data):
            self.forbidden.append(self.get_starttag_text() or tag)
        for name, value in attributes:
            if name == "style" or name.startswith("on") or (value or "").startswith("javascript:"):
                self.forbidden.append(self.get_starttag_text() or tag)


def get(program: Program, path: str, **headers: str) -> requests.Response:
    answer = program.get(path, headers={**HTML, **headers})
    assert answer.status_code == 200, path
    return answer


@functools.cache
def imports(program: Program, path: str) -> set[str]:
    """The addresses of the files that a file imports; a file never changes under its address."""
    if not path.endswith((".js", ".css")):
        return set()
    names = (_IMPORT if path.endswith(".js") else _URL).findall(get(program, path).text)
    return {urljoin(path, name) for name in names}


@functools.cache
def loaded(program: Program, page: str) -> set[str]:
    """The addresses of all files that a page loads, those that these import as well."""
    found: set[str] = set()
    wanted = set(Document(get(program, address(page)).text).loads)
    while wanted:
        path = wanted.pop()
        found.add(path)
        wanted |= imports(program, path) - found
    return found


@functools.cache
def checked_size(program: Program, path: str) -> int:
    """Bytes of a file over the wire, once it is known to be kept, packed and the same unpacked."""
    plain = get(program, path, **{"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert plain.headers["X-Content-Type-Options"] == "nosniff"
    packed = get(program, path, **{"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip", path
    assert packed.headers["Vary"] == "Accept-Encoding"
    assert packed.content == plain.content
    return int(packed.headers["Content-Length"])


# --- what they are made of ----------------------------------------------------------------


@pytest.mark.parametrize("page", pages())
def test_a_page_runs_nothing_but_files_of_ours(program: Program, page: str) -> None:
    answer = get(program, address(page))
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    # A page has a token in it, and its words in one language.
    assert answer.headers["Cache-Control"] == "no-store"
    assert Document(answer.text).forbidden == []


@pytest.mark.parametrize("page", pages())
def test_all_that_a_page_loads_is_its_own_kept_for_ever_and_light(
    program: Program, page: str
) -> None:
    paths = loaded(program, page)
    assert any(path.endswith("/core.js") for path in paths)
    assert all(path.startswith("/static/") for path in paths), paths
    sizes = {path: checked_size(program, path) for path in paths}
    text = get(program, address(page), **{"Accept-Encoding": "gzip"})
    assert sum(sizes.values()) + int(text.headers["Content-Length"]) <= WEIGHT, sizes


def test_files_of_another_version_are_not_served_under_this_ones_address(program: Program) -> None:
    [core] = [path for path in loaded(program, "models") if path.endswith("/core.js")]
    _, _, version, _ = core.split("/", 3)
    assert re.fullmatch("[0-9a-f]{12}", version)
    assert program.get(core.replace(version, "0" * 12)).status_code == 404
    for name in ("../wsgi.py", "%2e%2e/wsgi.py", "vendor/../../wsgi.py", "nothing.js"):
        assert program.get(f"/static/{version}/{name}").status_code == 404


def test_a_file_that_has_changed_has_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "_ROOT", tmp_path)

    def addresses() -> list[str]:
        _, asset = assets.blueprint()
        return [asset("one.js"), asset("other.js")]

    (tmp_path / "one.js").write_text("import './other.js'")
    (tmp_path / "other.js").write_text("1")
    before = addresses()
    assert addresses() == before
    (tmp_path / "other.js").write_text("2")
    # Both: a kept file that imports a new one would be of two versions.
    assert not set(addresses()) & set(before)


@pytest.mark.parametrize("page", pages())
def test_a_page_has_no_secret(program: Program, page: str) -> None:
    assert not [secret for secret in SECRETS if secret in get(program, address(page)).text]


# --- what they refuse ---------------------------------------------------------------------


@pytest.fixture
def visitor(program: Program) -> Iterator[requests.Session]:
    """An admin's browser with a page open: its cookies, and the token that its page sends."""
    with requests.Session() as session:
        session.trust_env = False
        page = session.get(f"{program.url}/login/link", headers=HTML, timeout=10)
        code = program.sign_in_link().partition("#")[2]
        form = {"code": code, "csrf_token": Document(page.text).token}
        session.post(f"{program.url}/login/link", data=form, timeout=10)
        page = session.get(program.url, headers=HTML, timeout=10)
        session.headers["X-CSRFToken"] = Document(page.text).token
        yield session


def test_a_call_of_a_page_needs_the_pages_token(
    program: Program, visitor: requests.Session
) -> None:
    url = f"{program.url}/api/models/Model/start?dry_run=1"
    assert visitor.post(url, json={}).status_code == 200
    for token in (None, "", "x" * 91, visitor.headers["X-CSRFToken"][:-1]):
        refused = visitor.post(url, json={}, headers={"X-CSRFToken": token})
        assert refused.status_code == 403
        assert error_of(refused)["code"] == "page_outdated"


def test_a_token_of_one_browser_is_of_no_use_to_another(
    program: Program, visitor: requests.Session
) -> None:
    theirs = Document(get(program, "/").text).token
    refused = visitor.post(
        f"{program.url}/api/models/Model/start?dry_run=1", json={}, headers={"X-CSRFToken": theirs}
    )
    assert refused.status_code == 403


def test_a_script_needs_no_token(program: Program) -> None:
    assert program.post("/api/models/Model/start?dry_run=1").status_code == 200


def test_a_form_of_a_foreign_page_changes_nothing(
    program: Program, visitor: requests.Session
) -> None:
    for path in ("/api/models/Model/start", "/api/models/stop", "/api/config/reload"):
        answer = visitor.post(program.url + path, data={"a": "b"})
        assert (answer.status_code, error_of(answer)["code"]) == (415, "json_required")
    # Neither with cookies nor, which a browser may leave out, without.
    form = {"language": "zh", "back": "/models"}
    del visitor.headers["X-CSRFToken"]
    for answer in (
        visitor.post(f"{program.url}/preferences", data=form, allow_redirects=False),
        program.request("POST", "/preferences", data=form, allow_redirects=False),
    ):
        assert answer.status_code == 403
        assert "language=" not in answer.headers.get("Set-Cookie", "")


def test_a_choice_is_kept_in_cookies_that_no_script_reads(
    program: Program, visitor: requests.Session
) -> None:
    form = {"language": "zh", "theme": "dark", "back": "/models?log=M%C3%BC", "x": "y"}
    answer = visitor.post(f"{program.url}/preferences", data=form, allow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/models?log=M%C3%BC"
    cookies = {cookie.name: cookie for cookie in visitor.cookies}
    for name, value in (("language", "zh"), ("theme", "dark")):
        assert cookies[name].value == value
        assert cookies[name].has_nonstandard_attr("HttpOnly")
        assert cookies[name].get_nonstandard_attr("SameSite") == "Lax"
    page = visitor.get(f"{program.url}/models", headers=HTML).text
    assert '<html lang="zh-CN" data-theme="dark">' in page
    wrong = {"language": "../en", "theme": "<b>"}
    visitor.post(f"{program.url}/preferences", data=wrong)
    assert {cookies[name].value for name in ("language", "theme")} == {"zh", "dark"}


@pytest.mark.parametrize(
    "back",
    [
        "//evil.example",
        "///evil.example/models",
        "https://evil.example/",
        "https://evil.example/models",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "/models\r\nSet-Cookie: a=b",
        "/models?a=\r\nSet-Cookie:%20a=b",
        "/models/../../evil",
        "//models@evil.example",
        "",
    ],
)
def test_a_choice_never_leads_off_the_pages(
    program: Program, visitor: requests.Session, back: str
) -> None:
    answer = visitor.post(f"{program.url}/preferences", data={"back": back}, allow_redirects=False)
    assert answer.status_code == 303
    assert re.fullmatch(r"/(models(\?[^\s\\]*)?)?", answer.headers["Location"])
    assert "a" not in answer.cookies


@pytest.mark.parametrize(
    ("wanted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("zh-TW", "zh-CN"),
        ("de-DE,de;q=0.9,zh;q=0.5,en;q=0.4", "zh-CN"),
        ("en-GB,zh;q=0.5", "en"),
        ("fr", "en"),
        ("*", "en"),
        (";;,q=,", "en"),
    ],
)
def test_a_page_is_in_the_language_that_the_browser_asks_for(
    program: Program, wanted: str, language: str
) -> None:
    page = get(program, "/", **{"Accept-Language": wanted})
    assert f'<html lang="{language}"' in page.text


def test_a_browser_gets_a_page_for_a_wrong_address(program: Program) -> None:
    page = program.get("/nothing/<b>here</b>", headers=HTML)
    assert page.status_code == 404
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Content-Security-Policy" in page.headers
    assert "&lt;b&gt;here&lt;/b&gt;" in page.text
    assert Document(page.text).forbidden == []
    for path in ("/nothing", "/api/nothing"):
        answer = program.get(path)
        assert answer.status_code == 404
        assert path in error_of(answer)["message"]


def test_a_models_answer_is_passed_on_without_the_pages_policy(program: Program) -> None:
    answer = program.ask("Model")
    assert answer.status_code == 200
    assert "Content-Security-Policy" not in answer.headers
    assert "Set-Cookie" not in answer.headers


def test_a_stream_with_nothing_to_send_begins_at_once(program: Program) -> None:
    # Else a page with an empty log would not be live until the first sign of life, at 15 s.
    with program.get("/api/events?only=", stream=True, timeout=7) as answer:
        assert answer.status_code == 200


# --- their warnings of open access -------------------------------------------------------

OPEN_HERE = "Every program on this machine may use the models"
OPEN_TO_ALL = "Everybody who reaches this machine may use the models"
NO_ACCOUNT = "There is no account yet"


def warnings(program: Program, page: str = "models") -> set[str]:
    """A page's warnings of open access, without a script."""
    text = get(program, address(page)).text
    return {warning for warning in (OPEN_HERE, OPEN_TO_ALL, NO_ACCOUNT) if warning in text}


@pytest.mark.parametrize("page", pages())
def test_a_page_says_that_no_key_and_no_password_are_asked_for(program: Program, page: str) -> None:
    assert warnings(program, page) == {OPEN_HERE, NO_ACCOUNT}
    text = get(program, address(page)).text
    assert 'href="/keys"' in text
    assert 'href="/setup"' in text
    assert "You may look at everything here" not in text


def test_a_page_warns_where_others_reach_the_models_until_keys_and_a_password_are_asked_for(
    launch: Launch,
) -> None:
    program = launch({}, arguments=("--host", "0.0.0.0"))
    assert warnings(program) == {OPEN_TO_ALL, NO_ACCOUNT}
    program.add_key("first")
    assert warnings(program) == {NO_ACCOUNT}
    program.add_account("admin")
    assert warnings(program) == set()


def test_every_page_links_to_every_other(program: Program) -> None:
    for page in pages():
        text = get(program, address(page)).text
        assert all(f'href="{address(other)}"' in text for other in pages())
