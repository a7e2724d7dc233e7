"""Signing in and out, and the first password."""

from __future__ import annotations

import functools
import logging
import math

import werkzeug
from flask import Response, g, redirect, render_template, request, session

from manager.access import FIRST, LoginThrottle, accounts, credentials
from manager.errors import ApiError
from routes.auth import Caller, record_audit, signed_in
from routes.calls import Api, Rule
from routes.pages import views
from routes.services import Services

log = logging.getLogger(__name__)

_NO_STORE = {"Cache-Control": "no-store"}


def blueprint(services: Services) -> Api:
    api = Api("login")
    throttle = LoginThrottle(services.clock.monotonic)

    @api.call("GET /login", Rule.OPEN)
    def show() -> werkzeug.Response:
        """The page to sign in."""
        if signed_in(services, g.caller) is not None:
            return redirect(views.own_path(request.args.get("next", "")), 303)
        is_new = not services.access.snapshot.accounts
        return _form("login.html", is_new=is_new, name="", back=request.args.get("next", ""))

    @api.call("POST /login", Rule.OPEN)
    def sign_in() -> werkzeug.Response:
        """Signs in with a name and a password."""
        name, password = _given("name"), _given("password")
        account = services.access.snapshot.accounts.get(name)
        back = _given("next")

        def check() -> bool:
            hashed = _unusable_hash() if account is None else account.password
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

    @api.call("GET /login/link", Rule.OPEN)
    def link() -> Response:
        """Where a sign-in link leads.

        A script of the page sends its code, which is in the part of the address that only the
        browser sees.
        """
        return _form("link.html")

    @api.call("POST /login/link", Rule.OPEN)
    def follow_link() -> werkzeug.Response:
        """Signs in with the code of a link, once."""
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

    @api.call("POST /logout", Rule.OPEN)
    def sign_out() -> werkzeug.Response:
        """Signs out."""
        services.page_passes.drop(session)
        session.clear()
        return redirect("/login", 303)

    @api.call("GET /setup", Rule.SETUP)
    def setup() -> werkzeug.Response:
        """The page to make the first account."""
        if services.access.snapshot.accounts:
            return redirect("/login", 303)
        return _form("setup.html", name=FIRST)

    @api.call("POST /setup", Rule.SETUP)
    def set_up() -> werkzeug.Response:
        """Makes the first account."""
        name, password = _given("name"), _given("password")
        if services.access.snapshot.accounts:  # before hashing, which takes long
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

    return api


@functools.cache
def _unusable_hash() -> str:
    """Takes as long to check as any, so that the time does not tell which accounts there are."""
    return credentials.password_hash("no account's password")


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
