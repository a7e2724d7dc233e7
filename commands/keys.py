"""`llm-manager keys`: API keys, also while the program runs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from commands import offline, options
from commands.offline import OfflineDatabase
from manager.access import Budget, Key, api_keys, local_token
from manager.billing import format_amount, parse_amount
from manager.config import MASK

_HOUR_MS = 3_600_000
# By what argparse calls them; each is a field of a key.
_FIELDS = (
    *("owner", "models", "requests_per_minute", "tokens_per_minute", "max_concurrency"),
    *("budget", "priority", "raw", "expires_ms"),
)


def add_to(commands: Any) -> None:
    """Adds the command to those of `add_subparsers`."""
    keys = options.group(commands, "keys", "API keys, with which their owners use the models")
    _command(keys, "list", _list, "list all keys and their limits")
    add = _command(keys, "add", _add, "make a key, and print its secret, once")
    _add_limits(add)
    add.add_argument(
        "--secret-stdin",
        action="store_true",
        help="read a secret that its owner has already from standard input, instead of making one",
    )
    change = _command(keys, "change", _change, "set limits of a key; `none` takes one away")
    _add_limits(change)
    rotate = _command(keys, "rotate", _rotate, "give a key a new secret, and print it, once")
    rotate.add_argument(
        "--keep-old-hours",
        type=_hours,
        default=24,
        metavar="HOURS",
        help="how long the old secret stays valid (default: %(default)s)",
    )
    _command(keys, "revoke", _revoke, "end a key for ever")


def _command(keys: Any, name: str, act: offline.Act, summary: str) -> argparse.ArgumentParser:
    parser = offline.command(keys, name, act, summary)
    if act is not _list:
        parser.add_argument("name", metavar="NAME")
    return parser


def _add_limits(command: argparse.ArgumentParser) -> None:
    # What is not given is not set: a change leaves it as it is.
    limits: tuple[tuple[str, Any, str, str], ...] = (
        ("--owner", str, "WHO", "whose it is"),
        ("--models", _models, "A,B", "names or aliases of the models it may use"),
        ("--requests-per-minute", _limit, "N", "requests in any sixty seconds"),
        ("--tokens-per-minute", _limit, "N", "tokens in any sixty seconds"),
        ("--max-concurrency", _limit, "N", "requests at once"),
        ("--budget", _budget, "10/month", "money a day or a month"),
        ("--priority", int, "0-10", "the higher the sooner, where requests wait"),
    )
    for option, kind, metavar, help_text in limits:
        command.add_argument(
            option, type=kind, metavar=metavar, help=help_text, default=argparse.SUPPRESS
        )
    command.add_argument(
        "--raw",
        action=argparse.BooleanOptionalAction,
        help="may use its models' whole servers, below /upstream; --no-raw: no more",
        default=argparse.SUPPRESS,
    )
    command.add_argument(
        "--expires",
        dest="expires_ms",
        type=lambda text: None if text == "none" else options.moment_ms(text),
        metavar="2027-01-31",
        help="when it ends",
        default=argparse.SUPPRESS,
    )


def _list(_arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    now_ms = options.now_ms()
    rows: list[tuple[str, ...]] = [
        ("NAME", "STATE", "OWNER", "MODELS", "REQ/MIN", "TOK/MIN", "AT ONCE", "BUDGET", "RAW")
    ]
    for key in database.read(api_keys.load):
        limits = (key.requests_per_minute, key.tokens_per_minute, key.max_concurrency)
        budget = key.budget
        rows.append(
            (
                key.name,
                key.state(now_ms),
                key.owner,
                "all" if key.models is None else ",".join(key.models),
                *("-" if limit is None else str(limit) for limit in limits),
                "-" if budget is None else f"{format_amount(budget.amount)}/{budget.period}",
                "yes" if key.raw else "-",
            )
        )
    offline.table(rows)


def _add(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    given = _given(arguments)
    key = Key(arguments.name, **given)
    own, detail = None, _as_json(given)
    if arguments.secret_stdin:
        own, detail = sys.stdin.readline().rstrip("\r\n"), {**detail, "secret": MASK}
        if local_token.is_token_of(arguments.data_dir, own):
            raise api_keys.secret_taken()
    made, secret = database.change(
        "add key", key.name, detail, lambda c: api_keys.add(c, key, options.now_ms(), own)
    )
    if own is None:
        _show(made, secret)


def _change(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    given = _given(arguments)
    database.change(
        "change key",
        arguments.name,
        _as_json(given),
        lambda c: api_keys.change(c, arguments.name, given),
    )


def _rotate(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    keep_ms = arguments.keep_old_hours * _HOUR_MS
    key, secret = database.change(
        "rotate key",
        arguments.name,
        {"keep_old_hours": arguments.keep_old_hours},
        lambda c: api_keys.rotate(c, arguments.name, keep_ms, options.now_ms()),
    )
    _show(key, secret)


def _revoke(arguments: argparse.Namespace, database: OfflineDatabase) -> None:
    database.change(
        "revoke key",
        arguments.name,
        {},
        lambda c: api_keys.revoke(c, arguments.name, options.now_ms()),
    )


def _show(key: Key, secret: str) -> None:
    print(f"The key of {key.name}. It is not shown again:", file=sys.stderr)
    print(secret)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in _FIELDS if hasattr(arguments, name)}


def _as_json(given: dict[str, Any]) -> dict[str, Any]:
    budget = given.get("budget")
    if budget is None:
        return given
    return {**given, "budget": f"{format_amount(budget.amount)}/{budget.period}"}


def _models(text: str) -> tuple[str, ...] | None:
    return None if text == "none" else tuple(filter(None, map(str.strip, text.split(","))))


def _limit(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or not 0 < int(text) <= 10**12:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, or none, found {text!r}")
    return int(text)


def _budget(text: str) -> Budget | None:
    if text == "none":
        return None
    amount, _, period = text.partition("/")
    try:
        return Budget(parse_amount(amount), period)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a budget such as 10/month or 0.5/day: {error}"
        ) from None


def _hours(text: str) -> int:
    if not text.isdecimal() or int(text) > api_keys.MAX_GRACE_HOURS:
        raise argparse.ArgumentTypeError(f"expected 0 to {api_keys.MAX_GRACE_HOURS} hours")
    return int(text)
