"""config.yaml: what loads, and as what."""

from __future__ import annotations

import random
from collections.abc import Collection
from ipaddress import ip_network
from pathlib import Path

import pytest

from manager.billing.pricing import Price
from manager.config import loader as config
from manager.config.settings import AliasChanges, RequestChanges
from tests.support.config_files import (
    MODES,
    SEED,
    builtin_modes,
    load,
    model,
    model_text,
    scheme,
)

# What loads.


def test_the_seed_file_loads_unchanged(home: Path) -> None:
    loaded = load(home, SEED)
    assert loaded.program == config.Program(host="0.0.0.0")
    assert list(loaded.models) == ["Qwen-14B-Chat"]
    qwen = loaded.models["Qwen-14B-Chat"]
    assert (tuple(qwen.aliases), qwen.mode, qwen.port, qwen.auto_start) == (
        ("gpt-3.5-turbo", "qwen-14b"),
        "Chat",
        10001,
        False,
    )
    dual, single = qwen.schemes
    assert dual == config.Scheme(
        name="Dual-GPU-Config",
        required_devices=("rtx 4060", "v100"),
        script_path=home / "scripts" / "qwen_dual.bat",
        command=(),
        memory_mb={"rtx 4060": 8000, "v100": 16000},
        env={},
        cwd=home,
    )
    assert single.name == "Single-GPU-Config"


def test_a_model_is_found_by_its_name_and_by_its_aliases(home: Path) -> None:
    loaded = load(home, SEED)
    qwen = loaded.models["Qwen-14B-Chat"]
    assert loaded.find("Qwen-14B-Chat") is qwen
    assert loaded.find("gpt-3.5-turbo") is qwen
    assert loaded.find("qwen-14b") is qwen
    assert loaded.find("QWEN-14B") is None


def test_what_the_file_leaves_out_has_the_documented_defaults(home: Path) -> None:
    loaded = load(home, "program:\nLocal-Models:\n")
    assert loaded.models == {}
    assert loaded.program == config.Program(
        host="127.0.0.1",
        port=8080,
        log_level="INFO",
        alive_time=15.0,
        disable_gpu_monitoring=False,
        token_tracker=None,
        device_plugin_dir=None,
        interface_plugin_dir=None,
        device_memory_mb={},
        threads=512,
        start_timeout=300.0,
        stop_timeout=10.0,
        queue_timeout=300.0,
        max_waiting=320,
        max_body_mb=64,
        list_aliases=False,
        upstream_timeout=600.0,
        currency="CNY",
        timezone=None,
        log_retention_days=30,
        request_retention_days=0,
        export=None,
        require_key=None,
        allowed_hosts=(),
        cors_origins=(),
        trusted_proxies=(),
        allow_config_edit=False,
    )
    assert model(home, "# nothing") == config.Model(
        name="m",
        aliases={},
        mode="Chat",
        port=None,
        auto_start=False,
        alive_time=15.0,
        start_timeout=300.0,
        stop_timeout=10.0,
        max_waiting=320,
        max_concurrency=None,
        pinned=False,
        served_model_name=None,
        unlisted=False,
        ask_usage=True,
        price=None,
        schemes=(config.Scheme("s", (), None, ("x",), {}, {}, home),),
    )


def test_every_program_key_is_read(home: Path) -> None:
    text = """\
program:
  host: 0.0.0.0
  port: 9000
  log_level: debug
  alive_time: 0.5
  Disable_GPU_monitoring: yes
  TokenTracker: [Chat, Base]
  device_plugin_dir: plugins
  interface_plugin_dir: ./plugins
  device_memory_mb: {"rtx 4060": 8_000}
  threads: 64
  start_timeout: 60
  stop_timeout: 0.25
  queue_timeout: 30
  max_waiting: 5
  max_body_mb: 1
  list_aliases: true
  upstream_timeout: 90.5
  currency: NO
  timezone: Asia/Shanghai
  log_retention_days: 0
  request_retention_days: 365
  export: {schedule: "0 3 1 * mon", period: month, directory: bills\\2026}
  require_key: true
  allowed_hosts: [llm.example.org, rack_7]
  cors_origins: ["https://chat.example.org", "http://localhost:3000"]
  trusted_proxies: [127.0.0.1, 10.1.0.0/16, "fd00::/8"]
  allow_config_edit: true
"""
    assert load(home, text).program == config.Program(
        host="0.0.0.0",
        port=9000,
        log_level="DEBUG",
        alive_time=0.5,
        disable_gpu_monitoring=True,
        token_tracker=("Chat", "Base"),
        device_plugin_dir=home / "plugins",
        interface_plugin_dir=home / "plugins",
        device_memory_mb={"rtx 4060": 8000},
        threads=64,
        start_timeout=60.0,
        stop_timeout=0.25,
        queue_timeout=30.0,
        max_waiting=5,
        max_body_mb=1,
        list_aliases=True,
        upstream_timeout=90.5,
        currency="NO",
        timezone="Asia/Shanghai",
        log_retention_days=0,
        request_retention_days=365,
        export=config.Export("0 3 1 * mon", "month", home / "bills" / "2026"),
        require_key=True,
        allowed_hosts=("llm.example.org", "rack_7"),
        cors_origins=("https://chat.example.org", "http://localhost:3000"),
        trusted_proxies=(
            ip_network("127.0.0.1/32"),
            ip_network("10.1.0.0/16"),
            ip_network("fd00::/8"),
        ),
        allow_config_edit=True,
    )


def test_every_model_key_is_read(home: Path) -> None:
    text = """\
program: {alive_time: 1, max_waiting: 7}
Local-Models:
  m:
    aliases: [a, 3.10]
    mode: Embedding
    port: 10001
    auto_start: true
    alive_time: 0
    start_timeout: 1.5
    stop_timeout: 2
    max_concurrency: 4
    pinned: true
    served_model_name: org/model
    unlisted: true
    ask_usage: false
    price: {per_hour: 2}
    s:
      required_devices: [v100, v100]
      command: [llama-server, --flash-attn, on, -c, 4096]
      memory_mb: {V100: 16000}
      env: {A: text, B: 1.50, C: true, D: ""}
      cwd: scripts
"""
    assert load(home, text).models["m"] == config.Model(
        name="m",
        aliases={"a": AliasChanges(), "3.10": AliasChanges()},
        mode="Embedding",
        port=10001,
        auto_start=True,
        alive_time=0.0,
        start_timeout=1.5,
        stop_timeout=2.0,
        max_waiting=7,
        max_concurrency=4,
        pinned=True,
        served_model_name="org/model",
        unlisted=True,
        ask_usage=False,
        price=Price(2_000_000_000, ()),
        schemes=(
            config.Scheme(
                name="s",
                required_devices=("v100", "v100"),
                script_path=None,
                command=("llama-server", "--flash-attn", "on", "-c", "4096"),
                memory_mb={"v100": 16000},
                env={"A": "text", "B": "1.50", "C": "true", "D": ""},
                cwd=home / "scripts",
            ),
        ),
    )


def test_models_and_their_schemes_keep_the_order_of_the_file(home: Path) -> None:
    names = [f"n{number}" for number in range(20)]
    random.Random(1).shuffle(names)
    schemes = "\n".join(f"    {name}: {{command: [x]}}" for name in names)
    loaded = load(home, "Local-Models:\n" + "\n".join(f"  {name}:\n{schemes}" for name in names))
    assert list(loaded.models) == names
    assert [each.name for each in loaded.models["n3"].schemes] == names


def test_models_share_settings_through_merge_keys(home: Path) -> None:
    text = """\
Local-Models:
  base: &base
    mode: Embedding
    alive_time: 5
    Fast: {command: [fast]}
    Slow: {command: [slow]}
  other:
    First: {command: [first]}
    <<: *base
    alive_time: 9
    Fast: {command: [faster]}
  both:
    <<: [{pinned: true, mode: Base}, *base]
"""
    models = load(home, text).models
    other = models["other"]
    assert (other.mode, other.alive_time) == ("Embedding", 9.0)
    assert [(each.name, each.command) for each in other.schemes] == [
        ("First", ("first",)),
        ("Fast", ("faster",)),
        ("Slow", ("slow",)),
    ]
    assert (models["both"].mode, models["both"].pinned) == ("Base", True)


def test_merges_of_merges_do_not_grow_without_bound(home: Path) -> None:
    lines = ["Local-Models:", "  m0: &m0 {s: {command: [x]}}"]
    lines += [
        f"  m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * 50)}]}}"
        for level in range(1, 30)
    ]
    assert len(load(home, "\n".join(lines)).models) == 30


def test_a_model_name_that_yaml_takes_for_a_number_is_its_text(home: Path) -> None:
    text = "Local-Models: {3: &m {s: {command: [x]}}, 1e3: *m, 3.10: *m, no: *m, 2024-01-01: *m}"
    loaded = load(home, text)
    assert list(loaded.models) == ["3", "1e3", "3.10", "no", "2024-01-01"]
    assert loaded.find("3.10") is not None


def test_an_alias_that_is_the_models_own_name_does_no_harm(home: Path) -> None:
    assert list(model(home, "aliases: [m, n]").aliases) == ["n"]


def test_an_alias_may_change_requests_beyond_what_the_model_does(home: Path) -> None:
    request = "request: {default: {n: 1}, set: {seed: 7, top_k: 1}}"
    aliases = "aliases: {plain: , strict: {set: {seed: 0}}, lora: {set: {model: sql}}, none: {}}"
    read = model(home, f"{request}\n    {aliases}")
    assert list(read.aliases) == ["plain", "strict", "lora", "none"]
    assert read.changes("plain") is read.changes("m") is read.request
    strict, lora = read.changes("strict"), read.changes("lora")
    assert strict is not None
    assert lora is not None
    assert (strict.default, strict.set) == ({"n": 1}, {"seed": 0, "top_k": 1})
    assert lora.set == {"seed": 7, "top_k": 1, "model": "sql"}
    alone = model(home, "aliases: {strict: {set: {seed: 0}}}")
    assert alone.changes("m") is None
    assert alone.changes("strict") == RequestChanges(set={"seed": 0})


def test_a_file_saved_by_a_windows_editor_loads(home: Path) -> None:
    assert load(home, b"\xef\xbb\xbf" + SEED.replace("\n", "\r\n").encode()) == load(home, SEED)


@pytest.mark.parametrize(
    "written", ["scripts/run.sh", "'scripts\\run.sh'", "./scripts/../scripts/run.sh"]
)
def test_a_script_is_found_from_the_configs_folder_with_either_slash(
    home: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    found = scheme(home, f"script_path: {written}").script_path
    assert found is not None
    assert found.is_absolute()
    assert found.samefile(home / "scripts" / "run.sh")


@pytest.mark.parametrize("start", ["~/", "'~\\'"])
def test_a_leading_tilde_is_the_home_directory_in_every_path(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    tilde = start.strip("'")
    read = load(
        tmp_path,
        f"""
program:
  device_plugin_dir: '{tilde}plugins'
  interface_plugin_dir: '{tilde}plugins'
  export: {{schedule: '0 3 * * *', directory: '{tilde}bills'}}
Local-Models:
  m:
    A: {{script_path: '{tilde}scripts/run.sh', cwd: '{tilde}scripts'}}
    B: {{command: [serve], cwd: "~"}}
""",
    )
    assert read.program.device_plugin_dir == home / "plugins"
    assert read.program.interface_plugin_dir == home / "plugins"
    assert read.program.export_directory == home / "bills"
    first, second = read.models["m"].schemes
    assert (first.script_path, first.cwd) == (home / "scripts" / "run.sh", home / "scripts")
    assert second.cwd == home


def test_a_tilde_elsewhere_or_of_nobody_is_a_name_like_any_other(home: Path) -> None:
    (home / "~nobody-here.sh").touch()
    for written in ("~nobody-here.sh", "./~nobody-here.sh"):
        found = scheme(home, f"script_path: '{written}'").script_path
        assert found is not None
        assert found.samefile(home / "~nobody-here.sh")


def test_paths_are_absolute_when_the_config_is_named_relatively(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "config.yaml").write_text(SEED, encoding="utf-8")
    monkeypatch.chdir(home)
    schemes = config.load(Path("config.yaml"), builtin_modes).models["Qwen-14B-Chat"].schemes
    assert [each.cwd for each in schemes] == [home, home]
    assert schemes[0].script_path == home / "scripts" / "qwen_dual.bat"


def test_the_modes_of_plugins_are_known(home: Path) -> None:
    asked = []

    def modes(folder: Path | None) -> Collection[str]:
        asked.append(folder)
        return {*MODES, "Vision"}

    path = home / "config.yaml"
    text = model_text("mode: Vision") + "program: {interface_plugin_dir: plugins}\n"
    path.write_text(text, encoding="utf-8")
    assert config.load(path, modes).models["m"].mode == "Vision"
    assert asked == [home / "plugins"]


def test_secrets_are_not_in_the_repr(home: Path) -> None:
    text = model_text("x: {command: [a], env: {TOKEN: hunter2}}")
    assert "hunter2" not in repr(load(home, text))


# Of earlier versions.


def test_the_key_of_an_earlier_version_is_a_warning_and_no_problem(home: Path) -> None:
    text = "program:\n  port: 9000\n  queue: redis://:hunter2@cache:6379/0\nLocal-Models:\n"
    loaded = load(home, text)
    assert loaded.program.port == 9000
    (warning,) = loaded.warnings
    assert warning.line == 3
    assert "queue: this key is ignored" in warning.message
    assert "hunter2" not in repr(loaded)
    assert load(home, SEED).warnings == ()


def test_the_shipped_config_of_the_version_before_loads_as_it_did(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("chat", "base", "embedding", "reranker"):
        (tmp_path / "scripts" / f"demo_{name}.py").touch()
    loaded = load(tmp_path, Path(__file__).with_name("version_before.yaml").read_bytes())
    assert loaded.program == config.Program()
    assert loaded.warnings == ()
    assert {name: (model.mode, tuple(model.aliases)) for name, model in loaded.models.items()} == {
        "Demo-Chat": ("Chat", ("gpt-3.5-turbo", "demo")),
        "Demo-Base": ("Base", ()),
        "Demo-Embedding": ("Embedding", ("text-embedding-3-small",)),
        "Demo-Reranker": ("Reranker", ()),
    }
