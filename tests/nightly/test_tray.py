"""The icon of `serve --tray` on a real X server, in a real tray, clicked as a user does."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.fixtures import Launch
from tests.support.program import MARK, Program, eventually, fake, frozen

INSTALL = "apt-get install xvfb trayer xdotool; pip install -r requirements-tray.txt"
INSTALL_MENU = "apt-get install python3-gi gir1.2-ayatanaappindicator3-0.1 dbus"
START, STOP, QUIT = 2, 3, 4  # in the menu, counted from above
BLUE = (0x1F, 0x5F, 0xBF)


class Desktop:
    """An X server with nothing on it but a tray in its upper left corner, and a browser that
    keeps what it is asked for."""

    def __init__(self, folder: Path) -> None:
        read, write = os.pipe()
        command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24"]
        self._began: list[subprocess.Popen[str]] = []
        self.env: dict[str, str] = {}
        self.server = self.run(*command, "-nolisten", "tcp", "-noreset", pass_fds=[write])
        os.close(write)
        with os.fdopen(read) as numbers:
            self.display = f":{int(numbers.readline())}"
        self._opened = folder / "opened"
        browser = folder / "browser"
        browser.write_text(f'#!/bin/sh\necho "$1" >>"{self._opened}"\n')
        browser.chmod(0o755)
        self.env = {
            "DISPLAY": self.display,
            "WAYLAND_DISPLAY": "",
            "LANGUAGE": "en",
            "BROWSER": str(browser),
            "PYSTRAY_BACKEND": "xorg",
        }
        place = ["--edge", "top", "--align", "left", "--widthtype", "request", "--height", "32"]
        self.tray = self.run("trayer", *place)
        eventually(lambda: self.windows("--name", "^panel$"))

    def run(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process: subprocess.Popen[str] = subprocess.Popen(
            command, env={**os.environ, **self.env}, **{**streams, **options}
        )
        self._began.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self._began):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def do(self, *command: str) -> str:
        """What ``xdotool`` says."""
        environment = {**os.environ, **self.env}
        done = subprocess.run(
            ["xdotool", *command], env=environment, capture_output=True, text=True, timeout=20
        )
        return done.stdout

    def windows(self, *wanted: str) -> set[str]:
        return set(self.do("search", "--onlyvisible", *wanted).split())

    def shows(self, title: str) -> bool:
        """Whether the icon is in the tray, and has that title."""
        names = [self.do("getwindowname", each).strip() for each in self.windows("--name", "")]
        return self.is_drawn() and title in names

    def is_drawn(self) -> bool:
        """Whether a corner of the icon is there, where the tray has its first one."""
        from Xlib import X
        from Xlib.display import Display

        with contextlib.closing(Display(self.display)) as display:
            image = display.screen().root.get_image(4, 4, 1, 1, X.ZPixmap, 0xFFFFFFFF)
        blue, green, red = image.data[:3]
        return max(abs(a - b) for a, b in zip((red, green, blue), BLUE, strict=True)) < 16

    def click(self) -> None:
        self.do("mousemove", "16", "16", "click", "1")

    def choose(self, item: int) -> None:
        """Opens the icon's menu and takes the item, counted from above."""
        before = self.windows("--name", "")
        self.click()
        eventually(lambda: self.windows("--name", "") > before)
        self.do("key", *["Down"] * (item + 1), "Return")
        eventually(lambda: self.windows("--name", "") <= before)

    def opened(self) -> list[str]:
        """What the browser was asked for."""
        return self._opened.read_text().split() if self._opened.exists() else []


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Desktop]:
    programs = [shutil.which(name) for name in ("Xvfb", "trayer", "xdotool")]
    if None in programs or not importlib.util.find_spec("pystray"):
        pytest.skip(f"needs Xvfb, trayer, xdotool and pystray: {INSTALL}")
    desktop = Desktop(tmp_path)
    yield desktop
    desktop.close()


@pytest.fixture
def with_menu(desktop: Desktop, tmp_path: Path) -> Desktop:
    """A desktop for GTK, with the system's PyGObject, which no package index has built."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip(f"needs dbus-daemon: {INSTALL_MENU}")
    bus = desktop.run(
        *("dbus-daemon", "--session", "--nofork", "--print-address"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert bus.stdout is not None
    desktop.env["DBUS_SESSION_BUS_ADDRESS"] = bus.stdout.readline().strip()
    folder = tmp_path / "system"
    folder.mkdir()
    (folder / "gi").symlink_to("/usr/lib/python3/dist-packages/gi")
    desktop.env.update(PYTHONPATH=str(folder), PYSTRAY_BACKEND="appindicator")
    probe = "import gi; gi.require_version('AyatanaAppIndicator3', '0.1'); import gi.repository.Gtk"
    environment = {**os.environ, **desktop.env}
    if subprocess.run(
        [sys.executable, "-c", probe], env=environment, capture_output=True
    ).returncode:
        pytest.skip(f"needs PyGObject for this Python, and AppIndicator: {INSTALL_MENU}")
    return desktop


def with_tray(launch: Launch, desktop: Desktop, models: dict[str, Any] | None = None) -> Program:
    return launch(models or {}, arguments=["--tray"], env=desktop.env)


def icons(program: Program) -> list[psutil.Process]:
    """The living processes that show an icon of the program."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_ours = process.environ().get(MARK) == program.mark
            is_icon = "tray" in process.cmdline()
            if is_ours and is_icon and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_it_shows_how_many_models_are_ready_and_opens_the_pages(
    launch: Launch, desktop: Desktop
) -> None:
    models = {"Here": {**fake(), "auto_start": True}, "There": fake()}
    program = with_tray(launch, desktop, models)
    eventually(lambda: desktop.shows("LLM-Manager: 1 of 2 models ready"))
    program.command("There", "start")
    eventually(lambda: desktop.shows("LLM-Manager: 2 of 2 models ready"))
    desktop.click()
    page = program.data / "open.html"
    eventually(lambda: desktop.opened() == [page.as_uri()])
    assert f"{program.url}/login/link#" in page.read_text()
    program.end()
    assert icons(program) == []
    assert not desktop.is_drawn()


@pytest.mark.parametrize("end", ["icon", "tray", "server"])
def test_the_program_and_its_models_outlive_the_icon(
    launch: Launch, desktop: Desktop, end: str
) -> None:
    program = with_tray(launch, desktop, {"Model": {**fake(), "auto_start": True}})
    program.becomes("Model", state="ready")
    eventually(desktop.is_drawn)
    [icon] = icons(program)
    {"icon": icon, "tray": desktop.tray, "server": desktop.server}[end].kill()
    eventually(lambda: icons(program) == [])
    assert program.model("Model")["state"] == "ready"
    assert ("no icon in the tray any more" in program.output) == (end != "icon")


def test_an_icon_that_hangs_does_not_hold_the_end_up(launch: Launch, desktop: Desktop) -> None:
    program = with_tray(launch, desktop)
    eventually(desktop.is_drawn)
    [icon] = icons(program)
    with frozen(icon.pid):
        program.end()
        assert icons(program) == []


def test_no_icon_is_left_of_a_program_that_was_killed(launch: Launch, desktop: Desktop) -> None:
    program = with_tray(launch, desktop)
    eventually(desktop.is_drawn)
    program.kill()
    eventually(lambda: icons(program) == [])


def test_its_menu_starts_and_stops_models_and_quits(launch: Launch, with_menu: Desktop) -> None:
    models = {"Wanted": {**fake(), "auto_start": True}, "Other": fake()}
    program = with_tray(launch, with_menu, models)
    program.becomes("Wanted", state="ready")
    eventually(with_menu.is_drawn)
    with_menu.choose(STOP)
    program.becomes("Wanted", state="stopped")
    with_menu.choose(START)
    program.becomes("Wanted", state="ready")
    assert program.model("Other")["state"] == "stopped"
    with_menu.choose(QUIT)
    program.ends_well()
    assert icons(program) == []


def test_without_a_desktop_it_says_so_in_one_line_and_serves_on(launch: Launch) -> None:
    program = launch({}, arguments=["--tray"], env={"DISPLAY": "", "WAYLAND_DISPLAY": ""})
    line = "llm-manager: no icon in the tray: there is no desktop, neither DISPLAY nor"
    eventually(lambda: line in program.output)
    assert program.output.count("the tray") == 1
    assert program.get("/health").json() == {"status": "ok"}
