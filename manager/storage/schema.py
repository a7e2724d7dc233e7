"""usage.db: its tables. One script or function a version; what was released is never edited.

Times are epoch milliseconds, money is in billionths of the currency. Rows of ``requests`` and
``runs`` are the truth; ``rollups`` and ``latencies`` are added up from them, in UTC: see
`manager.storage.rollups`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from manager.storage import utc_rollups

Migration = str | Callable[[sqlite3.Connection], None]

MIGRATIONS: tuple[Migration, ...] = (
    """
    CREATE TABLE runs (
        id           TEXT PRIMARY KEY,
        model        TEXT NOT NULL,
        scheme       TEXT NOT NULL,
        fingerprint  TEXT NOT NULL,  -- of what was launched: a changed config is not adopted
        port         INTEGER NOT NULL,
        pid          INTEGER,
        pid_created  REAL,           -- epoch seconds, as the system tells it
        started_ms   INTEGER NOT NULL,
        ready_ms     INTEGER,
        ended_ms     INTEGER,
        end_reason   TEXT
    );
    CREATE INDEX runs_open ON runs (started_ms) WHERE ended_ms IS NULL;
    """,
    """
    ALTER TABLE runs ADD COLUMN memory_mb TEXT NOT NULL DEFAULT '{}';  -- JSON, by device
    """,
    """
    ALTER TABLE runs ADD COLUMN mode TEXT NOT NULL DEFAULT '';
    ALTER TABLE runs ADD COLUMN heartbeat_ms INTEGER;  -- when it was last seen alive
    -- How much of it is in run_hours: up to here. Equal to ended_ms when all of it is.
    ALTER TABLE runs ADD COLUMN billed_ms INTEGER;
    CREATE INDEX runs_model ON runs (model, started_ms);
    CREATE INDEX runs_unbilled ON runs (id)
        WHERE ready_ms IS NOT NULL AND (ended_ms IS NULL OR billed_ms IS NOT ended_ms);

    CREATE TABLE requests (
        -- The order in which they were written. Of rows that are gone none is used again: up to
        -- billed_seq everything counts as billed.
        seq               INTEGER PRIMARY KEY AUTOINCREMENT,
        id                BLOB NOT NULL UNIQUE,   -- UUIDv7: its first 48 bits are started_ms
        model             TEXT NOT NULL,          -- '' for a name that is no model's
        asked_for         TEXT NOT NULL,
        mode              TEXT NOT NULL,
        scheme            TEXT NOT NULL,
        key               TEXT NOT NULL,          -- '' for nobody's
        endpoint          TEXT NOT NULL,
        streamed          INTEGER NOT NULL,
        status            INTEGER NOT NULL,
        started_ms        INTEGER NOT NULL,
        leased_ms         INTEGER,                -- when it had its place at the model
        first_byte_ms     INTEGER,
        ended_ms          INTEGER NOT NULL,
        prompt_tokens     INTEGER NOT NULL,       -- cached ones included
        cached_tokens     INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        estimated         INTEGER NOT NULL,
        error             TEXT,
        price             INTEGER,                -- the version that it was priced by
        tier              INTEGER,                -- its place in that version; NULL: none fits
        cost              INTEGER                 -- NULL until it was priced
    );
    CREATE INDEX requests_model ON requests (model, id);
    CREATE INDEX requests_key ON requests (key, id);
    CREATE INDEX requests_failed ON requests (id) WHERE status >= 400;

    -- A version of a model's price. It holds from effective_ms until the next one does. One that
    -- was replaced, before anything was billed by it, is kept and not used.
    CREATE TABLE prices (
        id            INTEGER PRIMARY KEY,
        model         TEXT NOT NULL,
        effective_ms  INTEGER NOT NULL,
        per_hour      INTEGER,          -- NULL: hours cost nothing
        tiers         TEXT NOT NULL,    -- JSON; amounts per million tokens
        created_ms    INTEGER NOT NULL,
        replaced_ms   INTEGER
    );
    CREATE UNIQUE INDEX prices_model ON prices (model, effective_ms) WHERE replaced_ms IS NULL;

    -- What a person adds to a bill or takes off it.
    CREATE TABLE adjustments (
        id          INTEGER PRIMARY KEY,
        model       TEXT NOT NULL,
        key         TEXT NOT NULL,
        at_ms       INTEGER NOT NULL,   -- the moment whose bill it belongs to
        amount      INTEGER NOT NULL,   -- negative: a credit
        note        TEXT NOT NULL,
        created_ms  INTEGER NOT NULL
    );
    CREATE INDEX adjustments_at ON adjustments (at_ms);

    -- A run's time in one hour under one version of the price. The cost is that of all of ms,
    -- rounded once.
    CREATE TABLE run_hours (
        run       TEXT NOT NULL,
        hour_ms   INTEGER NOT NULL,     -- the local hour's start
        price     INTEGER NOT NULL,     -- 0 where there is none
        ms        INTEGER NOT NULL,
        cost      INTEGER NOT NULL,
        PRIMARY KEY (run, hour_ms, price)
    ) WITHOUT ROWID;

    -- Sums over an hour or a day of the configured time zone. A run's time is under key ''. Beside
    -- each model and key there are the sums of a model with all keys (key '*'), and those of a key
    -- with all models (model, mode and scheme '*').
    CREATE TABLE rollups (
        span              TEXT NOT NULL,    -- 'hour' or 'day'
        start_ms          INTEGER NOT NULL,
        model             TEXT NOT NULL,
        key               TEXT NOT NULL,
        mode              TEXT NOT NULL,
        scheme            TEXT NOT NULL,
        requests          INTEGER NOT NULL DEFAULT 0,
        errors            INTEGER NOT NULL DEFAULT 0, -- status 400 and above
        prompt_tokens     INTEGER NOT NULL DEFAULT 0,
        cached_tokens     INTEGER NOT NULL DEFAULT 0,
        completion_tokens INTEGER NOT NULL DEFAULT 0,
        estimated         INTEGER NOT NULL DEFAULT 0, -- requests whose tokens we counted
        unpriced          INTEGER NOT NULL DEFAULT 0, -- requests with tokens that no tier fits
        cost_tokens       INTEGER NOT NULL DEFAULT 0,
        cost_hours        INTEGER NOT NULL DEFAULT 0,
        run_ms            INTEGER NOT NULL DEFAULT 0,
        generated_tokens  INTEGER NOT NULL DEFAULT 0, -- completion tokens of streamed answers
        generated_ms      INTEGER NOT NULL DEFAULT 0, -- from their first byte to their end
        PRIMARY KEY (span, start_ms, model, key, mode, scheme)
    ) WITHOUT ROWID;

    -- How many requests took how long to their first byte and in all, as manager/latency.py packs
    -- it: of a model with all keys and of a key with all models, named as above. With a row for
    -- each model and key there would be about as many as there are requests.
    CREATE TABLE latencies (
        span      TEXT NOT NULL,
        start_ms  INTEGER NOT NULL,
        model     TEXT NOT NULL,
        key       TEXT NOT NULL,
        mode      TEXT NOT NULL,
        scheme    TEXT NOT NULL,
        first     BLOB NOT NULL,
        whole     BLOB NOT NULL,
        PRIMARY KEY (span, start_ms, model, key, mode, scheme)
    ) WITHOUT ROWID;

    -- How far the work beside the request path has come: billed_seq (requests up to it are priced
    -- and rolled up), timezone (that of the rollups).
    CREATE TABLE marks (
        name   TEXT PRIMARY KEY,
        value  TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    -- Who may use the models. What was used before stays under the key's name, so that none is
    -- given twice: a key that is not to be used any more is revoked, and kept.
    CREATE TABLE keys (
        name                 TEXT PRIMARY KEY,
        owner                TEXT NOT NULL,
        models               TEXT,              -- JSON, names or aliases; NULL: all
        requests_per_minute  INTEGER,           -- NULL here and below: no limit
        tokens_per_minute    INTEGER,
        max_concurrency      INTEGER,
        budget               INTEGER,
        budget_period        TEXT,              -- 'day' or 'month'
        priority             INTEGER NOT NULL,
        created_ms           INTEGER NOT NULL,
        expires_ms           INTEGER,
        revoked_ms           INTEGER
    ) WITHOUT ROWID;
    -- What a key is told by. Only digests are kept, here and in tokens.
    CREATE TABLE key_secrets (
        digest          BLOB PRIMARY KEY,
        key             TEXT NOT NULL,
        hint            TEXT NOT NULL,          -- its last characters
        created_ms      INTEGER NOT NULL,
        valid_until_ms  INTEGER                 -- NULL: as long as its key
    ) WITHOUT ROWID;

    -- Who may see and steer.
    CREATE TABLE accounts (
        name        TEXT PRIMARY KEY,
        role        TEXT NOT NULL,              -- 'admin' or 'viewer'
        password    TEXT NOT NULL,              -- hashed
        generation  INTEGER NOT NULL,           -- sessions of another one are over
        created_ms  INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE tokens (
        name        TEXT PRIMARY KEY,
        role        TEXT NOT NULL,
        digest      BLOB NOT NULL UNIQUE,
        hint        TEXT NOT NULL,
        created_by  TEXT NOT NULL,
        created_ms  INTEGER NOT NULL,
        expires_ms  INTEGER
    ) WITHOUT ROWID;

    -- Who changed what.
    CREATE TABLE audit (
        id       INTEGER PRIMARY KEY,
        at_ms    INTEGER NOT NULL,
        who      TEXT NOT NULL,
        address  TEXT NOT NULL,
        action   TEXT NOT NULL,
        subject  TEXT NOT NULL,
        detail   TEXT NOT NULL                  -- JSON, without secrets
    );
    """,
    utc_rollups.migrate,
    """
    -- A run's time is measured by the monotonic clock: the boot of the system that the clock counts
    -- from, and what it read when the run was ready.
    ALTER TABLE runs ADD COLUMN boot_id TEXT;
    ALTER TABLE runs ADD COLUMN ready_clock_ms INTEGER;
    -- The command and variables that stop it: JSON, emptied at its end, for a variable may be a
    -- secret.
    ALTER TABLE runs ADD COLUMN launch TEXT;
    """,
    """
    -- What a model's server last said of the model: JSON, see manager/models/facts.py.
    CREATE TABLE server_facts (
        model  TEXT PRIMARY KEY,
        facts  TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE keys ADD COLUMN raw INTEGER NOT NULL DEFAULT 0;  -- 1: below /upstream as well
    """,
    """
    -- The most memory that the last runs of a scheme were seen to take while they served, by the
    -- name that the scheme has for the device.
    CREATE TABLE scheme_memory (
        model        TEXT NOT NULL,
        scheme       TEXT NOT NULL,
        fingerprint  TEXT NOT NULL,  -- as in runs: of another command nothing is known
        run          TEXT NOT NULL,
        seen_ms      INTEGER NOT NULL,
        device       TEXT NOT NULL,
        peak_mb      INTEGER NOT NULL,
        PRIMARY KEY (model, scheme, fingerprint, run, device)
    ) WITHOUT ROWID;
    """,
)
