"""Passwords and tokens from a shell, also while the program runs:
`python -m commands.users password`"""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from commands import offline
from commands.offline import OfflineDatabase
from manager.access import accounts, credentials
from manager.errors import ApiError


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m commands.users", description="Who may see the pages, and steer."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    offline.command(commands, "list", _list, "accounts and tokens")
    password = _named(commands, "password", _password, "set a password; makes the account")
    password.add_argument("--role", choices=accounts.ROLES, help="admin, for a new account")
    password.add_argument(
        "--stdin", action="store_true", help="read the password from there, instead of asking"
    )
    _named(commands, "sign-out", _sign_out, "end all sessions of an account")
    _named(commands, "remove", _remove, "remove an account")
    token = _named(commands, "add-token", _add_token, "make a token, and show it, once")
    token.add_argument("--role", choices=accounts.ROLES, default=accounts.VIEWER)
    token.add_argument("--expires", type=offline.moment_ms, metavar="2027-01-31")
    _named(commands, "remove-token", _remove_token, "remove a token")
    return offline.run(parser)


def _named(commands: Any, name: str, act: Any, help_text: str) -> argparse.ArgumentParser:
    command = offline.command(commands, name, act, help_text)
    if name == "password":
        command.add_argument("name", nargs="?", default=accounts.FIRST, metavar="NAME")
    else:
        command.add_argument("name", metavar="NAME")
    return command


def _list(_arguments: argparse.Namespace, its: OfflineDatabase) -> None:
    people = [("ACCOUNT", "ROLE", "SINCE")]
    people += [(a.name, a.role, offline.iso(a.created_ms)) for a in its.read(accounts.accounts)]
    offline.table(people)
    scripts = [("TOKEN", "ROLE", "ENDS IN", "EXPIRES")]
    scripts += [
        (t.name, t.role, t.hint, offline.iso(t.expires_ms)) for t in its.read(accounts.tokens)
    ]
    print()
    offline.table(scripts)


def _password(arguments: argparse.Namespace, its: OfflineDatabase) -> None:
    name, role = arguments.name, arguments.role
    hashed = credentials.password_hash(_ask(arguments.stdin))

    def put(connection: Any) -> None:
        if any(account.name == name for account in accounts.accounts(connection)):
            accounts.set_password(connection, name, hashed)
            if role is not None:
                accounts.set_role(connection, name, role)
        else:
            accounts.add(connection, name, role or accounts.ADMIN, hashed, offline.now_ms())

    its.change("set password", name, {} if role is None else {"role": role}, put)


def _ask(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != password:
        raise ApiError(400, "bad_parameter", "The two passwords are not the same")
    return password


def _sign_out(arguments: argparse.Namespace, its: OfflineDatabase) -> None:
    its.change("sign out", arguments.name, {}, lambda c: accounts.sign_out(c, arguments.name))


def _remove(arguments: argparse.Namespace, its: OfflineDatabase) -> None:
    its.change("remove account", arguments.name, {}, lambda c: accounts.remove(c, arguments.name))


def _add_token(arguments: argparse.Namespace, its: OfflineDatabase) -> None:
    by = offline.who()
    _, secret = its.change(
        "add token",
        arguments.name,
        {"role": arguments.role},
        lambda c: accounts.add_token(
            c, arguments.name, arguments.role, by, arguments.expires, offline.now_ms()
        ),
    )
    print(f"The token {arguments.name}. It is not shown again:", file=sys.stderr)
    print(secret)


def _remove_token(arguments: argparse.Namespace, its: OfflineDatabase) -> None:
    its.change(
        "remove token", arguments.name, {}, lambda c: accounts.remove_token(c, arguments.name)
    )


if __name__ == "__main__":
    sys.exit(main())
