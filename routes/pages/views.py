"""The pages: templates, languages, themes. What they show comes from ``/api``."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import werkzeug
from flask import Flask, Response, g, redirect, render_template, request
from flask_babel import Babel, get_locale
from flask_wtf.csrf import generate_csrf

from manager.errors import ApiError
from routes.api.usage import zone_of
from routes.auth import may_edit_config
from routes.calls import Api, Rule
from routes.pages import headers, words
from routes.services import Services

_ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"en": "English", "zh": "简体中文"}
_HTML_LANGUAGES = {"en": "en", "zh": "zh-CN"}
THEMES = ("system", "light", "dark")
_SIGNED_IN_DAYS = 30
_YEAR = 365 * 24 * 3600
# By the path's end; each has a template and a script of that name.
PAGES = (
    *("overview", "models", "usage", "requests", "billing", "keys", "playground", "logs"),
    *("access", "settings"),
)
_SIGN_IN_PAGES = ("login", "setup")


def blueprint(services: Services) -> Api:
    api = Api("pages")

    for page in PAGES:
        path = "/" if page == "overview" else f"/{page}"
        api.call(f"GET {path}", Rule.VIEW, endpoint=page, summary=f"The page {page}")(
            _show(services, page)
        )

    @api.call("POST /preferences", Rule.OPEN)
    def preferences() -> werkzeug.Response:
        """Language and theme, kept by the browser."""
        answer = redirect(own_path(request.form.get("back", ""), PAGES[1:] + _SIGN_IN_PAGES), 303)
        for name, choices in (("language", LANGUAGES), ("theme", THEMES)):
            value = request.form.get(name, "")
            if value in choices:
                answer.set_cookie(name, value, max_age=_YEAR, samesite="Lax", httponly=True)
        return answer

    return api


def init_app(app: Flask, secret: bytes, asset: Callable[[str], str]) -> None:
    """What the pages need of the application; ``secret`` signs their sessions."""
    app.secret_key = secret
    app.config.update(
        # Cookies know no ports: two programs on one machine must not take each other's.
        SESSION_COOKIE_NAME=f"llm_manager_{hashlib.sha256(secret).hexdigest()[:8]}",
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=_SIGNED_IN_DAYS * 24 * 3600,
        # A page is open for days; its token holds as long as its session.
        WTF_CSRF_TIME_LIMIT=None,
        BABEL_TRANSLATION_DIRECTORIES=str(_ROOT / "translations"),
    )
    Babel(app, locale_selector=_language)
    app.jinja_env.globals.update(
        asset=asset,
        caller=lambda: g.get("caller"),
        csrf_token=generate_csrf,
        language=_html_language,
        languages=LANGUAGES,
        pages=PAGES,
        theme=_theme,
        themes=THEMES,
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True


def failed(error: ApiError) -> Response:
    """An error as a page instead of JSON."""
    text = render_template(
        "error.html", page=None, status=error.status, code=error.code, message=error.message
    )
    return headers.set_headers(Response(text, error.status, mimetype="text/html"))


def sign_in_address(wanted: str) -> str:
    """Of the page to sign in at, which goes on to what was wanted."""
    back = own_path(wanted)
    return "/login" if back == "/" else f"/login?next={quote(back)}"


def _show(services: Services, page: str) -> Callable[[], Response]:
    def show() -> Response:
        program = services.fleet.config.program
        text = render_template(
            f"{page}.html",
            page=page,
            words=words.for_scripts(),
            currency=program.currency,
            timezone=str(zone_of(services)),
            access=_access_summary(services),
            may_edit_config=may_edit_config(g.caller, program),
        )
        return Response(text, mimetype="text/html", headers={"Cache-Control": "no-store"})

    return show


@dataclass(frozen=True)
class AccessSummary:
    """What every page shows of who may use the program. ``is_reachable``: from other machines."""

    models_are_open: bool
    is_reachable: bool
    password_is_set: bool


def _access_summary(services: Services) -> AccessSummary:
    # A trusted proxy forwards requests of other machines.
    is_reachable = not _is_loopback(services.host) or bool(
        services.fleet.config.program.trusted_proxies
    )
    return AccessSummary(
        services.models_are_open, is_reachable, bool(services.access.snapshot.accounts)
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _language() -> str:
    chosen = request.cookies.get("language")
    if chosen in LANGUAGES:
        return chosen
    for wanted, quality in request.accept_languages:
        if quality > 0 and (language := wanted.split("-")[0].lower()) in LANGUAGES:
            return language
    return "en"


def _html_language() -> str:
    return _HTML_LANGUAGES[str(get_locale())]


def _theme() -> str:
    chosen = request.cookies.get("theme", "")
    return chosen if chosen in THEMES else "system"


def own_path(address: str, own: Collection[str] = PAGES[1:]) -> str:
    """A path of our own pages, and ``/`` for anything else: a foreign form must not redirect."""
    path, _, query = address.partition("?")
    page = path.strip("/")
    if page not in own:
        return "/"
    # Only what an address may hold: a line break would begin another header.
    return f"/{page}" + (f"?{quote(query, safe='=&%+:,;-._~/')}" if query else "")
