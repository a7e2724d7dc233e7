"""llama-swap's config as ours: each key, and what of it is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.imported import Import, imported

SERVE = "cmd: llama-server --port ${PORT} -m a.gguf"


def test_a_command_is_a_list_of_arguments_with_its_macros_in_it(llama_swap: Import) -> None:
    config, report = llama_swap(
        """
macros:
  "latest": |
    /opt/llama-server
    --port ${PORT}
  ctx: 4096
  args: --ctx-size ${ctx} --temp ${temp}
  temp: 1
models:
  qwen:
    macros: {ctx: 16384, file: q.gguf}
    cmd: |
      # ${latest} of June
      ${latest} \\
      --model "/my models/${file}" ${args}
      --alias ${MODEL_ID} --kw '{"a": false}'
"""
    )
    [scheme] = config.models["qwen"].schemes
    assert scheme.command == (
        *("/opt/llama-server", "--port", "${PORT}", "--model", "/my models/q.gguf"),
        *("--ctx-size", "16384", "--temp", "${temp}"),  # a macro sees those before it
        *("--alias", "${MODEL}", "--kw", '{"a": false}'),
    )
    assert "line 12: cmd: there is no macro temp" in report


def test_a_command_with_a_path_of_windows_is_read_as_windows_reads_it(llama_swap: Import) -> None:
    config, _ = llama_swap(
        r"""
models:
  a:
    cmd: >
      C:\llama\llama-server.exe -m "D:\my models\a.gguf"
      --port ${PORT} --kw "{\"b\": 1}"
"""
    )
    assert config.models["a"].schemes[0].command == (
        *(r"C:\llama\llama-server.exe", "-m", r"D:\my models\a.gguf"),
        *("--port", "${PORT}", "--kw", '{"b": 1}'),
    )


def test_variables_of_the_environment_stay_out_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", "/home/ann/hf")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    source = tmp_path / "llama-swap.yaml"
    source.write_text(
        """
models:
  a:
    cmd: serve ${env.HF_HOME}/a --port ${PORT} --name ${env.MODEL}
    env: ["BEHIND=${env.HF_HOME}/b", "TOKEN=${env.HF_TOKEN}"]
"""
    )
    made = imported("llama-swap", source)
    assert "/home/ann" not in made.text
    [scheme] = [entry["Default"] for entry in made.models.values()]
    assert scheme["command"][1] == "${HF_HOME}/a"
    assert scheme["env"] == {"BEHIND": "${HF_HOME}/b", "TOKEN": "${HF_TOKEN}"}
    assert "${env.MODEL}: in a command ${MODEL} has another meaning" in made.report
    # Without it the program would not start: the config is good, its environment is not yet.
    assert "the environment that LLM-Manager is started in has to have HF_TOKEN" in made.report


def test_what_a_scheme_has_beside_its_command(llama_swap: Import) -> None:
    config, report = llama_swap(
        """
models:
  a:
    cmd: docker run --name ${MODEL_ID} -p 127.0.0.1:${PORT}:8080 image
    cmdStop: docker stop -t 5 ${MODEL_ID}
    env: ["LD_LIBRARY_PATH=/opt/lib", "MODE=x=y", "NAME=${MODEL_ID}", "SHELL_LIKE=${HOME}", "bad"]
  b:
    cmd: serve ${PORT}
    cmdStop: kill -TERM ${PID}
"""
    )
    [scheme] = config.models["a"].schemes
    assert scheme.stop_command == ("docker", "stop", "-t", "5", "${MODEL}")
    assert scheme.env == {
        "LD_LIBRARY_PATH": "/opt/lib",
        "MODE": "x=y",
        "NAME": "a",
        "SHELL_LIKE": "${HOME}",
    }
    assert "env: an entry without NAME= is left out" in report
    assert config.models["b"].schemes[0].stop_command == ()
    assert "line 9: cmdStop: is left out: the process tree is ended without it" in report


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("ttl: 0", "alive_time", 0),
        ("ttl: 90", "alive_time", 1.5),
        ("ttl: 3600", "alive_time", 60),
        ("checkEndpoint: /v1/models", "health", "/v1/models"),
        ("checkEndpoint: none", "health", "none"),
        ("checkEndpoint: /health", "health", None),
        ("useModelName: org/model", "served_model_name", "org/model"),
        ("unlisted: true", "unlisted", True),
        ("concurrencyLimit: 8", "max_concurrency", 8),
        ("concurrencyLimit: 0", "max_concurrency", None),
        ("unloadTimeout: 60", "stop_timeout", 60),
        ("healthCheckTimeout: 900", "start_timeout", 900),
        ("proxy: http://127.0.0.1:9000", "port", 9000),
        ("proxy: http://localhost:${PORT}", "port", None),
        ("capabilities: {context: 8192, tools: true}", "context_length", 8192),
        ("capabilities: {reranker: true}", "mode", "Reranker"),
    ],
)
def test_a_key_of_a_model(llama_swap: Import, key: str, field: str, value: object) -> None:
    config, report = llama_swap(f"models:\n  a:\n    {SERVE}\n    {key}\n")
    assert getattr(config.models["a"], field) == value
    assert "1 of 1 models taken over" in report


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("globalTTL: 600", "alive_time", 10),
        ("logLevel: warn", "log_level", "WARNING"),
        ("healthCheckTimeout: 500", "start_timeout", 500),
        ("unloadTimeout: 20", "stop_timeout", 20),
        ("sendLoadingState: true", "send_loading_state", True),
        ("includeAliasesInList: true", "list_aliases", True),
        ("x: 1", "alive_time", 0),  # llama-swap stops nothing for being idle
    ],
)
def test_a_key_of_the_program(llama_swap: Import, key: str, field: str, value: object) -> None:
    config, _ = llama_swap(f"{key}\nmodels:\n  a:\n    {SERVE}\n")
    assert getattr(config.program, field) == value


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("name: A", "name: is shown nowhere"),
        ("metadata: {role: x}", "metadata: has no counterpart"),
        ("timeouts: {connect: 3}", "the program's upstream_timeout"),
        ("ttl: soon", "ttl is left out: expected a whole number"),
        ("capabilities: {in: [image]}", "the server is asked"),
        ("cmdStop: docker 'stop", "a quote is open"),
        ("proxy: nowhere", "proxy: is left out: it is no address"),
        ("proxy: http://127.0.0.2:${PORT}", "127.0.0.2: its server has to listen on 127.0.0.1"),
        ("proxy: http://localhost:${PORT}/v1", "its path is left out"),
        ("secretThing: hunter2", "secretThing: has no counterpart"),
    ],
)
def test_what_has_no_counterpart_is_reported_with_its_line(
    llama_swap: Import, key: str, line: str
) -> None:
    _, report = llama_swap(f"models:\n  a:\n    {SERVE}\n    {key}\n")
    [found] = [each for each in report.splitlines() if line in each]
    assert found.startswith("  line 4: ")
    assert "hunter2" not in report


def test_anchors_are_merged_and_not_reported(llama_swap: Import) -> None:
    config, report = llama_swap(
        f"x-base: &base\n  ttl: 60\n  {SERVE}\nmodels:\n  a: {{<<: *base, ttl: 120}}\n  b: *base\n"
    )
    assert [model.alive_time for model in config.models.values()] == [2, 1]
    assert "x-base" not in report


def test_filters_are_changes_of_requests(llama_swap: Import) -> None:
    config, report = llama_swap(
        f"""
macros: {{temp: 0.6}}
models:
  a:
    {SERVE}
    aliases: [plain, "a:high"]
    filters:
      stripParams: "top_k, model, seed,"
      setParams: {{temperature: "${{temp}}", "max_tokens?": 512, stop: ["<|x|>"], model: b}}
      setParamsByID:
        "${{MODEL_ID}}": {{effort: medium}}
        "${{MODEL_ID}}:high": {{effort: high, "top_p?": 1}}
      presets: x
"""
    )
    model = config.models["a"]
    assert model.request is not None
    assert model.request.strip == ("top_k", "seed")
    assert model.request.default == {"max_tokens": 512}
    assert model.request.set == {"temperature": 0.6, "stop": ["<|x|>"], "effort": "medium"}
    assert {name: changes.set for name, changes in model.aliases.items()} == {
        "plain": {},
        "a:high": {"effort": "high"},
    }
    assert "setParamsByID: a:high has no defaults of its own" in report
    assert "presets has no counterpart" in report
    assert "is set for its aliases too" in report


def test_an_alias_that_is_taken_is_left_out(llama_swap: Import) -> None:
    config, report = llama_swap(
        f"""
models:
  a: {{{SERVE.replace("cmd: ", "cmd: '")}', aliases: [b, shared, own]}}
  b: {{{SERVE.replace("cmd: ", "cmd: '")}', aliases: [{{id: shared}}, b]}}
"""
    )
    assert list(config.models["a"].aliases) == ["shared", "own"]
    assert list(config.models["b"].aliases) == []
    assert "the alias b is left out: it is the name of, or leads to, b" in report
    assert "the alias shared is left out: it is the name of, or leads to, a" in report


@pytest.mark.parametrize(
    "groups",
    [
        "groups: {g: {persistent: true, swap: false, members: [a, nobody]}, h: {members: [b]}}",
        "routing: {router: {settings: {groups: {g: {persistent: true, members: [a]}}}}}",
    ],
)
def test_groups_and_preload_as_far_as_they_map(llama_swap: Import, groups: str) -> None:
    config, report = llama_swap(
        f"{groups}\nhooks: {{on_startup: {{preload: [second]}}}}\n"
        f"models:\n  a:\n    {SERVE}\n  b:\n    {SERVE}\n    aliases: [second]\n"
    )
    assert [model.pinned for model in config.models.values()] == [True, False]
    assert [model.auto_start for model in config.models.values()] == [False, True]
    assert "models are placed by free memory" in report
    assert ("there is no model nobody" in report) == ("nobody" in groups)


def test_a_server_at_another_host_is_one_that_others_start(llama_swap: Import) -> None:
    config, report = llama_swap(
        """
globalTTL: 60
hooks: {on_startup: {preload: [a]}}
models:
  a:
    cmd: docker compose up a
    cmdStop: docker compose stop a
    proxy: http://a:8080/
    ttl: 60
    aliases: [b]
  c: {proxy: "https://api.example.org/v1"}
  d: {ttl: 5}
"""
    )
    assert {name: model.url for name, model in config.models.items()} == {
        "a": "http://a:8080",
        "c": "https://api.example.org/v1",
    }
    assert config.warnings == ()
    assert "line 6: cmd: is left out, as cmdStop" in report
    assert "  taken over: proxy → url, aliases\n" in report
    assert "auto_start is left out: others start and stop that server" in report
    assert "LEFT OUT: it has no cmd, and no proxy on another host" in report


def test_ports_that_models_share_become_free_ones(llama_swap: Import) -> None:
    config, report = llama_swap(
        """
models:
  a: {cmd: "serve --port 9000 -c 9000", proxy: "http://127.0.0.1:9000"}
  b: {cmd: "bash -c 'exec serve --port 9000'", proxy: "http://127.0.0.1:9000"}
  c: {cmd: "compose up", proxy: "http://127.0.0.1:9000"}
  d: {cmd: "serve --port=8080", proxy: "http://127.0.0.1:8080"}
  e: {cmd: "serve --port 7000"}
"""
    )
    commands = {name: model.schemes[0].command for name, model in config.models.items()}
    assert commands == {
        "a": ("serve", "--port", "${PORT}", "-c", "9000"),
        "b": ("bash", "-c", "exec serve --port ${PORT}"),
        "d": ("serve", "--port=${PORT}"),
        "e": ("serve", "--port", "7000"),
    }
    assert "c (line 5)\n  LEFT OUT: its port 9000 is another model's too" in report
    assert "port 8080 is LLM-Manager's own" in report
    assert "line 7: cmd: has no ${PORT}, and proxy no port" in report


def test_peers_are_models_with_a_url(llama_swap: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_KEY", "sk-from-the-environment")
    config, report = llama_swap(
        f"""
models:
  a:
    {SERVE}
peers:
  router:
    proxy: https://router.example.org/api
    apiKey: ${{env.ROUTER_KEY}}
    models: [org/large, a]
    filters: {{setParams: {{zdr: true}}}}
  lan: {{proxy: "http://10.0.0.5:8080", apiKey: sk-written-here, models: [b], timeouts: {{}}}}
"""
    )
    large, b = config.models["org/large"], config.models["b"]
    assert (large.url, large.api_key) == (
        "https://router.example.org/api",
        "sk-from-the-environment",
    )
    assert large.request is not None
    assert large.request.set == {"zdr": True}
    assert b.api_key == "sk-written-here"
    assert "peers: router: models: a is left out" in report
    assert "peers: lan: apiKey: stands in the config" in report
    assert "sk-" not in report


def test_keys_of_clients_leave_the_api_closed_and_are_never_shown(llama_swap: Import) -> None:
    config, report = llama_swap(f"apiKeys: [sk-one, sk-two]\nmodels:\n  a:\n    {SERVE}\n")
    assert config.program.require_key is True
    assert "apiKeys: 2 keys are left out" in report
    assert "sk-" not in report


@pytest.mark.parametrize(
    ("command", "mode"),
    [
        ("llama-server --port ${PORT} --embedding", "Embedding"),
        ("llama-server --port ${PORT} --reranking", "Reranker"),
        ("docker run -p ${PORT}:8000 vllm --task embed", "Embedding"),
        ("docker run -p ${PORT}:8000 vllm --task=score", "Reranker"),
        ("/opt/whisper-server --port ${PORT}", "Transcription"),
        ("sd-server --listen-port ${PORT}", "Image"),
        ("llama-server --port ${PORT} --pooling rank", "Reranker"),
        ("llama-server --port ${PORT}", "Chat"),
    ],
)
def test_the_mode_is_what_the_command_says(llama_swap: Import, command: str, mode: str) -> None:
    config, report = llama_swap(f"models: {{a: {{cmd: '{command}'}}}}")
    assert config.models["a"].mode == mode
    assert ("check it" in report) == (mode != "Chat")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("bge-reranker-v2", "Reranker"),
        ("nomic-embed-text", "Embedding"),
        ("whisper-large", "Transcription"),
        ("kokoro-tts", "Speech"),
        ("qwen-buttsmith", "Chat"),
    ],
)
def test_a_script_says_no_mode_but_a_name_may(llama_swap: Import, name: str, mode: str) -> None:
    config, _ = llama_swap(f"models: {{{name}: {{cmd: 'start.sh ${{PORT}}'}}}}")
    assert config.models[name].mode == mode


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("cmd: serve ${PORT} --device CUDA1", "--device CUDA1 pins a card"),
        ("cmd: serve ${PORT}\n    env: [CUDA_VISIBLE_DEVICES=0]", "CUDA_VISIBLE_DEVICES=0 pins"),
        ("cmd: docker run --gpus '\"device=2\"' -p ${PORT}:1 i", '--gpus "device=2" pins'),
        ("cmd: serve ${PORT} --api-key sk-1", "--api-key: its server would ask"),
        ("cmd: serve ${PORT}\n    env: [VLLM_API_KEY=sk-1]", "VLLM_API_KEY: its server would"),
        ("cmd: serve ${PORT} --host 0.0.0.0", "past the keys of LLM-Manager"),
        ("cmd: docker run -p ${PORT}:80 i", "${PORT}:80: other machines reach its server"),
        ("cmd: ./serve.sh ${PORT}", "./serve.sh begins in the folder of config.yaml"),
    ],
)
def test_what_a_command_means_here_is_said(llama_swap: Import, model: str, hint: str) -> None:
    _, report = llama_swap(f"models:\n  a:\n    {model}\n")
    assert hint in report
    assert "sk-1" not in report


def test_a_server_that_is_not_started_for_its_mode_is_said(llama_swap: Import) -> None:
    _, report = llama_swap(
        "models: {my-embedder: {cmd: 'llama-server -m e.gguf --port ${PORT}'},"
        " embed-2: {cmd: 'llama-server -m e.gguf --embeddings --port ${PORT}'},"
        " embed-3: {cmd: 'serve ${PORT}'}}"
    )
    assert report.count("llama-server answers as Embedding with --embedding alone") == 1


@pytest.mark.parametrize(
    "command",
    [
        "docker run --gpus all --device /dev/kfd -p 127.0.0.1:${PORT}:1 i --host 0.0.0.0",
        "podman run --device=/dev/dri -p 127.0.0.1:${PORT}:1 i",
    ],
)
def test_a_container_pins_no_card_by_its_files(llama_swap: Import, command: str) -> None:
    _, report = llama_swap(f"models: {{a: {{cmd: '{command}'}}}}")
    assert "pins" not in report
    assert "--host" not in report


def test_the_report_says_what_to_look_at(llama_swap: Import) -> None:
    _, report = llama_swap(f"models:\n  a:\n    {SERVE}\n")
    assert "read every command before you use it" in report
    assert "no memory is reserved for a scheme without required_devices" in report


def test_a_model_that_our_reader_refuses_is_left_out_with_its_words(llama_swap: Import) -> None:
    config, report = llama_swap(
        f"models:\n  '..':\n    {SERVE}\n  b:\n    {SERVE}\n    checkEndpoint: no-path\n"
        f"  c:\n    {SERVE}\n"
    )
    assert list(config.models) == ["c"]
    assert "1 of 3 models taken over" in report
    assert "b (line 4)\n  LEFT OUT: health:" in report


def test_a_setting_that_our_reader_refuses_is_left_out_alone(llama_swap: Import) -> None:
    config, report = llama_swap(
        f"healthCheckTimeout: 60\nglobalTTL: 999999999999\nunloadTimeout: 999999\nmodels:\n"
        f"  program:\n    {SERVE}\n    aliases: [' ']\n  b:\n    {SERVE}\n"
    )
    assert list(config.models) == ["b"]
    assert (config.program.start_timeout, config.program.stop_timeout) == (60, 999999)
    assert "line 2: globalTTL is left out" in report
