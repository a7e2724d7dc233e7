"""config.yaml: what loads, and what is said about what does not."""

from __future__ import annotations

import random
import re
import zoneinfo
from collections.abc import Collection
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from manager.billing.pricing import LARGEST, Price, Tier, billionths
from manager.config import loader as config
from manager.config import yaml_reader

MODES = ("Chat", "Base", "Embedding", "Reranker")

SEED = """\
program:
  host: "0.0.0.0"
  port: 8080
  log_level: "INFO"
  alive_time: 15          # 模型空闲超时时间（分钟），超时后自动关闭
  Disable_GPU_monitoring: false # 是否禁用 GPU 资源监控。禁用后，即使资源不足仍尝试启动模型。
Local-Models:
  Qwen-14B-Chat:
    aliases: ["gpt-3.5-turbo", "qwen-14b"]  # API 调用时使用的模型名称映射
    mode: "Chat"                            # 模式：Chat / Base / Embedding / Reranker
    port: 10001                             # 模型服务监听端口
    auto_start: false                       # 是否随服务启动

    Dual-GPU-Config:
      required_devices: ["rtx 4060", "v100"] # 必须同时在线的设备
      script_path: "scripts/qwen_dual.bat"   # 启动脚本路径（Windows）或 .sh（Linux）
      memory_mb:
        "rtx 4060": 8000
        "v100": 16000

    Single-GPU-Config:
      required_devices: ["v100"]
      script_path: "scripts/qwen_single.bat"
      memory_mb:
        "v100": 24000
"""  # noqa: RUF001 - the comments are Chinese


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts that the files here name."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "plugins").mkdir()
    (folder / "scripts").mkdir()
    for name in ("qwen_dual.bat", "qwen_single.bat", "new.bat", "run.sh", "run.exe"):
        (folder / "scripts" / name).touch()
    return folder


def builtin_modes(_: Path | None) -> Collection[str]:
    return MODES


def load(home: Path, text: str | bytes) -> config.Config:
    path = home / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return config.load(path, builtin_modes)


def problems(home: Path, text: str | bytes) -> list[tuple[int, str]]:
    with pytest.raises(config.ConfigError) as caught:
        load(home, text)
    return [(problem.line, problem.message) for problem in caught.value.problems]


def only_problem(home: Path, text: str | bytes) -> tuple[int, str]:
    (problem,) = problems(home, text)
    return problem


def good_or_problems(home: Path, text: str | bytes) -> tuple[config.Problem, ...]:
    """The file's problems, none where it loads; every other exception passes."""
    try:
        load(home, text)
    except config.ConfigError as error:
        assert error.problems  # noqa: PT017 - an error without problems says nothing
        return error.problems
    return ()


def program(home: Path, text: str) -> config.Program:
    return load(home, f"program:\n  {text}\n").program


def model_text(body: str) -> str:
    """A whole file with one model `m`, whose keys begin on line 3; line 4 on is its scheme."""
    return f"Local-Models:\n  m:\n    {body}\n    s: {{command: [x]}}\n"


def model(home: Path, body: str) -> config.Model:
    return load(home, model_text(body)).models["m"]


def scheme(home: Path, body: str) -> config.Scheme:
    text = f"Local-Models:\n  m:\n    s: {{{body}}}\n"
    return load(home, text).models["m"].schemes[0]


def scheme_problem(home: Path, body: str) -> str:
    line, message = only_problem(home, f"Local-Models:\n  m:\n    s: {{{body}}}\n")
    assert line == 3
    return message


# What loads.


def test_the_seed_file_loads_unchanged(home: Path) -> None:
    loaded = load(home, SEED)
    assert loaded.program == config.Program(host="0.0.0.0")
    assert list(loaded.models) == ["Qwen-14B-Chat"]
    qwen = loaded.models["Qwen-14B-Chat"]
    assert (qwen.aliases, qwen.mode, qwen.port, qwen.auto_start) == (
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
        token_tracker=("Chat", "Base", "Embedding", "Reranker"),
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
        aliases=(),
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
        aliases=("a", "3.10"),
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
    assert model(home, "aliases: [m, n]").aliases == ("n",)


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
    assert {name: (model.mode, model.aliases) for name, model in loaded.models.items()} == {
        "Demo-Chat": ("Chat", ("gpt-3.5-turbo", "demo")),
        "Demo-Base": ("Base", ()),
        "Demo-Embedding": ("Embedding", ("text-embedding-3-small",)),
        "Demo-Reranker": ("Reranker", ()),
    }


# All problems at once.

# What to write under `program`, which of its lines is wrong, and a part of the message.
PROGRAM_FAULTS: dict[str, tuple[list[str], int, str]] = {
    "host": (["host: 5"], 0, "expected text"),
    "port": (["port: 70000"], 0, "from 1 to 65535, found 70000"),
    "log_level": (["log_level: LOUD"], 0, "known: DEBUG, INFO"),
    "alive_time": (["alive_time: -1"], 0, "from 0"),
    "gpu": (["Disable_GPU_monitoring: 'false'"], 0, "without quotes"),
    "tracker": (["TokenTracker:", "  - Chat", "  - Chta"], 2, "did you mean Chat"),
    "device_plugin_dir": (["device_plugin_dir: nowhere"], 0, "there is no folder"),
    "interface_plugin_dir": (["interface_plugin_dir: scripts/run.sh"], 0, "there is no folder"),
    "device_memory_mb": (["device_memory_mb:", "  gpu: 8000", "  v100: 0"], 2, "v100: expected"),
    "threads": (["threads: 32"], 0, "from 33"),
    "start_timeout": (["start_timeout: 0"], 0, "above 0"),
    "stop_timeout": (["stop_timeout: .inf"], 0, "above 0"),
    "queue_timeout": (["queue_timeout: .nan"], 0, "above 0"),
    "max_waiting": (["max_waiting: 2.5"], 0, "a whole number"),
    "max_body_mb": (["max_body_mb: true"], 0, "a whole number"),
    "list_aliases": (["list_aliases: 1"], 0, "true or false"),
    "upstream_timeout": (["upstream_timeout: [1]"], 0, "found a list"),
    "currency": (["currency: ''"], 0, "found none"),
    "timezone": (["timezone: Asia/Shanghia"], 0, "did you mean Asia/Shanghai?"),
    "log_retention_days": (["log_retention_days: -1"], 0, "from 0"),
    "request_retention_days": (["request_retention_days: 010"], 0, "found 010"),
    "export": (["export:", "  schedule: 0 3 * *"], 1, "five fields"),
    "require_key": (["require_key: sometimes"], 0, "true or false"),
    "allowed_hosts": (["allowed_hosts:", "  - a.example.org", "  - '*'"], 2, "write each name"),
    "cors_origins": (["cors_origins: ['null']"], 0, "any file"),
    "trusted_proxies": (["trusted_proxies: [0.0.0.0/0]"], 0, "is everybody"),
    "allow_config_edit": (["allow_config_edit: 1"], 0, "true or false"),
    "unknown": (["max_waitin: 4"], 0, "did you mean max_waiting?"),
    "twice": (["x-unknown-but-twice:", "x-unknown-but-twice:"], 1, "twice"),
}
# The same for a model of its own each.
MODEL_FAULTS: dict[str, tuple[list[str], int, str]] = {
    "aliases": (["aliases: one"], 0, "expected a list, found text"),
    "alias": (["aliases: [ok-{0}, [x]]"], 0, "item 2: expected text"),
    "mode": (["mode: chat"], 0, "did you mean Chat?"),
    "port": (["port: '10001'"], 0, "found the text '10001'"),
    "taken": (["port: 8080"], 0, "8080 is already the program's own"),
    "auto_start": (["auto_start: maybe"], 0, "true or false"),
    "max_concurrency": (["max_concurrency: 0"], 0, "from 1"),
    "served": (["served_model_name: {a: b}"], 0, "expected text, found a mapping"),
    "unknown": (["alias: x"], 0, "did you mean aliases?"),
    "case": (["Pinned: true"], 0, "did you mean pinned?"),
    "misplaced": (["script_path: scripts/run.sh"], 0, "inside a scheme"),
    "misplaced env": (["env:", "  A: b"], 0, "inside a scheme"),
    "empty scheme": (["Dual:"], 0, "unknown key"),
    "neither": (["Dual:", "  memory_mb: {}"], 0, "needs script_path or command"),
    "both": (["Dual:", "  command: [x]", "  script_path: scripts/run.sh"], 2, "keep one"),
    "no such script": (["Dual:", "  script_path: scripts/non.sh"], 1, "there is no file"),
    "suffix": (["Dual:", "  script_path: scripts/run.exe"], 1, ".sh, .bat, .cmd, .ps1, .py"),
    "command": (["Dual:", "  command: llama-server -m x"], 1, "expected a list"),
    "devices": (["Dual:", "  command: [x]", "  required_devices: v100"], 2, "expected a list"),
    "memory": (
        ["Dual:", "  command: [x]", "  required_devices: [v100]", "  memory_mb:", "    v10: 1"],
        4,
        "not in required_devices; did you mean v100?",
    ),
    "env": (["Dual:", "  command: [x]", "  env:", "    A: [1]"], 3, "A: expected text"),
    "cwd": (["Dual:", "  command: [x]", "  cwd: nowhere"], 2, "there is no folder"),
    "scheme key": (["Dual:", "  command: [x]", "  memory: {}"], 2, "did you mean memory_mb?"),
    "price": (["price: {}"], 0, "per_hour, tiers or both"),
    "decimals": (["price:", "  per_hour: 0.0000000001"], 1, "nine decimals"),
    "tier": (["price:", "  tiers:", "    - input: 1"], 2, "output is missing"),
    "range": (
        ["price:", "  tiers:", "    - {input: 1, output: 1, min_input: 9, max_input: 5}"],
        2,
        "max_input 5 is not above min_input 9",
    ),
}


def faulty(program_faults: list[str], model_faults: list[str]) -> tuple[str, list[tuple[int, str]]]:
    """A file with these faults, and the line and a part of the message of each."""
    lines = ["program:"]
    expected = []
    for name in program_faults:
        body, wrong, part = PROGRAM_FAULTS[name]
        expected.append((len(lines) + wrong + 1, part))
        if name == "twice":
            expected.append((len(lines) + 1, "unknown key"))
        lines += [f"  {line}" for line in body]
    lines.append("Local-Models:")
    for number, name in enumerate(model_faults):
        body, wrong, part = MODEL_FAULTS[name]
        lines.append(f"  m{number}:")
        expected.append((len(lines) + wrong + 1, part))
        lines += [f"    {line.replace('{0}', str(number))}" for line in body]
        lines.append("    Default: {command: [x]}")
    return "\n".join(lines) + "\n", expected


@given(
    st.lists(st.sampled_from(sorted(PROGRAM_FAULTS)), unique=True),
    st.lists(st.sampled_from(sorted(MODEL_FAULTS)), max_size=8),
)
@example(sorted(PROGRAM_FAULTS), sorted(MODEL_FAULTS))
def test_every_problem_is_reported_at_once_each_at_its_line(
    home: Path, program_faults: list[str], model_faults: list[str]
) -> None:
    text, expected = faulty(program_faults, model_faults)
    if not expected:
        load(home, text)
        return
    left = problems(home, text)
    for line, part in expected:
        (match,) = [found for found in left if found[0] == line and part in found[1]]
        left.remove(match)
    assert left == []


def test_an_error_reads_as_one_line_a_problem_in_the_order_of_the_file(home: Path) -> None:
    text = "Local-Models:\n  m:\n    port: 0\n    s: {command: [x]}\nprogram: {prot: 1}\n"
    with pytest.raises(config.ConfigError) as caught:
        load(home, text)
    assert str(caught.value) == (
        "config.yaml:3: port: expected a whole number from 1 to 65535, found 0\n"
        "config.yaml:5: prot: unknown key; did you mean port?"
    )
    assert caught.value.path == home / "config.yaml"


def test_a_fault_in_a_shared_base_is_reported_once(home: Path) -> None:
    text = """\
Local-Models:
  a: &base
    mode: Chatt
    s: {command: [x], command: [y]}
  b: {<<: *base}
  c: {<<: *base}
"""
    assert [line for line, _ in problems(home, text)] == [3, 4]


# The file itself.


def test_a_missing_file_is_said_with_its_path(home: Path) -> None:
    with pytest.raises(config.ConfigError, match=re.escape(str(home / "none.yaml"))) as caught:
        config.load(home / "none.yaml", builtin_modes)
    assert str(caught.value).startswith("none.yaml:1: there is no file")


def test_a_file_that_cannot_be_read_is_said(home: Path) -> None:
    with pytest.raises(config.ConfigError, match="cannot be read"):
        config.load(home / "scripts", builtin_modes)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "null"])
def test_an_empty_file_is_told_how_to_begin(home: Path, text: str) -> None:
    line, message = only_problem(home, text)
    assert line == 1
    assert "the file is empty: begin with `program:`" in message


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "a list"), ("hello\n", "text"), ("5", "a n")])
def test_a_file_that_is_no_mapping_is_said(home: Path, text: str, kind: str) -> None:
    line, message = only_problem(home, text)
    assert line == 1
    assert f"expected a mapping (lines of `key: value`), found {kind}" in message


@pytest.mark.parametrize("content", ["# 好\nprogram: 好\n".encode("gbk"), "a: b".encode("utf-16")])
def test_a_file_in_another_encoding_is_told_to_be_utf8(home: Path, content: bytes) -> None:
    line, message = only_problem(home, content)
    assert line == 1
    assert "save the file as UTF-8" in message


def test_the_line_of_bytes_that_are_not_utf8_is_given(home: Path) -> None:
    assert only_problem(home, b"program:\n  host: a\n  currency: \xff\n")[0] == 3


# The text, the line, and a part of the message: what is wrong before anything can be read.
SYNTAX = {
    "tab": ("program:\n\tport: 1\n", 2, "indent with spaces"),
    "later tab": ("program:\n  host: 好\n  \tport: 1\n", 3, "indent with spaces"),
    "byte order mark and tab": ("\ufeffprogram:\n\tport: 1\n", 2, "indent with spaces"),
    "crlf and tab": ("program:\r\n  host: a\r\n\tport: 1\r\n", 3, "indent with spaces"),
    "backslash": ('program:\n  host: "a\\q"\n', 2, "write / instead"),
    "bare cron": ("program:\n  export:\n    schedule: * * * * *\n", 3, "begins with * in quotes"),
    "variable": ("Local-Models:\n  m: {s: {env: {A: ${B}}}}\n", 2, "${NAME} that is between"),
    "at": ("program:\n  currency: @x\n", 2, "begins with @ in quotes"),
    "open quote": ('program:\n  host: "a\n  port: 1\n', 2, "close the quotes"),
    "open list": ("program:\n  TokenTracker: [Chat\n  port: 1\n", 3, "begins on line 2"),
    "no colon": ("program:\n  host: a\n  port\n", 3, "a colon"),
    "no space": ("program:\n  host:a\n  port: 1\n", 3, "on the line above"),
    "indentation": ("program:\n  host: a\n port: 1\n", 3, "indentation"),
    "two colons": ("program:\n  host: a: b\n", 2, "needs quotes"),
    "control": ("program:\n  host: \x01\n", 2, "'\\x01'"),
    "second document": ("program:\n---\nprogram:\n", 2, "another document"),
    "alias": ("program: *none\n", 1, "undefined alias"),
}


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml_reader.LOADER])
@pytest.mark.parametrize("name", SYNTAX)
def test_what_is_not_yaml_is_said_with_its_line_and_a_way_out(
    home: Path, name: str, loader: type[yaml.SafeLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_reader, "LOADER", loader)
    text, line, part = SYNTAX[name]
    found = only_problem(home, text)
    assert found[0] == line
    assert part in found[1]


# Pieces of files, so that random ones get past the parser often enough.
PIECES = [
    *("program", "Local-Models", "m", "aliases", "price", "tiers", "command", "env", "export"),
    *(": ", "\n", "  ", "    ", "- ", "[", "]", "{", "}", ",", "&a ", "*a", "<<", "? ", "!!int "),
    *('"', "'", "\\", "\t", "#", "|\n", "~", "1", "-1", ".nan", "true", "x", "\0", "\u2028", "好"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text() | st.binary())
def test_no_file_whatever_is_in_it_ends_in_a_traceback(home: Path, text: str | bytes) -> None:
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")
    found = good_or_problems(home, text)
    assert all(problem.line >= 1 and problem.message for problem in found)
    # YAML has line ends that editors do not count.
    if not set("\r\x85\u2028\u2029") & set(text.decode(errors="replace")):
        assert all(problem.line <= text.count(b"\n") + 1 for problem in found)


def test_any_two_bytes_cut_from_a_good_file_give_a_config_or_problems(home: Path) -> None:
    content = SEED.encode()
    for begin in range(0, len(content), 3):
        good_or_problems(home, content[:begin] + content[begin + 2 :])


# Keys.


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("Local_Models:\n", 1, "did you mean Local-Models?"),
        ("local-models:\n", 1, "did you mean Local-Models?"),
        ("programs:\n", 1, "did you mean program?"),
        ("xyz: 1\n", 1, "known here: program, Local-Models"),
        ("program:\n  disable_gpu_monitoring: true\n", 2, "did you mean Disable_GPU_monitoring?"),
        ("program:\n  PORT: 1\n", 2, "did you mean port?"),
        ("program:\n  token-tracker: []\n", 2, "did you mean TokenTracker?"),
        (
            "program:\n  export: {schedule: '0 3 * * *', direktory: x}\n",
            2,
            "did you mean directory?",
        ),
    ],
)
def test_an_unknown_key_gets_a_did_you_mean(home: Path, text: str, line: int, hint: str) -> None:
    found = only_problem(home, text)
    assert found[0] == line
    assert "unknown key" in found[1]
    assert hint in found[1]


def test_a_key_that_begins_with_x_is_free_for_anchors(home: Path) -> None:
    text = """\
x-gpu: &gpu
  required_devices: [v100]
  memory_mb: {v100: 8000}
x-anything: [1, {a: b}]
Local-Models:
  m:
    GPU: {<<: *gpu, command: [x]}
"""
    loaded = load(home, text)
    assert loaded.models["m"].schemes[0].memory_mb == {"v100": 8000}
    assert loaded.warnings == ()
    assert "unknown key" in only_problem(home, "program: {x-port: 1}\nLocal-Models:\n")[1]
    assert only_problem(home, "X-gpu: 1\n")[0] == 1


@pytest.mark.parametrize(
    ("text", "line", "first"),
    [
        ("program:\nLocal-Models:\nprogram:\n", 3, 1),
        ("program:\n  port: 1\n  host: a\n  port: 2\n", 4, 2),
        ("Local-Models:\n  m: {s: {command: [x]}}\n  'm': {s: {command: [x]}}\n", 3, 2),
        ("Local-Models:\n  m:\n    s: {command: [x]}\n    s: {command: [x]}\n", 4, 3),
        ("Local-Models:\n  m:\n    s:\n      command: [x]\n      cwd: .\n      cwd: .\n", 6, 5),
    ],
)
def test_a_key_that_is_there_twice_is_reported(
    home: Path, text: str, line: int, first: int
) -> None:
    found = only_problem(home, text)
    assert found[0] == line
    assert f"twice, first on line {first}" in found[1]


def test_a_key_that_is_a_list_is_reported(home: Path) -> None:
    assert "a key must be plain text" in only_problem(home, "program:\n  [a, b]: 1\n")[1]


@pytest.mark.parametrize("merge", ["1", "[1]", "null"])
def test_a_merge_of_no_mapping_is_reported(home: Path, merge: str) -> None:
    line, message = only_problem(home, model_text(f"<<: {merge}"))
    assert line == 3
    assert "merges mappings only" in message


def test_a_mapping_that_merges_itself_is_reported(home: Path) -> None:
    line, message = only_problem(home, model_text("x: &x {command: [x], <<: *x}"))
    assert line == 3
    assert "cannot merge itself" in message


@pytest.mark.parametrize("section", ["program", "Local-Models", "Local-Models: {m"])
@pytest.mark.parametrize("wrong", ["5", "text", "[a]", "true"])
def test_a_section_that_is_no_mapping_is_reported(home: Path, section: str, wrong: str) -> None:
    text = f"{section}: {wrong}" + "}" * section.count("{")
    assert "expected a mapping" in only_problem(home, text)[1]


# Numbers.


@given(st.integers())
@example(0)
@example(65535)
@example(65536)
@example(10**5000)
def test_a_port_is_a_whole_number_from_1_to_65535(home: Path, port: int) -> None:
    text = f"port: {Decimal(port):f}"
    if 1 <= port <= 65535:
        assert program(home, text).port == port
    else:
        assert "from 1 to 65535" in only_problem(home, f"program:\n  {text}\n")[1]


@pytest.mark.parametrize(
    "written", ["true", "1.0", "'1'", "1e3", "0x10", "010", "1:30", "[1]", "{a: 1}", "x", "!!int x"]
)
def test_a_port_that_is_no_plain_whole_number_is_refused(home: Path, written: str) -> None:
    line, message = only_problem(home, f"program:\n  port: {written}\n")
    assert line == 2
    assert message.startswith("port: expected a whole number")


@given(st.floats(min_value=0, max_value=4_000_000, exclude_min=True))
def test_a_timeout_may_be_any_positive_number(home: Path, seconds: float) -> None:
    assert program(home, f"stop_timeout: {Decimal(seconds):f}").stop_timeout == seconds


@pytest.mark.parametrize("key", ["start_timeout", "stop_timeout", "queue_timeout"])
@pytest.mark.parametrize(
    "written", ["0", "-0.0", "-1", ".inf", ".nan", "true", "1.0e+400", "1:30", "!!float ._"]
)
def test_a_timeout_that_is_no_positive_number_is_refused(
    home: Path, key: str, written: str
) -> None:
    assert "above 0" in only_problem(home, f"program:\n  {key}: {written}\n")[1]


def test_an_idle_time_of_zero_means_never_and_is_allowed(home: Path) -> None:
    assert program(home, "alive_time: 0").alive_time == 0


# Names and ports that are taken.


@pytest.mark.parametrize(
    ("models", "line", "part"),
    [
        (["a: {aliases: [x]", "b: {aliases: [x]"], 3, "x is already an alias of a (line 2)"),
        (["a: {aliases: [x, x]"], 2, "x is already an alias of a (line 2)"),
        (["a: {aliases: [b]", "b: {port: 7"], 2, "b is already the name of a model (line 3)"),
        (["a: {port: 7", "b: {aliases: [a]"], 3, "a is already the name of a model (line 2)"),
        (["a: {port: 7", "b: {port: 7"], 3, "7 is already the port of a (line 2)"),
        (["a: {port: 8080"], 2, "8080 is already the program's own"),
    ],
)
def test_names_and_ports_are_unique_over_all_models(
    home: Path, models: list[str], line: int, part: str
) -> None:
    lines = [f"  {each}, s: {{command: [x]}}}}\n" for each in models]
    found = only_problem(home, "Local-Models:\n" + "".join(lines))
    assert found[0] == line
    assert part in found[1]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("''", "empty"),
        ("' '", "empty"),
        ('"a\\nb"', "control"),
        ('"\\x7f"', "control"),
        ("a" * 201, "200"),
    ],
)
def test_a_name_that_cannot_be_shown_is_refused(home: Path, name: str, part: str) -> None:
    line, message = only_problem(home, f"Local-Models:\n  ? {name}\n  : {{s: {{command: [x]}}}}\n")
    assert line == 2
    assert part in message
    assert only_problem(home, model_text(f"aliases: [{name}]"))[0] == 3


@pytest.mark.parametrize("name", [".", ".."])
def test_a_model_that_no_address_can_name_is_refused(home: Path, name: str) -> None:
    line, message = only_problem(home, f"Local-Models:\n  {name}:\n    s: {{command: [x]}}\n")
    assert line == 2
    assert "none could ask for it, choose another" in message
    line, message = only_problem(home, model_text(f"aliases: [ok, {name}]"))
    assert line == 3
    assert "none could ask for it" in message
    allowed = load(
        home, f"Local-Models:\n  ...a: {{aliases: [.a, a/..], {name}: {{command: [x]}}}}"
    )
    assert list(allowed.models) == ["...a"]


def test_an_unknown_mode_names_the_known_ones(home: Path) -> None:
    line, message = only_problem(home, model_text("mode: Vision"))
    assert line == 3
    assert "unknown mode 'Vision'; known: Base, Chat, Embedding, Reranker" in message


# Schemes.


def test_a_model_without_a_scheme_is_told_to_add_one(home: Path) -> None:
    line, message = only_problem(home, "Local-Models:\n  a:\n    mode: Chat\n")
    assert line == 2
    assert message.startswith("a: has no scheme: add a mapping")
    assert "no scheme" in only_problem(home, "Local-Models:\n  a:\n")[1]


def test_a_misspelt_price_is_not_taken_for_a_scheme_in_silence(home: Path) -> None:
    found = problems(home, model_text("Price: {per_hour: 1}"))
    assert any("did you mean price?" in message for _, message in found)


@pytest.mark.parametrize(
    "written", ['"scripts\\new.bat"', '"scripts\\\\nope.bat"', "scripts", "~/a.sh"]
)
def test_a_script_that_is_not_there_is_reported(home: Path, written: str) -> None:
    text = f"Local-Models:\n  m:\n    s:\n      script_path: {written}\n"
    assert {line for line, _ in problems(home, text)} == {4}


def test_a_windows_path_in_double_quotes_is_explained(home: Path) -> None:
    # \n is a line end there, so that the name is not the one that was meant.
    message = scheme_problem(home, 'script_path: "scripts\\new.bat"')
    assert "in double quotes \\ begins an escape: write / instead" in message


@pytest.mark.parametrize("command", ["[]", "['', a]", "[null]", "x", "{a: b}"])
def test_a_command_begins_with_a_program(home: Path, command: str) -> None:
    text = f"Local-Models:\n  m:\n    s:\n      command: {command}\n"
    assert {line for line, _ in problems(home, text)} == {4}


def test_a_command_and_an_environment_keep_what_was_written(home: Path) -> None:
    read = scheme(home, 'command: [x, "", 0x1F, on, 1e5, ~x, "a b"], env: {P: 010, Q: off, R: 1_0}')
    assert read.command == ("x", "", "0x1F", "on", "1e5", "~x", "a b")
    assert read.env == {"P": "010", "Q": "off", "R": "1_0"}


@pytest.mark.parametrize("env", ["{A=B: 1}", "{'': 1}", "{A: }", "{A: {B: c}}", '{A: "\\0"}'])
def test_an_environment_that_no_process_can_have_is_refused(home: Path, env: str) -> None:
    assert scheme_problem(home, f"command: [x], env: {env}")


def test_memory_has_the_devices_as_required_devices_spells_them(home: Path) -> None:
    read = scheme(home, "command: [x], required_devices: [RTX 4060], memory_mb: {rtx  4060: 8000}")
    assert read.memory_mb == {"RTX 4060": 8000}
    body = "command: [x], required_devices: [v100], memory_mb: {v100: 1, V100: 2}"
    assert "twice" in scheme_problem(home, body)


@pytest.mark.parametrize(
    "body",
    [
        "command: [x], env: KEY=hunter2",
        "command: [x], env: {KEY: [hunter2]}",
        "command: [x], env: [hunter2]",
        "command: run --key hunter2",
        "command: {run: hunter2}",
    ],
)
def test_no_message_repeats_what_may_be_a_secret(home: Path, body: str) -> None:
    assert "hunter2" not in scheme_problem(home, body)


# What stands in the environment instead.


@pytest.fixture
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_TOKEN", "hunter2")
    monkeypatch.setenv("_2ND", "${OUR_TOKEN}")
    monkeypatch.setenv("OUR_LINES", "one\ntwo")
    monkeypatch.delenv("NOT_THERE", raising=False)


@pytest.mark.usefixtures("_variables")
@pytest.mark.parametrize(
    ("written", "value", "is_expanded"),
    [
        ("${OUR_TOKEN}", "hunter2", True),
        ("a-${OUR_TOKEN}-b${OUR_TOKEN}", "a-hunter2-bhunter2", True),
        ("${OUR_LINES}", "one\ntwo", True),
        ("${_2ND}", "${OUR_TOKEN}", True),  # what comes from there is taken as it is
        ("$${OUR_TOKEN}", "${OUR_TOKEN}", False),
        ("$${a-${OUR_TOKEN}", "${a-hunter2", True),
        ("$OUR_TOKEN $$ a$ }{", "$OUR_TOKEN $$ a$ }{", False),
    ],
)
def test_a_value_of_a_schemes_environment_may_come_from_ours(
    home: Path, written: str, value: str, is_expanded: bool
) -> None:
    read = scheme(home, f"command: [x], env: {{A: '{written}', B: ''}}")
    assert read.env == {"A": value, "B": ""}
    assert read.expanded == ({"A"} if is_expanded else set())
    assert "hunter2" not in repr(read)


@pytest.mark.usefixtures("_variables")
def test_a_command_is_kept_as_it_is_written_until_it_is_run(home: Path) -> None:
    text = """\
Local-Models:
  m:
    s:
      command:
        - vllm
        - --api-key=${OUR_TOKEN}
        - ${NOT_THERE} ${PORT} ${FLAVOUR} ${} $${NOR_THIS}
      env: {FLAVOUR: plain}
"""
    loaded = load(home, text)
    (read,) = loaded.models["m"].schemes
    assert read.command[1] == "--api-key=${OUR_TOKEN}"
    (warning,) = loaded.warnings
    assert (warning.line, warning.message) == (
        7,
        "command, item 3: the environment has no NOT_THERE: ${NOT_THERE} stays as it is",
    )


@pytest.mark.usefixtures("_variables")
def test_nothing_else_is_taken_from_the_environment(home: Path) -> None:
    read = scheme(home, 'command: [x], env: {"${OUR_TOKEN}": a}')
    assert read.env == {"${OUR_TOKEN}": "a"}
    assert program(home, "currency: ${OUR_TOKEN}").currency == "${OUR_TOKEN}"


@pytest.mark.usefixtures("_variables")
@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("hunter2 ${NOT_THERE}", "the environment has no NOT_THERE: "),
        ("${OUR_TOKEN} ${NOT_THERE}", "write $${NOT_THERE} if"),
        ("${OUR_TOKEN} ${}", "write ${NAME}"),
        ("${OUR_TOKEN", "write ${NAME}"),
        ("${hunter2:-x}", "write ${NAME}"),
        ("${ OUR_TOKEN }", "write ${NAME}"),
        ("${1}", "write ${NAME}"),
        ("${ÜBER}", "write ${NAME}"),
    ],
)
def test_what_the_environment_does_not_have_is_told_with_its_line_and_without_values(
    home: Path, written: str, part: str
) -> None:
    text = f"Local-Models:\n  m:\n    s:\n      command: [x]\n      env:\n        A: '{written}'\n"
    line, message = only_problem(home, text)
    assert line == 6
    assert part in message
    assert "hunter2" not in message


# Who may come in.


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("LLM.Example.org", "llm.example.org"),
        ("llm.example.org.", "llm.example.org"),
        ("gpu_box", "gpu_box"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("10.example.org", "10.example.org"),
    ],
)
def test_a_name_of_this_machine_is_read_as_a_host_header_has_it(
    home: Path, written: str, read: str
) -> None:
    assert program(home, f"allowed_hosts: ['{written}']").allowed_hosts == (read,)


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("*", "write each name"),
        ("*.example.org", "write each name"),
        ("https://llm.example.org", "write llm.example.org"),
        ("llm.example.org:8080", "write llm.example.org"),
        ("http://llm.example.org:8080/v1", "write llm.example.org"),
        ("192.168.1.5", "need not be listed"),
        ("192.168.1.5:8080", "need not be listed"),
        ("::1", "need not be listed"),
        ("[::1]:8080", "need not be listed"),
        ("127.1", "expected a DNS name"),  # browsers: 127.0.0.1
        ("0x7f.0x1", "expected a DNS name"),
        ("a..b", "expected a DNS name"),
        ("-a.org", "expected a DNS name"),
        ("a b", "expected a DNS name"),
        ("a" * 64, "expected a DNS name"),
        (".".join(["abcdefgh"] * 30), "expected a DNS name"),
        (".", "expected a DNS name"),
        ("bücher.example", "xn--"),
        ("\u212awik.example", "xn--"),  # the Kelvin sign, whose small letter is a k
    ],
)
def test_what_no_host_header_can_be_held_to_is_refused(home: Path, written: str, part: str) -> None:
    text = f"program:\n  allowed_hosts:\n    - ok.example\n    - '{written}'\n"
    line, message = only_problem(home, text)
    assert line == 4
    assert part in message


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("*", "*"),
        ("https://Chat.Example.org", "https://chat.example.org"),
        ("https://chat.example.org/", "https://chat.example.org"),
        ("https://chat.example.org:443", "https://chat.example.org"),
        ("http://chat.example.org:0443/", "http://chat.example.org:443"),
        ("HTTP://localhost:80", "http://localhost"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://192.168.1.5:8080", "http://192.168.1.5:8080"),
        ("http://[0::1]:80", "http://[::1]"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("tauri://localhost", "tauri://localhost"),
    ],
)
def test_an_origin_is_read_as_browsers_send_it(home: Path, written: str, read: str) -> None:
    assert program(home, f"cors_origins: ['{written}']").cors_origins == (read,)


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("null", "any file"),
        ("https://*.example.org", "write each origin"),
        ("chat.example.org", "expected an origin"),
        ("localhost:3000", "expected an origin"),
        ("//chat.example.org", "expected an origin"),
        ("https://chat.example.org/app", "write https://chat.example.org"),
        ("https://chat.example.org?x", "write https://chat.example.org"),
        ("https://chat.example.org//", "write https://chat.example.org"),
        ("https://ada:hunter2@chat.example.org", "no user"),
        ("https://chat.example.org:0", "there is no port 0"),
        ("https://chat.example.org:65536", "there is no port 65536"),
        ("https://chat.example.org:", "expected https://"),
        ("https://", "expected https://"),
        ("https:///", "expected https://"),
        ("file://", "expected file://"),
        ("http://127.1", "expected http://"),
        ("http://::1", "expected http://"),
        ("http://[127.0.0.1]", "expected http://"),
        ("http://a b", "expected http://"),
        ("https://bücher.example", "xn--"),
    ],
)
def test_what_no_browser_sends_as_an_origin_is_refused(home: Path, written: str, part: str) -> None:
    line, message = only_problem(home, f"program:\n  cors_origins: ['{written}']\n")
    assert line == 2
    assert part in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("0.0.0.0/0", "is everybody"),
        ("::/0", "is everybody"),
        ("10.0.0.5/8", "write 10.0.0.0/8 for the whole network, or 10.0.0.5"),
        ("fd00::1/8", "write fd00::/8"),
        ("::ffff:10.0.0.0/104", "write it as 10.0.0.0/8"),
        ("::ffff:0.0.0.0/96", "write it as 0.0.0.0/0"),
        ("10.0.0.1/33", "expected an address or a network"),
        ("10.0.0", "expected an address or a network"),
        ("proxy.example.org", "expected an address or a network"),
        ("*", "expected an address or a network"),
        ("127.0.0.1:80", "expected an address or a network"),
        ("fe80::1%eth0", "expected an address or a network"),
    ],
)
def test_a_proxy_is_an_address_or_a_network_and_not_everybody(
    home: Path, written: str, part: str
) -> None:
    line, message = only_problem(home, f"program:\n  trusted_proxies: ['{written}']\n")
    assert line == 2
    assert part in message


@given(st.sampled_from(["allowed_hosts", "cors_origins", "trusted_proxies"]), st.text())
def test_no_text_in_these_lists_ends_in_a_traceback(home: Path, key: str, written: str) -> None:
    text = yaml.safe_dump({"program": {key: [written, f"https://{written}"]}}, allow_unicode=True)
    good_or_problems(home, text.encode("utf-8", "surrogatepass"))


# Time.


def test_a_system_without_time_zones_says_how_to_get_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(key: str) -> None:
        raise zoneinfo.ZoneInfoNotFoundError(key)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", none)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    assert "pip install tzdata" in only_problem(home, "program: {timezone: Asia/Shanghai}")[1]


@pytest.mark.parametrize(
    "name", ["America", "../etc/passwd", "/etc/passwd", "Mars/Olympus", "x" * 300]
)
def test_an_unknown_time_zone_is_refused(home: Path, name: str) -> None:
    assert "unknown time zone" in only_problem(home, f"program: {{timezone: {name}}}")[1]


@pytest.mark.parametrize(
    "schedule",
    ["* * * * *", "0 3 1 * *", "*/15 0-6,22,23 1-31/2 jan-mar MON-fri", "5/10 0 * 12 0"],
)
def test_a_cron_expression_is_taken(home: Path, schedule: str) -> None:
    export = program(home, f"export: {{schedule: '{schedule}'}}").export
    assert export == config.Export(schedule, "day", None)


@pytest.mark.parametrize(
    ("schedule", "part"),
    [
        ("* * * *", "five fields (minute, hour, day, month, weekday), found 4"),
        ("0 0 * * * *", "found 6"),
        ("@daily", "found 1"),
        ("60 * * * *", "Bad minute: write five fields such as '0 3 1 * *'"),
        ("* 24 * * *", "Bad hour"),
        ("* * 0 * *", "Bad day-of-month"),
        ("* * * 13 *", "Bad month"),
        ("* * * * 8", "Bad day-of-week"),
        ("* * * * sun-mon", "Bad day-of-week"),
        ("5-1 * * * *", "Bad minute"),
        ("*/0 * * * *", "Bad minute"),
        ("1,,2 * * * *", "Bad minute"),
        ("*-5 * * * *", "Bad minute"),
        ("a * * * *", "Bad minute"),
        ("* * 31 13 *", "Bad month"),
    ],
)
def test_a_cron_expression_that_is_none_is_refused(home: Path, schedule: str, part: str) -> None:
    text = f"program:\n  export: {{schedule: '{schedule}'}}\n"
    line, message = only_problem(home, text)
    assert line == 2
    assert part in message


@pytest.mark.parametrize("export", ["{}", "{period: day}", "{schedule: }"])
def test_an_export_needs_a_schedule(home: Path, export: str) -> None:
    assert "schedule is missing" in only_problem(home, f"program: {{export: {export}}}")[1]


# Prices.


def test_a_price_is_read_exactly(home: Path) -> None:
    text = """\
price:
      per_hour: 0.1
      tiers:
        - {max_input: 32000, input: 0.000000001, output: "12.50"}
        - min_input: 32000
          min_output: 0
          max_output: 8000
          input: 1e-3
          output: 1_000
          support_cache: true
          cache_read: 0.3
          cache_write: 123456.123456789
"""
    assert model(home, text).price == Price(
        per_hour=100_000_000,
        tiers=(
            Tier(0, 32000, 0, -1, 1, 12_500_000_000, 0, 0, False),
            Tier(
                *(32000, -1, 0, 8000),
                *(1_000_000, 1_000_000_000_000, 300_000_000, 123_456_123_456_789),
                True,
            ),
        ),
    )


@given(st.integers(0, LARGEST * 10**9))
def test_an_amount_of_nine_decimals_is_exact(amount: int) -> None:
    text = f"{amount // 10**9}.{amount % 10**9:09d}"
    assert billionths(text) == amount
    assert billionths(text + "000") == amount


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "-1", "-0.000000001", "nan", "inf", "1:30", "0x1", "1/3", "1,5"),
        *("0.0000000001", "1.0000000000001", "1e-10", "1e-999999999", "1e999999999", "1e10"),
        "1000000000.000000001",
    ],
)
def test_an_amount_that_cannot_be_kept_exactly_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        billionths(text)


@given(st.integers(0, 20), st.integers(-1, 20))
def test_a_tier_whose_range_has_no_tokens_is_refused(home: Path, low: int, high: int) -> None:
    body = f"min_output: {low}, max_output: {high}, input: 0, output: 0"
    text = model_text(f"price: {{tiers: [{{{body}}}]}}")
    holds = [tokens for tokens in range(22) if low < tokens or tokens == low == 0]
    if high == -1 or any(tokens <= high for tokens in holds):
        load(home, text)
    else:
        assert f"max_output {high} is not above min_output {low}" in only_problem(home, text)[1]


@pytest.mark.parametrize("price", ["{effective_from: 1, per_hour: 1}", "{tiers: {}}", "5"])
def test_a_price_of_another_shape_is_refused(home: Path, price: str) -> None:
    assert only_problem(home, model_text(f"price: {price}"))[0] == 3
