"""The icon in the tray: its menu, its title, and how it ends; the desktop is played."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from commands import tray
from commands.options import CommandError
from commands.tray import QUIT, Icon, load_pystray


class Ended(Exception):
    """The process would have ended, with this code."""


class Program:
    """A client that keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.done = threading.Event()
        self.lives = 1
        self.states = ["ready", "stopped"]

    def __getattr__(self, name: str) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.done.set()

        return call

    def is_running(self) -> bool:
        self.lives -= 1
        return self.lives >= 0

    def models(self) -> list[dict[str, Any]]:
        if not self.states:
            raise CommandError("it does not answer")
        return [{"state": state} for state in self.states]


class Pystray:
    """Shows nothing, and lets a test choose from the menu."""

    def __init__(self) -> None:
        self.items: dict[str, Callable[[], None]] = {}
        self.titles: list[str] = []
        self.Menu = type("Menu", (), {"SEPARATOR": None, "__init__": lambda _self, *_items: None})

    def MenuItem(self, text: str, act: Callable[[], None], **_settings: object) -> None:
        self.items[text] = act

    @property
    def Icon(self) -> type:
        titles = self.titles

        class Icon:
            def __init__(self, *_arguments: object) -> None:
                pass

            def run(self, setup: Callable[[Any], None]) -> None:
                setup(self)

            def __setattr__(self, name: str, value: Any) -> None:
                if name == "title":
                    titles.append(value)

        return Icon


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> Pystray:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    monkeypatch.setattr(tray, "_image", lambda: None)
    monkeypatch.setattr(tray, "is_chinese", lambda: False)
    return Pystray()


@pytest.mark.parametrize(
    ("item", "call"),
    [
        ("Open the pages", "show_pages"),
        ("Refresh the devices", "refresh_devices"),
        ("Start the auto-start models", "start_auto_start"),
        ("Stop all models", "stop_all"),
    ],
)
def test_every_entry_of_the_menu_is_a_call_of_the_program(
    desktop: Pystray, monkeypatch: pytest.MonkeyPatch, item: str, call: str
) -> None:
    program = Program()
    monkeypatch.setattr(tray, "show_pages", lambda client: client.show_pages())
    Icon(desktop, program, 0)
    desktop.items[item]()
    assert program.done.wait(10)
    assert program.calls == [call]


@pytest.mark.parametrize("code", [0, QUIT])
def test_quit_ends_the_icon_and_asks_nothing_of_the_program(desktop: Pystray, code: int) -> None:
    program = Program()
    Icon(desktop, program, code)
    with pytest.raises(Ended, match=f"^{code}$"):
        desktop.items["Quit"]()
    assert program.calls == []


def test_its_title_says_how_many_models_are_ready_until_the_program_ends(desktop: Pystray) -> None:
    with pytest.raises(Ended, match=r"^0$"):
        Icon(desktop, Program(), QUIT).run()
    assert desktop.titles == ["LLM-Manager: 1 of 2 models ready"]


def test_a_program_that_does_not_answer_at_once_keeps_its_icon(desktop: Pystray) -> None:
    program = Program()
    program.lives, program.states = 2, []
    with pytest.raises(Ended, match=r"^0$"):
        Icon(desktop, program, QUIT).run()
    assert (desktop.titles, program.lives) == ([], -1)


def test_a_desktop_that_ends_is_a_line_and_never_the_programs_end(
    desktop: Pystray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Icon, "_follow", lambda _self, _icon: None)
    with pytest.raises(Ended, match=r"^1$"):
        Icon(desktop, Program(), QUIT).run()
    assert capsys.readouterr().err == (
        "llm-manager: no icon in the tray any more: the desktop has ended\n"
    )


def test_it_speaks_chinese_where_the_system_does(
    desktop: Pystray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tray, "is_chinese", lambda: True)
    Icon(desktop, Program(), 0)
    assert "打开网页" in desktop.items


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a desktop")
def test_without_a_desktop_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CommandError, match="there is no desktop, neither DISPLAY nor WAYLAND"):
        load_pystray()


def test_without_pystray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setitem(sys.modules, "pystray", None)
    with pytest.raises(CommandError, match=r"requirements-tray\.txt"):
        load_pystray()


def test_a_desktop_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> None:
        raise OSError('Bad display name ":99"')  # each backend has its own errors

    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(CommandError, match='no desktop can be reached: Bad display name ":99"'):
        load_pystray()
