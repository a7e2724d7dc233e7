"""Each request's caller, and whether the rule that its route declares lets it in.

The application does not start with a route that declares none, so that a new one cannot be open by
mistake.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import werkzeug
from flask import Flask, Response, current_app, g, request, session
from flask_wtf.csrf import ValidationError, validate_csrf

from manager.access import (
    ADMIN,
    VIEWER,
    Account,
    Key,
    Token,
    audit,
    credentials,
    invalid_key_error,
    local_token,
)
from manager.config import Program
from manager.errors import ApiError
from manager.interfaces import is_ollamas
from manager.storage import DatabaseError
from routes.calls import CHANGING, Api, Call, Rule
from routes.http import (
    Client,
    allowed_origin,
    check_host,
    client_of,
    cors_headers,
    preflight,
    sandbox,
)
from routes.page_passes import has_pass, without_pass
from routes.services import Services, current

log = logging.getLogger(__name__)

# Any content type is taken, as clients send it: a page of a foreign origin is refused by that.
_FOR_MODELS = (Rule.MODELS, Rule.OLLAMA)
_MAX_LOGGED = 200  # characters of a method and a path
# A change by these takes no session, so that it needs no proof of coming from our own pages; or,
# with one from a page, looks for that itself.
_WITHOUT_SESSION = (*_FOR_MODELS, Rule.RAW, Rule.SCRIPT)
_MAX_RECORDED = 300_000  # bytes of a body; a config is as long as that


class Caller(NamedTuple):
    """Who sent a request: a person who has signed in, a script with a token, a user with an API
    key; the owner of the local token, for which ``local_token`` is its generation; an onlooker,
    which is anyone on this machine while there is no account; or an anonymous client."""

    address: str
    is_local: bool
    account: Account | None = None
    token: Token | None = None
    key: Key | None = None
    local_token: str | None = None
    is_onlooker: bool = False

    @property
    def name(self) -> str:
        """As the audit table and the pages show it."""
        if self.account is not None:
            return self.account.name
        if self.token is not None:
            return f"token {self.token.name}"
        if self.local_token is not None:
            return local_token.NAME
        return "local" if self.is_onlooker else ""

    @property
    def role(self) -> str:
        """``admin`` or ``viewer``; empty for those who may not see the pages."""
        signed_in = self.account or self.token
        if signed_in is not None:
            return signed_in.role
        if self.local_token is not None:
            return ADMIN
        return VIEWER if self.is_onlooker else ""

    @property
    def priority(self) -> int:
        """In a model's request queue."""
        return 0 if self.key is None else self.key.priority

    @property
    def user(self) -> str:
        """Who uses a model, as far as that can be told: by name, else by address."""
        return self.usage_key or self.address

    @property
    def usage_key(self) -> str:
        """What its requests are metered under: a person who tries a model on a page has no key."""
        if self.key is not None:
            return self.key.name
        if self.account is not None:
            return f"@{self.account.name}"
        return "" if self.local_token is None else "@local"


def protect(app: Flask, services: Services) -> None:
    """Checks the caller before, and records changes after, each of the application's routes, which
    are complete. Raises LookupError for a route that is not declared, and for one of Ollama's
    that is not known as such or the other way round."""
    calls = calls_of(app)
    for route in app.url_map.iter_rules():
        if route.endpoint not in calls:
            raise LookupError(f"{route.rule} does not declare who may call it")
        if is_ollamas(route.rule) != (calls[route.endpoint].rule is Rule.OLLAMA):
            raise LookupError(f"{route.rule} is Ollama's by its path or by its rule alone")
    app.before_request(lambda: _admit(services, calls))
    app.after_request(lambda response: _finish(services, calls, response))


def calls_of(app: Flask) -> dict[str, Call]:
    """The application's declared routes, by endpoint."""
    found: dict[str, Call] = {}
    for blueprint in app.blueprints.values():
        if isinstance(blueprint, Api):
            found |= blueprint.calls
    return found


def may_edit_config(caller: Caller, program: Program) -> bool:
    """The config names programs to run, so that a stolen session alone must not change it."""
    return caller.role == ADMIN and (caller.is_local or program.allow_config_edit)


def is_still_authorized(services: Services, caller: Caller) -> bool:
    """Whether a caller that could see the pages still can: its account, token or session may have
    been removed since."""
    known = services.access.snapshot
    if caller.account is not None:
        account = known.accounts.get(caller.account.name)
        return account is not None and account.generation == caller.account.generation
    if caller.token is not None:
        return known.is_valid(caller.token, services.clock.wall_ms())
    if caller.local_token is not None:
        return services.local_token.is_session(caller.local_token)
    return not known.accounts


def _admit(services: Services, calls: Mapping[str, Call]) -> werkzeug.Response | None:
    """Answers a preflight; raises ApiError where the caller may not call the route."""
    # Each use of `request` and `g` looks the current one up, and every request comes here.
    asked, kept = current(request), current(g)
    environ, program = asked.environ, services.fleet.config.program
    client = client_of(environ, program)
    kept.secure = client.is_secure
    try:
        return _admit_client(services, calls, client)
    except ApiError as error:
        # Quoted: a path may hold any character, the end of a line too.
        what = f"{environ['REQUEST_METHOD']} {without_pass(asked.path)}"[:_MAX_LOGGED]
        log.info("%r from %s: %d %s", what, client.address or "-", error.status, error.code)
        raise


def _admit_client(
    services: Services, calls: Mapping[str, Call], client: Client
) -> werkzeug.Response | None:
    asked, kept = current(request), current(g)
    environ, program = asked.environ, services.fleet.config.program
    if environ["PATH_INFO"] != "/health":  # health checks may use any name
        check_host(client.host, program)
    origin = environ.get("HTTP_ORIGIN")
    is_page = origin == "null" and has_pass(environ["PATH_INFO"])
    if origin is not None and not is_page:
        kept.cors = allowed_origin(environ, client.host, program)
        if kept.cors and environ["REQUEST_METHOD"] == "OPTIONS":
            return preflight(kept.cors, program.cors_origins)
    route = asked.url_rule
    if route is None:
        return None  # Flask answers 404 or 405
    rule = calls[route.endpoint].rule
    kept.caller = _caller(services, program, rule, client, environ)
    if is_page:  # whose pass is good: it may read the answers
        kept.cors = origin
        if environ["REQUEST_METHOD"] == "OPTIONS":
            return preflight(kept.cors, methods=environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD"))
    if rule not in _WITHOUT_SESSION and environ["REQUEST_METHOD"] in CHANGING:
        _check_change()
    return None


# --- the caller -----------------------------------------------------------------------------------


def _caller(
    services: Services, program: Program, rule: Rule, client: Client, environ: dict[str, Any]
) -> Caller:
    """Raises ApiError 401 and 403 for who may not do what the rule is for."""
    anonymous = Caller(client.address, client.is_local)
    if rule is Rule.OPEN:
        return anonymous
    if rule in _FOR_MODELS:
        return _user(services, anonymous, environ)
    if rule is Rule.RAW:
        return _raw_user(services, anonymous, environ)
    if rule is Rule.KEY:
        key = services.access.snapshot.key(_secret(environ) or "", services.clock.wall_ms())
        if key is None:
            raise invalid_key_error("An API key is needed here")
        return anonymous._replace(key=key)
    if rule is Rule.SETUP and services.access.snapshot.accounts:
        return anonymous  # whom the page redirects to sign in
    if rule is Rule.LOCAL and anonymous.is_local:
        return anonymous
    if rule is Rule.SCRIPT and _bearer(environ) is None:  # a page can ask by a GET, with its cookie
        raise ApiError(
            401, "token_needed", "This takes a token of an admin, as `Authorization: Bearer …`"
        )
    caller = _person(services, anonymous, environ)
    if rule is not Rule.VIEW and caller.role != ADMIN:
        raise _admin_needed(caller, rule)
    if rule is Rule.CONFIG and not may_edit_config(caller, program):
        raise ApiError(
            403,
            "config_locked",
            "The config names programs to run, so that it can be edited on this machine alone:"
            " open this page there, edit the file itself, or set allow_config_edit in it",
        )
    return caller


def _user(services: Services, anonymous: Caller, environ: dict[str, Any]) -> Caller:
    """The caller of a model's endpoint."""
    known, is_closed = services.access.snapshot, not services.models_are_open
    secret = _secret(environ)
    if secret is not None:
        key = known.key(secret, services.clock.wall_ms())
        if key is not None:
            return Caller(anonymous.address, anonymous.is_local, key=key)
        if is_closed:
            raise invalid_key_error("The API key is not valid")
    elif "HTTP_X_CSRFTOKEN" in environ and (is_closed or known.accounts):
        caller = _person(services, anonymous, environ)  # from our own pages
        if caller.role != ADMIN:
            raise ApiError(403, "admin_needed", "Only an admin can try models without an API key")
        _check_token()
        return caller
    if is_closed:
        raise invalid_key_error("An API key is needed")
    return anonymous


def _raw_user(services: Services, anonymous: Caller, environ: dict[str, Any]) -> Caller:
    """The caller of a model's whole server. What answers there is foreign content on our origin,
    and some of its paths change the server by a GET: no page but its own may ask for one."""
    known, secret = services.access.snapshot, _secret(environ)
    site = environ.get("HTTP_SEC_FETCH_SITE", "none")
    # A script or a frame of it in one of our own pages would have our origin.
    is_part = environ.get("HTTP_SEC_FETCH_DEST", "document") != "document"
    if has_pass(environ["PATH_INFO"]):
        if site.startswith("same-") and is_part:
            raise _not_for_pages()
        return _page_visitor(services, anonymous, environ)
    if site == "cross-site":
        raise _not_for_pages()
    # Also as a bearer: a key that was brought along may have any shape.
    key = None if secret is None else known.key(secret, services.clock.wall_ms())
    if secret is not None and key is None and not _is_token(secret, environ):
        raise invalid_key_error("The API key is not valid")
    if key is not None:
        if not key.raw:
            raise ApiError(
                403,
                "raw_not_allowed",
                f"The key {key.name!r} is for the models' endpoints under /v1, not for their whole"
                " servers; an admin may set `raw` of it",
            )
        return anonymous._replace(key=key)
    caller = _person(services, anonymous, environ)
    if caller.role != ADMIN:
        raise _admin_needed(caller, Rule.RAW)
    if secret is None:
        if site == "same-site" or is_part:
            raise _not_for_pages()
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            raise ApiError(
                403,
                "token_needed",
                "Who is signed in may only look at the pages of a model's server: for all else send"
                " a token, or an API key with `raw`, as `Authorization: Bearer …`",
            )
    return caller


def _is_token(secret: str, environ: dict[str, Any]) -> bool:
    """Whether it is meant as a token, or the local token, which have no one shape."""
    return _bearer(environ) is not None and not secret.startswith(credentials.KEY_PREFIX)


def _page_visitor(services: Services, anonymous: Caller, environ: dict[str, Any]) -> Caller:
    """Who opened the page whose pass is in the path."""
    page = services.page_passes.find(environ["PATH_INFO"])
    caller = None if page is None else _signed_in_by(services, anonymous, page.session)
    if caller is None or caller.role != ADMIN:
        raise ApiError(403, "page_expired", "This page has expired: open /upstream/NAME/ again")
    return caller


def _not_for_pages() -> ApiError:
    return ApiError(
        403,
        "cross_site_request",
        "No other web page may lead to a model's server or use it: type its address, or follow a"
        " link of LLM-Manager",
    )


def _person(services: Services, anonymous: Caller, environ: dict[str, Any]) -> Caller:
    """The caller of a page or of the API. Raises ApiError 401, and 403 from elsewhere while
    there is no account."""
    known = services.access.snapshot
    secret = _bearer(environ)
    if secret is not None:
        token = known.token(secret, services.clock.wall_ms())
        generation = services.local_token.check(secret) if token is None else None
        if generation is not None:
            return anonymous._replace(local_token=generation)
        if token is None:
            is_key = secret.startswith(credentials.KEY_PREFIX) or known.is_key(secret)
            for_keys = "An API key is for /v1, Ollama's paths and /api/keys/me"
            why = for_keys if is_key else "The token is not valid"
            raise ApiError(
                401, "invalid_token", f"{why}: an admin makes tokens for scripts on the page Access"
            )
        return anonymous._replace(token=token)
    caller = signed_in(services, anonymous)
    if caller is not None:
        return caller
    if known.accounts:
        raise ApiError(401, "sign_in_needed", "Sign in at /login, or send a token for scripts")
    if not anonymous.is_local:
        raise _no_password_yet()
    return anonymous._replace(is_onlooker=True)


def signed_in(services: Services, anonymous: Caller) -> Caller | None:
    """The caller whose session the request belongs to."""
    return _signed_in_by(services, anonymous, session)


def _signed_in_by(services: Services, anonymous: Caller, kept: Mapping[str, Any]) -> Caller | None:
    """``kept`` is what a session holds."""
    account = services.access.snapshot.accounts.get(kept.get("account", ""))
    if account is not None and kept.get("generation") == account.generation:
        return anonymous._replace(account=account)
    generation = kept.get("local_token")
    if generation is not None and services.local_token.is_session(generation):
        return anonymous._replace(local_token=generation)
    return None


_HOW = (
    "run `llm-manager open` on the machine itself, as the user who runs LLM-Manager, or"
    " `llm-manager users add NAME --role admin --password-stdin`; scripts send the local token,"
    " which is in the file admin-token of the data folder, as `Authorization: Bearer …`"
)


def _admin_needed(caller: Caller, rule: Rule) -> ApiError:
    if not caller.is_onlooker:
        return ApiError(
            403,
            "admin_needed",
            f"{caller.name} may view this and change nothing: ask an admin",
        )
    if rule is Rule.SETUP:
        return ApiError(
            403, "admin_needed", f"The first account is made by the machine's owner: {_HOW}"
        )
    return ApiError(
        401, "sign_in_needed", f"This takes an admin, and there is no account yet: {_HOW}"
    )


def _no_password_yet() -> ApiError:
    return ApiError(
        403,
        "no_password_yet",
        "No password is set yet, so that this answers on the machine itself alone. To make the"
        f" first account, {_HOW}",
    )


def has_secret(environ: dict[str, Any]) -> bool:
    """Whether it comes with a token or a key, which no foreign page can send."""
    return _secret(environ) is not None


def _bearer(environ: dict[str, Any]) -> str | None:
    scheme, _, secret = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


def _secret(environ: dict[str, Any]) -> str | None:
    return _bearer(environ) or environ.get("HTTP_X_API_KEY") or None


# --- changes --------------------------------------------------------------------------------------


def _check_change() -> None:
    """A form on a foreign page cannot send JSON's content type, which is what scripts are asked
    for, nor the token that our own pages know."""
    is_call = request.path.startswith("/api/")
    if is_call and request.mimetype != "application/json":
        raise ApiError(
            415,
            "json_required",
            "Calls that change something need the header Content-Type: application/json",
        )
    has_cookie = current_app.config["SESSION_COOKIE_NAME"] in request.cookies
    is_script = _bearer(request.environ) is not None  # which no foreign page can send
    if not is_call or (has_cookie and not is_script):
        _check_token()


def _check_token() -> None:
    try:
        validate_csrf(request.headers.get("X-CSRFToken") or request.form.get("csrf_token"))
    except ValidationError as error:
        raise ApiError(403, "page_outdated", "This page is out of date: load it again") from error


def _finish(services: Services, calls: Mapping[str, Call], response: Response) -> Response:
    asked, kept = current(request), current(g)
    sandbox(asked.environ["PATH_INFO"], response)
    if cors := kept.get("cors"):
        response.headers.update(cors_headers(cors))
        response.headers.add("Vary", "Origin")
    route = asked.url_rule
    if route is not None and asked.environ["REQUEST_METHOD"] != "OPTIONS":
        call = calls[route.endpoint]
        if call.audit and kept.get("is_change", response.status_code < 400):
            _record(services, call)
    return response


def _record(services: Services, call: Call) -> None:
    names = [str(value) for value in (request.view_args or {}).values()]
    given: Any = {}
    if 0 < (request.content_length or 0) <= _MAX_RECORDED:
        try:
            given = json.loads(request.get_data())
        except (ValueError, RecursionError):
            given = {}  # of a call that takes no body
    detail = given if isinstance(given, dict) else {}
    if not names and isinstance(detail.get("name"), str):
        names = [detail["name"]]
    record_audit(services, g.caller, call.name, ", ".join(names), detail)


def record_audit(
    services: Services, caller: Caller, action: str, subject: str, detail: dict[str, Any]
) -> None:
    """Adds to the table of who changed what; where the database does not take it, to the log."""
    who, now_ms = caller.name, services.clock.wall_ms()
    try:
        services.access.record(
            lambda connection: audit.add(
                connection, now_ms, who, caller.address, action, subject, detail
            )
        )
    except DatabaseError as error:
        log.error("%s of %s by %s is not in the audit table: %s", action, subject, who, error)
