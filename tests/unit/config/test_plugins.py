"""Plugins: a user's own modes and devices, and files that are no plugins."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from manager.config import plugins
from manager.tokens import TokenUsage

SHIPPED = {"Chat", "Base", "Embedding", "Reranker", "Transcription", "Speech", "Image"}
IMAGES = """
from manager.interfaces import Interface


class Images(Interface):
    mode = "Images"
    endpoints = ("/v1/images/generations",)

    def probe(self, model):
        return self.endpoints[0], {"model": model, "prompt": "Hi", "n": 1}
"""

CARDS = """
from manager.devices import DevicePlugin, Reading


class Cards(DevicePlugin):
    name = "cards"

    def read(self, pids):
        return [Reading("Card", "own", 0)]
"""


def write(folder: Path, name: str, text: str | bytes) -> None:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


# --- what is shipped --------------------------------------------------------------------


def test_the_shipped_modes_are_there_without_a_folder() -> None:
    assert set(plugins.interfaces(None)) == SHIPPED


@pytest.mark.parametrize(
    ("mode", "endpoint", "fields"),
    [
        ("Chat", "/v1/chat/completions", {"messages", "max_tokens"}),
        ("Base", "/v1/completions", {"prompt", "max_tokens"}),
        ("Embedding", "/v1/embeddings", {"input"}),
        ("Reranker", "/v1/rerank", {"query", "documents"}),
        ("Transcription", "/v1/audio/transcriptions", {"file"}),
        ("Speech", "/v1/audio/speech", {"input", "voice"}),
    ],
)
def test_each_mode_probes_its_own_endpoint_with_a_smallest_request(
    mode: str, endpoint: str, fields: set[str]
) -> None:
    interface = plugins.interfaces(None)[mode]
    probe = interface.probe("what the server calls it")
    assert probe is not None
    path, body = probe
    assert path == endpoint
    assert path in interface.endpoints
    assert body["model"] == "what the server calls it"
    assert set(body) == fields | {"model"}
    assert body.get("max_tokens", 1) == 1


def test_no_picture_is_drawn_to_see_whether_a_server_answers() -> None:
    assert plugins.interfaces(None)["Image"].probe("m") is None


def test_each_mode_reads_the_tokens_of_its_answers() -> None:
    for interface in plugins.interfaces(None).values():
        assert interface.usage(b'{"usage": {"prompt_tokens": 5}}') == TokenUsage(5, 0, 0)
        assert interface.usage(b"no answer") is None


# --- a user's own -----------------------------------------------------------------------


def test_a_users_mode_stands_beside_the_shipped_ones(tmp_path: Path) -> None:
    write(tmp_path, "images.py", IMAGES)
    found = plugins.interfaces(tmp_path)
    assert set(found) == SHIPPED | {"Images"}
    assert found["Images"].probe("m")[1]["prompt"] == "Hi"


def test_a_plugin_with_the_name_of_a_shipped_mode_takes_its_place(tmp_path: Path) -> None:
    write(
        tmp_path,
        "chat.py",
        "from manager.interfaces import Chat\n\n\nclass Mine(Chat):\n"
        "    endpoints = ('/v1/chat/completions', '/v1/messages')\n",
    )
    found = plugins.interfaces(tmp_path)
    assert set(found) == SHIPPED
    assert found["Chat"].endpoints == ("/v1/chat/completions", "/v1/messages")


def test_one_file_may_have_several_modes_and_import_what_it_likes(tmp_path: Path) -> None:
    both = IMAGES + IMAGES.replace("Images", "Audio").replace("images/generations", "audio/speech")
    write(tmp_path, "media.py", "import json\nfrom manager.interfaces import Chat, Base\n" + both)
    assert set(plugins.interfaces(tmp_path)) == SHIPPED | {"Images", "Audio"}


def test_a_plugin_may_use_dataclasses_as_any_module_may(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n"
        "@dataclass\nclass Size:\n    width: int = 256\n" + IMAGES
    )
    write(tmp_path, "images.py", text.replace('"n": 1', '"n": Size().width'))
    found = plugins.interfaces(tmp_path)
    assert found["Images"].probe("m")[1]["n"] == 256


def test_files_with_an_underscore_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "_draft.py", "raise RuntimeError")
    write(tmp_path, "notes.txt", "raise RuntimeError")
    (tmp_path / "__pycache__").mkdir()
    assert set(plugins.interfaces(tmp_path)) == SHIPPED


# --- broken ones ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "def",
        "import a_module_that_is_not_there",
        "raise RuntimeError('not today')",
        "raise SystemExit(3)",
        "1 / 0",
        b"\xff\xfe not text",
        b"\0",
        "from manager.interfaces import Nothing",
    ],
)
def test_a_broken_file_is_named_in_the_log_and_the_others_load(
    tmp_path: Path, text: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a_broken.py", text)
    write(tmp_path, "images.py", IMAGES)
    with caplog.at_level(logging.ERROR):
        assert set(plugins.interfaces(tmp_path)) == SHIPPED | {"Images"}
    assert str(tmp_path / "a_broken.py") in caplog.text
    assert "images.py" not in caplog.text


@pytest.mark.parametrize(
    ("before", "after", "hint"),
    [
        ('    mode = "Images"\n', "", "mode ="),
        ('mode = "Images"', "mode = 3", "mode ="),
        ('mode = "Images"', 'mode = ""', "mode ="),
        ('    endpoints = ("/v1/images/generations",)\n', "", "endpoints ="),
        ('("/v1/images/generations",)', '("/v1/images/generations")', "endpoints ="),
        ('("/v1/images/generations",)', "()", "endpoints ="),
        ('("/v1/images/generations",)', '("/api/models",)', "/api/models"),
        ('("/v1/images/generations",)', '("/v1/<path:any>",)', "/v1/<path:any>"),
        ('("/v1/images/generations",)', '("/v1/images",  3)', "3"),
        ('("/v1/images/generations",)', '("/v1/图像",)', "/v1/图像"),
        ('("/v1/images/generations",)', '("/v1/a b",)', "/v1/a b"),
        ('("/v1/images/generations",)', '("/v1/a?b=c",)', "/v1/a?b=c"),
        ("def probe(", "def sonde(", "probe"),
        ("def probe(", "def __init__(self): 1 / 0\n    def probe(", "ZeroDivisionError"),
    ],
)
def test_a_plugin_with_a_mistake_is_left_out_with_a_log_line_of_what_it_needs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, before: str, after: str, hint: str
) -> None:
    assert before in IMAGES
    write(tmp_path, "images.py", IMAGES.replace(before, after))
    with caplog.at_level(logging.ERROR):
        assert set(plugins.interfaces(tmp_path)) == SHIPPED
    assert str(tmp_path / "images.py") in caplog.text
    assert "Images" in caplog.text
    assert hint in caplog.text


# --- devices ----------------------------------------------------------------------------


def names(folder: Path | None) -> list[str]:
    return [plugin.name for plugin in plugins.devices(folder)]


def test_the_shipped_devices_are_there_without_a_folder() -> None:
    assert names(None) == ["nvidia", "amd", "cpu"]


def test_a_users_devices_come_after_the_shipped_ones(tmp_path: Path) -> None:
    write(tmp_path, "b.py", CARDS)
    write(tmp_path, "a.py", CARDS.replace('"cards"', '"others"'))
    assert names(tmp_path) == ["nvidia", "amd", "cpu", "others", "cards"]
    assert plugins.devices(tmp_path)[-1].read(())[0].name == "Card"


def test_a_plugin_with_the_name_of_shipped_devices_takes_their_place(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", CARDS.replace('"cards"', '"nvidia"'))
    assert names(tmp_path) == ["nvidia", "amd", "cpu"]
    assert plugins.devices(tmp_path)[0].read(())[0].kind == "own"


def test_modes_and_devices_may_share_a_folder_or_names_of_files(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", IMAGES + CARDS)
    assert set(plugins.interfaces(tmp_path)) == SHIPPED | {"Images"}
    assert names(tmp_path) == ["nvidia", "amd", "cpu", "cards"]


@pytest.mark.parametrize(
    ("before", "after", "hint"),
    [
        ('    name = "cards"\n', "", "name ="),
        ('name = "cards"', "name = None", "name ="),
        ('name = "cards"', 'name = ""', "name ="),
        ("def read(", "def lese(", "read(self, pids)"),
        ("def read(", "def __init__(self, path): pass\n    def read(", "TypeError"),
        ("def read(", "def __init__(self): exit(3)\n    def read(", "SystemExit"),
        ("class Cards", "from here import nothing\nclass Cards", "ModuleNotFoundError"),
    ],
)
def test_a_device_plugin_with_a_mistake_is_left_out_with_a_log_line_of_what_it_needs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, before: str, after: str, hint: str
) -> None:
    assert before in CARDS
    write(tmp_path, "broken.py", CARDS.replace(before, after))
    write(tmp_path, "good.py", CARDS)
    with caplog.at_level(logging.ERROR):
        assert names(tmp_path) == ["nvidia", "amd", "cpu", "cards"]
    assert str(tmp_path / "broken.py") in caplog.text
    assert hint in caplog.text
