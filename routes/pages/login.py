"""Signing in and out, and the first password."""

from __future__ import annotations

import functools
import logging
import math

import werkzeug
from flask import Blueprint, Response, g, redirect, render_template, request, session

from manager.access import accounts, credentials
from manager.access.accounts import FIRST
from manager.access.login_throttle import LoginThrottle
from manager.errors import ApiError
from manager.storage.store import DatabaseError
from routes.auth import Caller, record_audit, signed_in
from routes.pages import views
from routes.services import Services

log = logging.getLogger(__name__)

_NO_STORE = {"Cache-Control": "no-store"}


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("login", __name__)
    routes.register_error_handler(DatabaseError, _unreadable)
    throttle = LoginThrottle(services.clock.monotonic)

    @routes.get("/login")
    def show() -> werkzeug.Response:
        if signed_in(services, g.caller) is not None:
            return redirect(views.own_path(request.args.get("next", "")), 303)
        is_new = not services.access.snapshot.accounts
        return _form("login.html", is_new=is_new, name="", back=request.args.get("next", ""))

    @routes.post("/login")
    def sign_in() -> werkzeug.Response:
        name, password = _given("name"), _given("password")
        account = services.access.snapshot.accounts.get(name)
        back = _given("next")

        def check() -> bool:
            hashed = _nobodys() if account is None else account.password
            return credentials.is_password(hashed, password)

        try:
            is_right = throttle.attempt(g.caller.address, check)
        except ApiError as error:
            return _refused("login.html", error, name=name, back=back)
        if account is None or not is_right:
            log.warning("wrong password for %r from %s", name[:100], g.caller.address)
            wrong = ApiError(403, "wrong_password", "The name or the password is wrong")
            return _refused("login.html", wrong, name=name, back=back)
        _begin(services, g.caller._replace(account=account), "signed in")
        return redirect(views.own_path(back), 303)

    @routes.get("/login/link")
    def link() -> Response:
        """Where a link of the local token leads: a script sends its code, which is in the part of
        the address that only the browser sees."""
        return _form("link.html")

    @routes.post("/login/link")
    def follow_link() -> werkzeug.Response:
        generation = services.local_token.accept(_given("code"), services.clock.wall_ms())
        if generation is None:
            log.warning("a link that is not valid to sign in from %s", g.caller.address)
            return _refused(
                "link.html",
                ApiError(
                    403,
                    "link_not_valid",
                    "This link was used already or has expired: `llm-manager open` makes another",
                ),
            )
        _begin(services, g.caller._replace(local_token=generation), "signed in")
        return redirect("/", 303)

    @routes.post("/logout")
    def sign_out() -> werkzeug.Response:
        session.clear()
        return redirect("/login", 303)

    @routes.get("/setup")
    def setup() -> werkzeug.Response:
        if services.access.snapshot.accounts:
            return redirect("/login", 303)
        return _form("setup.html", name=FIRST)

    @routes.post("/setup")
    def set_up() -> werkzeug.Response:
        name, password = _given("name"), _given("password")
        if (
            services.access.snapshot.accounts
        ):  # before the work of hashing, which nobody may ask for
            return redirect("/login", 303)
        try:
            if password != _given("again"):
                raise ApiError(400, "bad_parameter", "The two passwords are not the same")
            hashed = credentials.password_hash(password)
            now_ms = services.clock.wall_ms()
            account = services.access.change(
                lambda connection: accounts.add_first(connection, name, hashed, now_ms)
            )
        except ApiError as error:
            return _refused("setup.html", error, name=name)
        _begin(services, g.caller._replace(account=account), "first password")
        return redirect("/", 303)

    return routes


@functools.cache
def _nobodys() -> str:
    """As long to check as any: nobody learns by the time which accounts there are."""
    return credentials.password_hash("nobody's password")


def _unreadable(error: Exception) -> Response:
    log.error("usage.db cannot be used: %s", error)
    return views.failed(ApiError(503, "database_unavailable", f"usage.db cannot be used: {error}"))


def _given(name: str) -> str:
    return request.form.get(name, "")


def _begin(services: Services, caller: Caller, action: str) -> None:
    # What somebody may have put into the session before must not live on in it.
    session.clear()
    session.permanent = True
    if caller.account is not None:
        session["account"] = caller.account.name
        session["generation"] = caller.account.generation
    else:
        session["local_token"] = caller.local_token
    record_audit(services, caller, action, caller.name, {})


def _form(template: str, **values: object) -> Response:
    text = render_template(template, page=None, message="", **values)
    return Response(text, mimetype="text/html", headers=_NO_STORE)


def _refused(template: str, error: ApiError, **values: str) -> Response:
    text = render_template(template, page=None, message=error.message, **values)
    answer = Response(text, error.status, mimetype="text/html", headers=_NO_STORE)
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return answer
