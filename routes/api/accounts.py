"""``/api/accounts``, ``/api/tokens``, ``/api/audit``: who may use the API, and who changed what."""

from __future__ import annotations

from typing import Any

from flask import Response, g, jsonify, session

from manager.access import Account, Token, accounts, audit, credentials
from manager.billing import iso
from manager.storage import read_connection
from routes.api.usage import zone_of
from routes.calls import Api, Rule
from routes.request import choice, integer, moment, text
from routes.services import Services

_MAX_ID = 999_999_999
_NAME = text(pattern="^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")
_ROLE = choice("admin", "viewer")
_PASSWORD = text(8, 200)
_NO_STORE = {"Cache-Control": "no-store"}


def blueprint(services: Services) -> Api:
    api = Api("access", tag="access")
    path = services.data_dir / "usage.db"

    @api.call("GET /api/session", Rule.VIEW)
    def whoami() -> Response:
        """Who is signed in, and whether a password is set and `/v1` asks for keys."""
        known, caller = services.access.snapshot, g.caller
        return jsonify(
            {
                "name": caller.name,
                "role": caller.role,
                "is_local": caller.is_local,
                "password_is_set": bool(known.accounts),
                "models_are_open": services.models_are_open,
            }
        )

    @api.call("GET /api/accounts", Rule.ADMIN)
    def all_accounts() -> Response:
        """The people who may sign in."""
        known = services.access.snapshot.accounts.values()
        return jsonify({"accounts": [_account(one) for one in known]})

    @api.call(
        "POST /api/accounts",
        Rule.ADMIN,
        body={
            "name": _NAME.required(),
            "role": _ROLE.required(),
            "password": _PASSWORD.required(),
        },
        answers={201: "Json"},
        errors=(409,),
    )
    def add_account(body: dict[str, Any]) -> tuple[Response, int]:
        """Adds an account."""
        name, role = body["name"], body["role"]
        hashed = credentials.password_hash(body["password"])
        now_ms = services.clock.wall_ms()
        made = services.access.change(
            lambda connection: accounts.add(connection, name, role, hashed, now_ms)
        )
        return jsonify(_account(made)), 201

    @api.call(
        "PATCH /api/accounts/<name>",
        Rule.ADMIN,
        body={"role": _ROLE, "password": _PASSWORD},
        errors=(409,),
    )
    def change_account(name: str, body: dict[str, Any]) -> Response:
        """Sets a role or a password; a new password signs out everywhere else."""
        role, password = body.get("role"), body.get("password")
        hashed = None if password is None else credentials.password_hash(password)
        account = services.access.change(
            lambda connection: accounts.change(connection, name, role, hashed)
        )
        if hashed is not None and g.caller.account and g.caller.account.name == name:
            session["generation"] = account.generation  # signed out everywhere else
        return jsonify(_account(account))

    @api.call("DELETE /api/accounts/<name>", Rule.ADMIN, errors=(409,))
    def remove_account(name: str) -> Response:
        """Removes an account; there is always an admin."""
        services.access.change(lambda connection: accounts.remove(connection, name))
        return jsonify({"name": name})

    @api.call("POST /api/accounts/<name>/sign-out", Rule.ADMIN, errors=(409,))
    def sign_out(name: str) -> Response:
        """Ends all sessions of an account."""
        return jsonify(
            _account(services.access.change(lambda connection: accounts.sign_out(connection, name)))
        )

    @api.call("GET /api/tokens", Rule.ADMIN)
    def all_tokens() -> Response:
        """Tokens of scripts, without their secrets."""
        known, now_ms = services.access.snapshot.tokens.values(), services.clock.wall_ms()
        return jsonify({"tokens": [_token(one, now_ms) for one in known]})

    @api.call(
        "POST /api/tokens",
        Rule.ADMIN,
        body={
            "name": _NAME.required(),
            "role": _ROLE.required(),
            "expires_at": moment(lambda: zone_of(services)).nullable(),
        },
        answers={201: "Json"},
        errors=(409,),
    )
    def add_token(body: dict[str, Any]) -> tuple[Response, int]:
        """Adds a token; its `secret` is shown once."""
        name, role, expires_ms = body["name"], body["role"], body.get("expires_at")
        now_ms, by = services.clock.wall_ms(), g.caller.name
        made, secret = services.access.change(
            lambda connection: accounts.add_token(connection, name, role, by, expires_ms, now_ms)
        )
        answer = jsonify({**_token(made, now_ms), "secret": secret})
        answer.headers.update(_NO_STORE)
        return answer, 201

    @api.call("DELETE /api/tokens/<name>", Rule.ADMIN, errors=(409,))
    def remove_token(name: str) -> Response:
        """Removes a token."""
        services.access.change(lambda connection: accounts.remove_token(connection, name))
        return jsonify({"name": name})

    @api.call(
        "GET /api/audit",
        Rule.ADMIN,
        query={"limit": integer(1, 1000).default_to(100), "cursor": integer(1, _MAX_ID)},
    )
    def changes(query: dict[str, Any]) -> Response:
        """Who changed what, newest first; `cursor` is the last answer's `next`."""
        with read_connection(path) as connection:
            found, following = audit.page(connection, query["limit"], query.get("cursor"))
        return jsonify(
            {
                "audit": [
                    {
                        "id": entry.id,
                        "at": iso(entry.at_ms),
                        "who": entry.who,
                        "address": entry.address,
                        "action": entry.action,
                        "subject": entry.subject,
                        "detail": entry.detail,
                    }
                    for entry in found
                ],
                "next": None if following is None else str(following),
            }
        )

    return api


def _account(one: Account) -> dict[str, Any]:
    return {"name": one.name, "role": one.role, "created_at": iso(one.created_ms)}


def _token(one: Token, now_ms: int) -> dict[str, Any]:
    return {
        "name": one.name,
        "role": one.role,
        "hint": one.hint,
        "created_by": one.created_by,
        "created_at": iso(one.created_ms),
        "expires_at": None if one.expires_ms is None else iso(one.expires_ms),
        "is_expired": one.expires_ms is not None and one.expires_ms <= now_ms,
    }
