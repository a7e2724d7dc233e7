"""The config of LLM-Manager: the YAML and JSON of old, and the database of 3.x."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from manager.config import Config
from manager.importers import READERS, SourceError
from tests.support.imported import imported, read_again

# As 3.x makes it; the command was in a table of its own at first.
SCHEMA = """
CREATE TABLE system_settings (key TEXT PRIMARY KEY, value TEXT NOT NULL, updated_at TIMESTAMP);
CREATE TABLE model_defs (id INTEGER PRIMARY KEY, name TEXT, mode TEXT, port INTEGER,
    auto_start INTEGER, pricing_type TEXT, hourly_price REAL, support_cache INTEGER, ord INTEGER);
CREATE TABLE model_aliases (model_id INTEGER, alias TEXT, ord INTEGER);
CREATE TABLE model_schemes (id INTEGER PRIMARY KEY, model_id INTEGER, config_source TEXT,
    required_devices TEXT, memory_mb TEXT, command TEXT, ord INTEGER);
CREATE TABLE pricing_tiers (pricing_id INTEGER, tier_index INTEGER, min_input INTEGER,
    max_input INTEGER, min_output INTEGER, max_output INTEGER, input_price REAL, output_price REAL,
    cache_write_price REAL, cache_read_price REAL);
"""
COMMAND = {
    "exe": "lmdeploy",
    "args": ["serve", "m", "--server-port", "{{port}}", "--model-name", "{{alias}}", "${X}"],
    "env": {"TOKEN": "hunter2", "ADDRESS": "127.0.0.1:{{port}}"},
    "cwd": None,
    "conda_env": "lmdeploy",
}


def make(path: Path, *more: str, command: Any = COMMAND, split: bool = False) -> Path:
    """A database of 3.x with one model, changed by further statements."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        add = database.execute
        add("INSERT INTO system_settings VALUES ('port', '9090', ''), ('alive_time', '30', '')")
        add("INSERT INTO system_settings VALUES ('wol_mac', 'aa:bb', ''), ('host', '0.0.0.0', '')")
        add("INSERT INTO model_defs VALUES (7, 'qwen', 'Chat', 10001, 1, 'tier', 0.0, 1, 0)")
        add("INSERT INTO model_aliases VALUES (7, 'second', 1), (7, 'served', 0), (9, 'x', 0)")
        text = json.dumps(command)
        add(
            "INSERT INTO model_schemes VALUES (3, 7, 'GPU', '[\"rtx 4060\", \"v100\"]',"
            ' \'{"rtx 4060": 5000, "v100": 0}\', ?, 0)',
            (None if split else text,),
        )
        if split:
            add("ALTER TABLE model_schemes DROP COLUMN command")
            add("CREATE TABLE model_scripts (scheme_id INTEGER PRIMARY KEY, command TEXT)")
            add("INSERT INTO model_scripts VALUES (3, ?)", (text,))
        for statement in more:
            add(statement)
        database.commit()
    return path


def run(source: Path) -> tuple[Config, str]:
    made = imported("llm-manager", source)
    return read_again(made, source.parent), made.report


@pytest.mark.parametrize("split", [False, True])
def test_a_database_of_3x(tmp_path: Path, split: bool) -> None:
    tier = "INSERT INTO pricing_tiers VALUES (7, {}, {}, NULL, NULL, -1, {}, 2.5, 0, 0.05)"
    source = make(
        tmp_path / "llm_manager.db",
        tier.format(1, "1000", 0.9),
        tier.format(0, "NULL", 0.5),
        "UPDATE pricing_tiers SET max_input = 1000 WHERE tier_index = 0",
        split=split,
    )
    before = source.read_bytes()
    config, report = run(source)
    model = config.models["qwen"]
    assert (config.program.port, config.program.alive_time) == (9090, 30)
    assert (model.mode, model.port, model.auto_start) == ("Chat", 10001, True)
    assert list(model.aliases) == ["served", "second"]
    assert model.served_model_name == "served"
    [scheme] = model.schemes
    assert scheme.required_devices == ("rtx 4060", "v100")
    assert scheme.memory_mb == {"rtx 4060": 5000}
    assert scheme.command == (
        *("conda", "run", "--no-capture-output", "-n", "lmdeploy", "lmdeploy", "serve", "m"),
        *("--server-port", "${PORT}", "--model-name", "served", "$${X}"),
    )
    assert scheme.env == {"TOKEN": "hunter2", "ADDRESS": "127.0.0.1:10001"}
    assert model.price is not None
    first, second = model.price.tiers
    assert (first.max_input, second.min_input) == (1000, 1000)
    assert (first.input, second.input) == (500_000_000, 900_000_000)
    assert (first.cache_read, first.support_cache) == (50_000_000, True)
    assert "memory_mb of v100 is left out" in report
    assert "wol_mac has no counterpart" in report
    assert "host: it lets other machines in, as before" in report
    assert "hunter2" not in report
    assert source.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [source]


def test_what_a_running_program_has_in_its_journal_is_read_too(tmp_path: Path) -> None:
    source = make(tmp_path / "a.db")
    with closing(sqlite3.connect(source)) as running:
        running.execute("PRAGMA journal_mode = WAL")
        running.execute("UPDATE model_defs SET name = 'renamed'")
        running.commit()
        assert list(READERS["llm-manager"](source).models) == ["renamed"]
    # It has ended: nothing of the journal is there, and nothing comes to be.
    assert list(READERS["llm-manager"](source).models) == ["renamed"]
    assert list(tmp_path.iterdir()) == [source]


def test_hours_are_priced_as_hours(tmp_path: Path) -> None:
    change = "UPDATE model_defs SET pricing_type = 'hourly', hourly_price = 1.25"
    config, _ = run(make(tmp_path / "a.db", change))
    price = config.models["qwen"].price
    assert price is not None
    assert (price.per_hour, price.tiers) == (1_250_000_000, ())


@pytest.mark.parametrize("end", ["1", "9e999"])
def test_a_price_that_makes_no_sense_is_left_out(tmp_path: Path, end: str) -> None:
    change = f"INSERT INTO pricing_tiers VALUES (7, 0, 5, {end}, 0, -1, 1, 1, 0, 0)"
    config, report = run(make(tmp_path / "a.db", change))
    assert config.models["qwen"].price is None
    assert "its price is left out" in report


def test_an_environment_of_conda_may_be_a_folder(tmp_path: Path) -> None:
    source = make(tmp_path / "a.db", command={"exe": "serve", "conda_env": "/opt/envs/x"})
    config, _ = run(source)
    assert config.models["qwen"].schemes[0].command == (
        *("conda", "run", "--no-capture-output", "-p", "/opt/envs/x", "serve"),
    )


def test_a_folder_that_is_not_here_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for cwd, expected in (("there", tmp_path / "there"), ("nowhere", tmp_path)):
        source = make(tmp_path / f"{cwd}.db", command={"exe": "serve", "cwd": cwd})
        config, report = run(source)
        assert config.models["qwen"].schemes[0].cwd == expected
        assert ("cwd is left out" in report) == (cwd == "nowhere")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DROP TABLE model_aliases", "there is no table model_aliases"),
        ("ALTER TABLE model_defs RENAME COLUMN mode TO kind", "there is no table model_defs"),
        ("DELETE FROM model_defs", "has no models"),
    ],
)
def test_another_database_is_refused(tmp_path: Path, statement: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        READERS["llm-manager"](make(tmp_path / "a.db", statement))


def test_a_setting_without_end_is_refused(tmp_path: Path) -> None:
    source = make(
        tmp_path / "a.db",
        "DROP TABLE system_settings",
        "CREATE TABLE system_settings (key, value)",
        "INSERT INTO system_settings VALUES ('port', 9e999)",
    )
    with pytest.raises(SourceError, match="settings of the program"):
        run(source)


def test_a_view_in_place_of_a_table_is_not_read(tmp_path: Path) -> None:
    source = make(
        tmp_path / "a.db",
        "DROP TABLE model_aliases",
        "CREATE VIEW model_aliases AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1"
        " FROM n) SELECT i AS model_id, i AS alias, i AS ord FROM n",
    )
    with pytest.raises(SourceError, match="there is no table model_aliases"):
        READERS["llm-manager"](source)


@pytest.mark.parametrize(
    "value", ["not json", "[" * 20_000, json.dumps({"exe": "x" * 100_000}), "5", "{}"]
)
def test_a_command_that_is_none_leaves_its_scheme_out(tmp_path: Path, value: str) -> None:
    source = make(tmp_path / "a.db")
    with closing(sqlite3.connect(source)) as database:
        database.execute("UPDATE model_schemes SET command = ?", (value,))
        database.commit()
    config, report = run(source)
    assert config.models == {}
    assert "GPU: is left out: it has no script and no command" in report
    assert "LEFT OUT: it has no scheme that could be taken over" in report


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    source = make(tmp_path / "a.db")
    source.write_bytes(source.read_bytes()[:5000])
    with pytest.raises(SourceError, match="cannot be read: "):
        READERS["llm-manager"](source)


def test_rows_without_end_are_refused(tmp_path: Path) -> None:
    many = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= 10000)"
        " INSERT INTO model_aliases SELECT 7, 'a' || i, i FROM n"
    )
    with pytest.raises(SourceError, match="more than 10000 rows"):
        READERS["llm-manager"](make(tmp_path / "a.db", many))


# Files.

YAML = r"""
program:
  host: "127.0.0.1"
  port: 8081
  alive_time: 60
  log_dir: logs
  device_plugin_dir: "plugins/devices"
  TokenTracker: ["Chat", "Embedding"]
Local-Models:
  Qwen-64K:
    aliases: ["Qwen", "Qwen-64K"]
    mode: "Chat"
    port: 10001
    auto_start: false
    wol: true
    Two:
      required_devices: ["rtx 4060", "v100"]
      script_path: "scripts\\start.sh"
      memory_mb: {rtx 4060: 5120, v100: 0, cpu: 3}
    Gone:
      required_devices: ["v100"]
      bat_path: "scripts\\gone.bat"
  Embed:
    aliases: ["Qwen"]
    mode: "Embedding"
    port: 10002
    CPU: {required_devices: ["CPU"], exe: serve, args: ["{{port}}"], odd: 1}
wake_on_lan: {mac: x}
"""


def test_a_file_of_yaml(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "start.sh").touch()
    source = tmp_path / "old.yaml"
    source.write_text(YAML)
    config, report = run(source)
    assert (config.program.port, config.program.token_tracker) == (8081, ("Chat", "Embedding"))
    assert config.program.device_plugin_dir is None
    first, second = config.models.values()
    [scheme] = first.schemes
    assert scheme.script_path == tmp_path / "scripts" / "start.sh"
    assert scheme.memory_mb == {"rtx 4060": 5120}
    assert list(first.aliases) == ["Qwen"]
    assert second.schemes[0].command == ("serve", "${PORT}")
    for line in (
        "program: device_plugin_dir is left out: plugins of LLM-Manager 3.x do not run here",
        "program: log_dir has no counterpart",
        "line 20: Gone: is left out: there is no file",
        "line 15: wol: has no counterpart",
        "memory_mb of cpu is left out: it is no required device",
        "the alias Qwen is left out: it is the name of, or leads to, Qwen-64K",
        "CPU: odd: has no counterpart",
        "line 28: wake_on_lan: has no counterpart",
    ):
        assert line in report


def test_a_setting_of_the_program_that_is_refused_is_left_out_alone(tmp_path: Path) -> None:
    source = tmp_path / "old.yaml"
    source.write_text(YAML.replace("port: 8081", "port: 99999").replace('["Chat", "E', '["X", "E'))
    config, report = run(source)
    assert (config.program.port, config.program.token_tracker) == (8080, None)
    assert config.program.alive_time == 60
    assert "left out: port: expected a whole number" in report
    assert "left out: TokenTracker, item 1: unknown mode" in report


def test_a_file_of_json_with_models_at_its_top(tmp_path: Path) -> None:
    (tmp_path / "a.bat").touch()
    source = tmp_path / "config.json"
    scheme = {"required_devices": ["v100"], "bat_path": "a.bat", "memory_mb": {"v100": 16000}}
    model = {"aliases": ["m"], "mode": "Reranker", "port": 10001, "V100": scheme}
    text = json.dumps({"program": {"openai_port": 8000, "webui_port": 1}, "M": model}, indent="\t")
    source.write_text(text)
    config, report = run(source)
    assert config.program.port == 8000
    assert config.models["M"].mode == "Reranker"
    assert config.models["M"].schemes[0].script_path == tmp_path / "a.bat"
    assert "program: webui_port has no counterpart" in report


@pytest.mark.parametrize(
    "text", ["", "program: {}", "models: {a: {cmd: x}}", "[]", "Local-Models: 5"]
)
def test_what_is_no_config_of_llm_manager_is_refused(tmp_path: Path, text: str) -> None:
    source = tmp_path / "a.yaml"
    source.write_text(text)
    with pytest.raises(SourceError, match=r"a\.yaml"):
        READERS["llm-manager"](source)
