"""The database in which LLM-Manager 3.x has its config; it is read, and never trusted."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manager.importers.draft import Note
from manager.importers.source import SourceError

_MAGIC = b"SQLite format 3\0"
_MAX_ROWS = 10_000  # of one table
_MAX_TEXT = 64 * 1024  # characters of one value
_MAX_STEPS = 1000  # of 100,000 instructions each: a minute at most
_COLUMNS = {
    "model_defs": ("id", "name", "mode", "port", "auto_start"),
    "model_aliases": ("model_id", "alias"),
    "model_schemes": ("id", "model_id", "config_source", "required_devices", "memory_mb"),
    "system_settings": ("key", "value"),
}
# Where they are depends on the version.
_COMMANDS = (("model_scripts", "scheme_id"), ("model_schemes", "id"))
_PRICES = (("model_pricing", "model_id"), ("model_defs", "id"))
_PRICE_COLUMNS = ("pricing_type", "hourly_price", "support_cache")
_TIERS = (
    *("pricing_id", "min_input", "max_input", "min_output", "max_output"),
    *("input_price", "output_price", "cache_write_price", "cache_read_price"),
)
_ORDER = {"model_defs": "ord", "model_aliases": "ord", "model_schemes": "ord"}
# Settings that are no keys of a program's.
_OTHER = ("claude_configs", "claude_settings_path", "wol_broadcast", "wol_mac")


@dataclass
class TheirScheme:
    """A scheme; `fields` is plain data, as YAML or JSON has it."""

    name: str
    line: int | None
    fields: dict[str, Any]


@dataclass
class TheirModel:
    """A model; `rest` are keys that it should not have, with their lines."""

    name: str
    line: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    schemes: list[TheirScheme] = field(default_factory=list)
    pricing: dict[str, Any] = field(default_factory=dict)
    rest: list[tuple[str, int]] = field(default_factory=list)


@dataclass
class Theirs:
    """All that a config of theirs has in it."""

    program: dict[str, Any] = field(default_factory=dict)
    models: list[TheirModel] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def note(self, line: int | None, message: str) -> None:
        self.notes.append(Note(line, message))


def is_database(path: Path) -> bool:
    """Whether the file begins as SQLite's do."""
    try:
        if not path.is_file():  # a pipe would wait for its writer
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read(path: Path) -> Theirs:
    """The config in a database of 3.x, which is not changed. Raises SourceError."""
    # Without a journal nobody writes to it; then SQLite leaves no files of its own beside it.
    how = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    try:
        uri = f"{path.absolute().as_uri()}?{how}"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            return _Database(connection, path.name).read()
    except sqlite3.Error as error:
        raise SourceError(
            f"{path} cannot be read: {error}. Copy it, with its file -wal where there is one, and"
            " name the copy"
        ) from error


class _Database:
    def __init__(self, connection: sqlite3.Connection, label: str) -> None:
        self._connection = connection
        self._label = label
        self._steps = 0
        connection.row_factory = sqlite3.Row
        # A schema can have functions in it that are called where it is read.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.set_progress_handler(self._step, 100_000)
        self._tables = {
            name: {column[1] for column in connection.execute(f'PRAGMA table_info("{name}")')}
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 200"
            )
            if '"' not in name
        }

    def _step(self) -> int:
        self._steps += 1
        return int(self._steps > _MAX_STEPS)

    def read(self) -> Theirs:
        for table, columns in _COLUMNS.items():
            if not set(columns) <= self._tables.get(table, set()):
                raise SourceError(
                    f"{self._label}: there is no table {table}({', '.join(columns)}), as in 3.x"
                )
        theirs = Theirs()
        for row in self._rows("system_settings"):
            if row["key"] not in _OTHER:
                theirs.program[str(row["key"])] = row["value"]
            else:
                theirs.note(None, f"{row['key']} has no counterpart")
        clouds = [name for name in self._tables if name.startswith("cloud_")]
        if any(self._connection.execute(f'SELECT 1 FROM "{name}"').fetchone() for name in clouds):
            theirs.note(None, "cloud providers are left out: write each of their models with `url`")
        models = {row["id"]: self._model(row) for row in self._rows("model_defs")}
        for row in self._rows("model_aliases"):
            if row["model_id"] in models:
                models[row["model_id"]].fields["aliases"].append(str(row["alias"]))
        commands = self._by(_COMMANDS, ("command",))
        for row in self._rows("model_schemes"):
            if model := models.get(row["model_id"]):
                fields = {
                    "required_devices": _json(row["required_devices"]),
                    "memory_mb": _json(row["memory_mb"]),
                    "command": _json(commands.get(row["id"], {}).get("command")),
                }
                model.schemes.append(TheirScheme(str(row["config_source"]), None, fields))
        self._prices(models)
        theirs.models = list(models.values())
        return theirs

    def _model(self, row: sqlite3.Row) -> TheirModel:
        fields = {"mode": row["mode"], "port": row["port"], "aliases": []}
        return TheirModel(
            str(row["name"]), fields={**fields, "auto_start": bool(row["auto_start"])}
        )

    def _prices(self, models: dict[int, TheirModel]) -> None:
        for model_id, price in self._by(_PRICES, _PRICE_COLUMNS).items():
            if model_id in models:
                models[model_id].pricing |= {**price, "tiers": []}
        if set(_TIERS) <= self._tables.get("pricing_tiers", set()):
            for row in self._rows("pricing_tiers", _TIERS, "tier_index"):
                if row["pricing_id"] in models:
                    tiers = models[row["pricing_id"]].pricing.setdefault("tiers", [])
                    tiers.append(dict(row))

    def _by(
        self, places: tuple[tuple[str, str], ...], columns: tuple[str, ...]
    ) -> dict[int, dict[str, Any]]:
        """These columns by the id, of the first of the tables that has them."""
        for table, key in places:
            if {key, *columns} <= self._tables.get(table, set()):
                return {row[key]: dict(row) for row in self._rows(table, (key, *columns))}
        return {}

    def _rows(
        self, table: str, columns: tuple[str, ...] = (), order: str = ""
    ) -> list[sqlite3.Row]:
        columns = columns or _COLUMNS[table]
        order = order or _ORDER.get(table, "")
        # A number stays one; a long text is cut, and is no JSON then.
        shown = ", ".join(
            f"CASE typeof({name}) WHEN 'text' THEN substr({name}, 1, {_MAX_TEXT})"
            f" WHEN 'blob' THEN NULL ELSE {name} END AS {name}"
            for name in columns
        )
        by = f" ORDER BY {order}" if order in self._tables[table] else ""
        statement = f'SELECT {shown} FROM "{table}"{by} LIMIT {_MAX_ROWS + 1}'
        rows = self._connection.execute(statement).fetchall()
        if len(rows) > _MAX_ROWS:
            raise SourceError(f"{self._label}: {table} has more than {_MAX_ROWS} rows")
        return rows


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
