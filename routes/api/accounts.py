"""``/api/accounts``, ``/api/tokens``, ``/api/audit``: who may see and steer, and who did."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g, jsonify, session

from manager.access import accounts, audit, credentials
from manager.access.accounts import Account, Token
from manager.billing.calendar import iso
from manager.storage.store import Connection, DatabaseError, reading
from routes import fields
from routes.api.usage import database_error, zone_of
from routes.request import Query, body, refuse_unknown
from routes.services import Services

_PAGE = 100
_LONGEST_PAGE = 1000
_MOST_ID = 999_999_999
_NO_STORE = {"Cache-Control": "no-store"}


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("access", __name__)
    routes.register_error_handler(DatabaseError, database_error)
    path = services.data_dir / "usage.db"

    @routes.get("/api/session")
    def whoami() -> Response:
        """Who asks, and how the door stands."""
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

    @routes.get("/api/accounts")
    def all_accounts() -> Response:
        known = services.access.snapshot.accounts.values()
        return jsonify({"accounts": [_account(one) for one in known]})

    @routes.post("/api/accounts")
    def add_account() -> tuple[Response, int]:
        given = body()
        refuse_unknown(given, ("name", "role", "password"))
        name = fields.read(given, "name", fields.text)
        role = fields.read(given, "role", fields.text)
        hashed = credentials.password_hash(fields.read(given, "password", fields.text))
        now_ms = services.clock.wall_ms()
        made = services.access.change(
            lambda connection: accounts.add(connection, name, role, hashed, now_ms)
        )
        return jsonify(_account(made)), 201

    @routes.patch("/api/accounts/<name>")
    def change_account(name: str) -> Response:
        given = body()
        refuse_unknown(given, ("role", "password"))
        role = fields.read(given, "role", fields.text, None)
        password = fields.read(given, "password", fields.text, None)
        hashed = None if password is None else credentials.password_hash(password)

        def change(connection: Connection) -> Account:
            if role is not None:
                accounts.set_role(connection, name, role)
            if hashed is not None:
                accounts.set_password(connection, name, hashed)
            return accounts.find(connection, name)

        account = services.access.change(change)
        if hashed is not None and g.caller.account and g.caller.account.name == name:
            session["generation"] = account.generation  # signed out everywhere else
        return jsonify(_account(account))

    @routes.delete("/api/accounts/<name>")
    def remove_account(name: str) -> Response:
        services.access.change(lambda connection: accounts.remove(connection, name))
        return jsonify({"name": name})

    @routes.post("/api/accounts/<name>/sign-out")
    def sign_out(name: str) -> Response:
        return jsonify(
            _account(services.access.change(lambda connection: accounts.sign_out(connection, name)))
        )

    @routes.get("/api/tokens")
    def all_tokens() -> Response:
        known, now_ms = services.access.snapshot.tokens.values(), services.clock.wall_ms()
        return jsonify({"tokens": [_token(one, now_ms) for one in known]})

    @routes.post("/api/tokens")
    def add_token() -> tuple[Response, int]:
        given = body()
        refuse_unknown(given, ("name", "role", "expires_at"))
        name = fields.read(given, "name", fields.text)
        role = fields.read(given, "role", fields.text)
        until = given.get("expires_at")
        expires_ms = (
            None if until is None else fields.moment("expires_at", until, zone_of(services))
        )
        now_ms, by = services.clock.wall_ms(), g.caller.name
        made, secret = services.access.change(
            lambda connection: accounts.add_token(connection, name, role, by, expires_ms, now_ms)
        )
        answer = jsonify({**_token(made, now_ms), "secret": secret})
        answer.headers.update(_NO_STORE)
        return answer, 201

    @routes.delete("/api/tokens/<name>")
    def remove_token(name: str) -> Response:
        services.access.change(lambda connection: accounts.remove_token(connection, name))
        return jsonify({"name": name})

    @routes.get("/api/audit")
    def changes() -> Response:
        query = Query(("limit", "cursor"))
        limit = query.integer("limit", 1, _LONGEST_PAGE) or _PAGE
        before = query.integer("cursor", 1, _MOST_ID)
        with reading(path) as connection:
            found, following = audit.page(connection, limit, before)
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

    return routes


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
