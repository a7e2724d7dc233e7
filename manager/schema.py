"""usage.db: its tables. One script a version; what has been released is never edited."""

from __future__ import annotations

MIGRATIONS = (
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
)
