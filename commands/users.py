"""`llm-manager users`: accounts and tokens, also while the program runs."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from commands import offline, options
from commands.offline import OfflineDatabase
from commands.options import CommandError
from manager.access import accounts, credentials


def add_to(commands: Any) -> None:
    """Adds the command to those of `add_subparsers`."""
    users = options.group(commands, "users", "accounts of people and tokens of scripts")
    offline.command(users, "list", _list, "list the accounts and tokens")
    add = _command(users, "add", _add, "make an account; the first one is an admin's")
    _add_role(add, accounts.ADMIN)
    _add_password(add)
    _add_password(_command(users, "password", _password, "set the password of an account"))
    _command(users, "sign-out", _sign_out, "end all sessions of an account")
    _command(users, "remove", _remove, "remove an account")
    token = _command(users, "add-token", _add_token, "make a token, and print it, once")
    _add_role(token, accounts.VIEWER)
    token.add_argument(
        "--expires", type=options.moment_ms, metavar="2027-01-31", help="when it ends"
    )
    _command(users, "remove-token", _remove_token, "remove a token")


def _command(users: Any, name: str, act: offline.Act, summary: str) -> argparse.ArgumentParser:
    parser = offline.command(users, name, act, summary)
    parser.add_argument("name", metavar="NAME")
    return parser


def _add_role(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--role",
        choices=accounts.ROLES,
        default=default,
        help="a viewer may look, an admin change things (default: %(default)s)",
    )


def _add_password(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--password-stdin",
        action="store_true",
        help="read the password from standard input, instead of asking for it",
    )


def _list(_arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    people = [("ACCOUNT", "ROLE", "SINCE")]
    people += [
        (account.name, account.role, offline.iso(account.created_ms))
        for account in database.read(accounts.accounts)
    ]
    offline.table(people)
    scripts = [("TOKEN", "ROLE", "ENDS IN", "EXPIRES")]
    scripts += [
        (token.name, token.role, token.hint, offline.iso(token.expires_ms))
        for token in database.read(accounts.tokens)
    ]
    print()
    offline.table(scripts)


def _add(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    name, role = arguments.name, arguments.role
    hashed = credentials.password_hash(_read_password(arguments))
    database.change(
        "add account",
        name,
        {"role": role},
        lambda connection: accounts.add(connection, name, role, hashed, options.now_ms()),
    )


def _password(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    name = arguments.name
    database.read(lambda connection: accounts.find(connection, name))  # before it is asked for
    hashed = credentials.password_hash(_read_password(arguments))
    database.change(
        "set password",
        name,
        {},
        lambda connection: accounts.set_password(connection, name, hashed),
    )


def _read_password(arguments: argparse.Namespace) -> str:
    if arguments.password_stdin:
        return _as_text(sys.stdin.readline().rstrip("\r\n"))
    try:
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            raise CommandError("the two passwords are not the same")
    except EOFError:
        raise CommandError(
            "no password was given; a script gives one by --password-stdin"
        ) from None
    return _as_text(password)


def _as_text(password: str) -> str:
    try:
        password.encode()
    except UnicodeEncodeError:
        raise CommandError("the password is not text in UTF-8") from None
    return password


def _sign_out(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    name = arguments.name
    database.change("sign out", name, {}, lambda c: accounts.sign_out(c, name))


def _remove(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    name = arguments.name
    database.change("remove account", name, {}, lambda c: accounts.remove(c, name))


def _add_token(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    name, role, by = arguments.name, arguments.role, offline.who()
    _, secret = database.change(
        "add token",
        name,
        {"role": role},
        lambda connection: accounts.add_token(
            connection, name, role, by, arguments.expires, options.now_ms()
        ),
    )
    print(f"The token {name}. It is not shown again:", file=sys.stderr)
    print(secret)


def _remove_token(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    name = arguments.name
    database.change("remove token", name, {}, lambda c: accounts.remove_token(c, name))
