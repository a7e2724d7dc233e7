"""API keys, accounts and tokens over a real database."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from manager.access import accounts, api_keys, audit, credentials, registry
from manager.access.api_keys import Budget, Key
from manager.access.registry import AccessRegistry
from manager.clock import Clock
from manager.errors import ApiError
from manager.storage import maintenance
from manager.storage.store import Store

NOW = 1_795_400_000_000
DAY = 24 * 3_600_000
OLDER = Path(__file__).parents[2] / "integration" / "storage" / "schema4.sql"


class Database:
    """A registry over a database, which a second process changes as well."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "usage.db"
        self.store = Store(self.path)
        self.registry = AccessRegistry(self.store, self.path, Clock(wall=lambda: NOW / 1000))

    def add(self, name: str, **limits: object) -> str:
        key = replace(Key(name), **limits)  # type: ignore[arg-type]
        return self.registry.change(lambda c: api_keys.add(c, key, NOW))[1]

    def knows(self, secret: str, now_ms: int = NOW) -> str | None:
        key = self.registry.snapshot.key(secret, now_ms)
        return None if key is None else key.name

    def refusal(self, secret: str, now_ms: int = NOW) -> str:
        with pytest.raises(ApiError) as caught:
            self.registry.snapshot.key(secret, now_ms)
        assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
        return caught.value.message


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    yield database
    database.store.close()


def test_a_new_key_is_known_by_its_secret_and_by_nothing_near_it(database: Database) -> None:
    secret = database.add("ann")
    assert secret.startswith("sk-llm-")
    assert len(secret) == 7 + 43
    assert database.knows(secret) == "ann"
    for other in (
        "",
        "ann",
        secret[:-1],
        secret + "A",
        secret.swapcase(),
        credentials.hint(secret),
    ):
        assert database.knows(other) is None


OWN = "sk-7Jq2vXn0Rk5tWbY8cZ1dLs"  # of another gateway


def bring(database: Database, name: str, secret: str) -> str:
    return database.registry.change(lambda c: api_keys.add(c, Key(name), NOW, secret))[1]


def test_a_key_may_have_the_secret_that_its_owner_has_already(database: Database) -> None:
    assert bring(database, "ann", OWN) == OWN
    assert database.knows(OWN) == "ann"
    (secret,) = database.registry.snapshot.keys["ann"].secrets
    assert (secret.hint, secret.digest) == (OWN[-4:], credentials.digest(OWN))
    _, new = database.registry.change(lambda c: api_keys.rotate(c, "ann", DAY, NOW))
    assert new.startswith("sk-llm-")
    assert database.knows(OWN) == database.knows(new) == "ann"


def test_no_two_keys_have_one_secret_also_after_the_first_is_revoked(database: Database) -> None:
    bring(database, "ann", OWN)
    made = database.add("bob")
    database.registry.change(lambda c: api_keys.revoke(c, "ann", NOW))
    for secret in (OWN, made):
        with pytest.raises(ApiError) as caught:
            bring(database, "eve", secret)
        assert (caught.value.status, caught.value.code) == (409, "secret_taken")
        assert not any(name in caught.value.message for name in ("ann", "bob", secret))
    assert sorted(database.registry.snapshot.keys) == ["ann", "bob"]


def test_a_token_is_never_a_keys_secret(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_token(name: str) -> str:
        return database.registry.change(
            lambda c: accounts.add_token(c, name, "admin", "me", None, NOW)
        )[1]

    for secret in (add_token("t"), "tk-llm-" + OWN):
        with pytest.raises(ApiError, match="is a token"):
            bring(database, "eve", secret)
    monkeypatch.setattr(credentials, "TOKEN_PREFIX", "")  # as if it had no prefix
    odd = add_token("odd")
    monkeypatch.setattr(credentials, "TOKEN_PREFIX", "tk-llm-")
    with pytest.raises(ApiError, match="is a token"):
        bring(database, "eve", odd)


def test_what_is_on_the_disk_is_not_the_secret(database: Database, tmp_path: Path) -> None:
    secret, (_, token) = (
        database.add("ann"),
        database.registry.change(lambda c: accounts.add_token(c, "t", "admin", "me", None, NOW)),
    )
    database.registry.change(
        lambda c: accounts.add(c, "admin", "admin", credentials.password_hash("swordfish!"), NOW)
    )
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ann" in stored
    for hidden in (secret[10:30], token[10:30], "swordfish"):
        assert hidden.encode() not in stored


def test_a_key_that_is_revoked_or_expired_says_so(database: Database) -> None:
    secret, short = database.add("ann"), database.add("bob", expires_ms=NOW + DAY)
    assert database.knows(short, NOW + DAY - 1) == "bob"
    assert "expired" in database.refusal(short, NOW + DAY)
    database.registry.change(lambda c: api_keys.revoke(c, "ann", NOW))
    assert "revoked" in database.refusal(secret)
    again = database.registry.change(lambda c: api_keys.revoke(c, "ann", NOW + 5))
    assert again.revoked_ms == NOW
    for change in (
        lambda c: api_keys.rotate(c, "ann", 0, NOW),
        lambda c: api_keys.change(c, "ann", {"owner": "x"}),
    ):
        with pytest.raises(ApiError, match="revoked"):
            database.registry.change(change)


def test_a_rotated_key_is_known_by_both_secrets_for_a_while(database: Database) -> None:
    old = database.add("ann", requests_per_minute=5)
    _, new = database.registry.change(lambda c: api_keys.rotate(c, "ann", DAY, NOW))
    assert database.knows(old) == database.knows(new) == "ann"
    assert database.knows(old, NOW + DAY - 1) == "ann"
    assert "replaced" in database.refusal(old, NOW + DAY)
    assert database.knows(new, NOW + 100 * DAY) == "ann"
    # Once more does not lengthen what the first time has left to the oldest.
    database.registry.change(lambda c: api_keys.rotate(c, "ann", 3 * DAY, NOW))
    assert "replaced" in database.refusal(old, NOW + DAY)
    assert database.knows(new, NOW + 3 * DAY - 1) == "ann"
    # Those that are over are forgotten by the next.
    database.registry.change(lambda c: api_keys.rotate(c, "ann", 0, NOW + 2 * DAY))
    assert database.knows(old, NOW + 2 * DAY) is None
    assert "replaced" in database.refusal(new, NOW + 2 * DAY)


def test_a_name_is_never_given_twice_since_bills_have_it(database: Database) -> None:
    database.add("ann")
    database.registry.change(lambda c: api_keys.revoke(c, "ann", NOW))
    with pytest.raises(ApiError, match="'ann'") as caught:
        database.add("ann")
    assert caught.value.status == 409


@pytest.mark.parametrize("name", ["/a", "a/", "a//b", "a/rotate", "%2F", "名 ?#"])
def test_a_key_may_have_a_name_that_an_address_has_to_encode(database: Database, name: str) -> None:
    database.add(name)
    assert list(database.registry.snapshot.keys) == [name]


@pytest.mark.parametrize(
    ("field", "key"),
    [
        *(
            ("name", Key(name))
            for name in (
                "",
                " ",
                "*",
                "me",
                "none",
                "..",
                "@ann",
                " a",
                "a\u202eb",
                "a\nb",
                "x" * 101,
            )
        ),
        ("owner", Key("a", owner="x" * 101)),
        ("models", Key("a", models=())),
        ("models", Key("a", models=("",))),
        ("priority", Key("a", priority=11)),
        ("priority", Key("a", priority=-1)),
        ("budget", Key("a", budget=Budget(1, "year"))),
        ("budget", Key("a", budget=Budget(-1, "day"))),
    ],
)
def test_what_a_key_cannot_be_is_reported_by_its_field(
    database: Database, field: str, key: Key
) -> None:
    with pytest.raises(ApiError) as caught:
        database.registry.change(lambda c: api_keys.add(c, key, NOW))
    assert (caught.value.status, caught.value.param) == (400, field)
    assert database.registry.snapshot.keys == {}


def test_a_key_keeps_all_that_it_was_made_with(database: Database) -> None:
    given = Key(
        "ann",
        owner="Ann 安",
        models=("a", "b c"),
        requests_per_minute=1,
        tokens_per_minute=2,
        max_concurrency=3,
        budget=Budget(4, "month"),
        priority=5,
        raw=True,
        expires_ms=NOW + 6,
    )
    database.registry.change(lambda c: api_keys.add(c, given, NOW))
    kept = database.registry.snapshot.keys["ann"]
    assert replace(kept, secrets=(), created_ms=0) == given
    database.registry.change(lambda c: api_keys.change(c, "ann", {"models": None, "budget": None}))
    changed = database.registry.snapshot.keys["ann"]
    assert changed == replace(kept, models=None, budget=None)
    assert changed.secrets == kept.secrets


def test_a_key_may_use_a_model_by_its_name_or_an_alias() -> None:
    assert Key("a").may_use(["anything"])
    key = Key("a", models=("gpt-4", "Qwen"))
    assert key.may_use(["Qwen", "q"])
    assert key.may_use(["Real", "gpt-4"])
    assert not key.may_use(["Real", "gpt-3"])


# --- several processes ----------------------------------------------------------------------------


def test_what_another_process_changes_is_seen(database: Database) -> None:
    with closing(maintenance.connect(database.path)) as shell:
        with maintenance.transaction(shell):
            _, secret = api_keys.add(shell, Key("ann"), NOW)
            registry.changed(shell)
        assert database.knows(secret) is None
        database.registry.tick()
        assert database.knows(secret) == "ann"
        with maintenance.transaction(shell):
            api_keys.revoke(shell, "ann", NOW)
            registry.changed(shell)
    database.registry.tick()
    assert "revoked" in database.refusal(secret)


def test_a_change_that_fails_leaves_all_as_it_was(database: Database) -> None:
    database.add("ann")
    before = database.registry.snapshot

    def fail(connection: sqlite3.Connection) -> None:
        api_keys.revoke(connection, "ann", NOW)
        raise ApiError(400, "x", "no")

    with pytest.raises(ApiError):
        database.registry.change(fail)
    assert database.registry.snapshot is before
    database.registry.refresh()
    assert database.registry.snapshot is before


def test_what_was_read_before_a_change_does_not_undo_it(database: Database) -> None:
    before = database.registry.snapshot
    secret = database.add("ann")
    database.registry._replace(before)  # by a slow thread
    assert database.knows(secret) == "ann"


def test_a_database_that_cannot_be_read_keeps_the_last_snapshot_and_is_logged_once(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    secret = database.add("ann")
    away = database.path.with_name("away")
    database.path.rename(away)
    for _ in range(3):
        database.registry.tick()
    assert database.knows(secret) == "ann"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    away.rename(database.path)
    database.registry.tick()
    assert database.knows(secret) == "ann"


# --- accounts and tokens --------------------------------------------------------------------------


def test_there_is_always_an_admin(database: Database) -> None:
    change = database.registry.change
    with pytest.raises(ApiError, match="admin"):
        change(lambda c: accounts.add(c, "eve", "viewer", "hash", NOW))
    assert not database.registry.snapshot.accounts
    change(lambda c: accounts.add_first(c, "ann", "hash", NOW))
    with pytest.raises(ApiError) as caught:
        change(lambda c: accounts.add_first(c, "eve", "hash", NOW))
    assert caught.value.code == "password_is_set"
    for last in (
        lambda c: accounts.remove(c, "ann"),
        lambda c: accounts.set_role(c, "ann", "viewer"),
    ):
        with pytest.raises(ApiError) as caught:
            change(last)
        assert caught.value.code == "last_admin"
    assert database.registry.snapshot.accounts["ann"].role == "admin"
    change(lambda c: accounts.add(c, "bob", "admin", "hash", NOW))
    change(lambda c: accounts.remove(c, "ann"))
    assert list(database.registry.snapshot.accounts) == ["bob"]


def test_a_new_password_and_signing_out_end_all_sessions(database: Database) -> None:
    database.registry.change(lambda c: accounts.add_first(c, "ann", "hash", NOW))
    seen = [database.registry.snapshot.accounts["ann"].generation]
    database.registry.change(lambda c: accounts.set_password(c, "ann", "other"))
    seen.append(database.registry.snapshot.accounts["ann"].generation)
    database.registry.change(lambda c: accounts.sign_out(c, "ann"))
    seen.append(database.registry.snapshot.accounts["ann"].generation)
    assert len(set(seen)) == 3


@pytest.mark.parametrize("name", ["", "-a", "a b", "/a", "a/", "a//b", "x" * 65, "名"])
def test_an_account_has_a_name_that_fits_everywhere(database: Database, name: str) -> None:
    with pytest.raises(ApiError) as caught:
        database.registry.change(lambda c: accounts.add(c, name, "admin", "hash", NOW))
    assert caught.value.param == "name"


def test_a_token_is_known_until_it_ends(database: Database) -> None:
    _, secret = database.registry.change(
        lambda c: accounts.add_token(c, "prom", "viewer", "ann", NOW + DAY, NOW)
    )
    found = database.registry.snapshot.token(secret, NOW)
    assert found is not None
    assert (found.name, found.role) == ("prom", "viewer")
    assert database.registry.snapshot.token(secret, NOW + DAY) is None
    assert database.registry.snapshot.token(secret + "x", NOW) is None
    assert database.registry.snapshot.key(secret, NOW) is None
    database.registry.change(lambda c: accounts.remove_token(c, "prom"))
    assert database.registry.snapshot.token(secret, NOW) is None


def test_a_password_is_right_only_as_it_was_set() -> None:
    hashed = credentials.password_hash("correct horse")
    assert hashed.startswith("scrypt:")
    assert "horse" not in hashed
    assert hashed != credentials.password_hash("correct horse")
    assert credentials.is_password(hashed, "correct horse")
    for wrong in ("", "correct hors", "Correct horse", "x" * 10_000_000):
        assert not credentials.is_password(hashed, wrong)
    for unfit in ("", "1234567", "x" * 201):
        with pytest.raises(ApiError, match="8 to 200"):
            credentials.password_hash(unfit)


# --- the audit table ------------------------------------------------------------------------------


def test_the_audit_table_has_what_was_asked_for_without_its_secrets(database: Database) -> None:
    detail = {
        "name": "ann",
        "password": "swordfish",
        "env": {"HF_TOKEN": "hf_x", "PATH": "/bin"},
        "tokens_per_minute": 5,
        "text": "x" * 300,
        "entry": "env: {HF_TOKEN: hf_x}",
        "key": "ann",
    }
    database.registry.record(lambda c: audit.add(c, NOW, "ann", "::1", "PUT", "m", detail))
    database.registry.record(
        lambda c: audit.add(c, NOW, "b", "", "x", "", {"a": list(range(2000))})
    )
    with closing(maintenance.connect(database.path)) as connection:
        (second, first), following = audit.page(connection, 5, None)
    assert following is None
    assert (first.at_ms, first.who, first.address, first.subject) == (NOW, "ann", "::1", "m")
    assert first.detail == {
        "name": "ann",
        "password": "***",
        "env": {"HF_TOKEN": "***", "PATH": "/bin"},
        "tokens_per_minute": 5,
        "text": "***",
        "entry": "***",
        "key": "ann",
    }
    assert list(second.detail) == ["size"]


def test_the_audit_table_is_read_page_by_page(database: Database) -> None:
    for number in range(7):
        database.registry.record(lambda c, n=number: audit.add(c, NOW + n, "ann", "", "do", str(n)))
    seen, cursor = [], None
    with closing(maintenance.connect(database.path)) as connection:
        for _ in itertools.count():
            found, cursor = audit.page(connection, 3, cursor)
            seen.append([int(entry.subject) for entry in found])
            if cursor is None:
                break
    assert seen == [[6, 5, 4], [3, 2, 1], [0]]


def test_a_key_of_an_older_database_may_use_no_whole_servers(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    text = OLDER.read_text(encoding="utf-8")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(text)
        connection.execute(
            "INSERT INTO keys (name, owner, priority, created_ms) VALUES ('a', '', 0, 1)"
        )
        connection.commit()
    Store(path).close()
    with closing(maintenance.connect(path)) as connection:
        assert [(key.name, key.raw) for key in api_keys.load(connection)] == [("a", False)]
