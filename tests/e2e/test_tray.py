"""The icon of ``--tray``: on a real X server, in a real tray, clicked as a user does."""

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

from commands.tray import pages
from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.program import MARK, Program, env_of, eventually, fake, frozen

INSTALL = "apt-get install xvfb trayer xdotool; pip install -r requirements-tray.txt"
INSTALL_MENU = "apt-get install python3-gi gir1.2-ayatanaappindicator3-0.1 dbus"
LEFT = 1  # the button of a mouse
OPEN, REFRESH, START, STOP, QUIT = range(5)  # the menu from above
BLUE = (0x1F, 0x5F, 0xBF)


class Desktop:
    """An X server with nothing on it; a tray, a session bus and a browser where they are wanted."""

    def __init__(self, folder: Path) -> None:
        read, write = os.pipe()
        command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24"]
        self.server = start([*command, "-nolisten", "tcp", "-noreset"], pass_fds=[write])
        os.close(write)
        with os.fdopen(read) as numbers:
            self.display = f":{int(numbers.readline())}"
        self.env = {"DISPLAY": self.display, "WAYLAND_DISPLAY": "", "LANGUAGE": "en"}
        self._began = [self.server]
        self._opened = folder / "opened"
        browser = folder / "browser"
        browser.write_text(f'#!/bin/sh\necho "$1" >>"{self._opened}"\n')
        browser.chmod(0o755)
        self.env["BROWSER"] = str(browser)

    def run(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        process = start(command, env={**os.environ, **self.env}, **options)
        self._began.append(process)
        return process

    def tray(self) -> subprocess.Popen[str]:
        """A tray in the corner above on the left."""
        place = ["--edge", "top", "--align", "left", "--widthtype", "request", "--height", "32"]
        process = self.run("trayer", *place)
        eventually(lambda: self.windows("--name", "^panel$"))
        return process

    def bus(self) -> None:
        options = ["--session", "--nofork", "--print-address"]
        process = self.run("dbus-daemon", *options, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self.env["DBUS_SESSION_BUS_ADDRESS"] = process.stdout.readline().strip()

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

    def titles(self) -> list[str]:
        return [self.do("getwindowname", window).strip() for window in self.windows("--name", "")]

    def shows(self, title: str) -> bool:
        """Whether the icon is in the tray, and has that title."""
        return self.is_drawn() and title in self.titles()

    def is_drawn(self) -> bool:
        """Whether a corner of the icon is there, where the tray has its first one."""
        from Xlib import X
        from Xlib.display import Display

        with contextlib.closing(Display(self.display)) as display:
            image = display.screen().root.get_image(4, 4, 1, 1, X.ZPixmap, 0xFFFFFFFF)
        blue, green, red = image.data[:3]
        return max(abs(a - b) for a, b in zip((red, green, blue), BLUE, strict=True)) < 16

    def click(self, button: int = 1) -> None:
        self.do("mousemove", "16", "16", "click", str(button))

    def choose(self, item: int, button: int) -> None:
        """Opens the icon's menu and takes the item, counted from above."""
        before = self.windows("--class", "tray.py")
        self.click(button)
        eventually(lambda: self.windows("--class", "tray.py") > before)
        self.do("key", *["Down"] * (item + 1), "Return")
        eventually(lambda: self.windows("--class", "tray.py") <= before)

    def opened(self) -> list[str]:
        """What the browser was asked for."""
        return self._opened.read_text().split() if self._opened.exists() else []


def start(command: Any, **options: Any) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process: subprocess.Popen[str] = subprocess.Popen(command, **{**streams, **options})
    return process


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
    desktop.bus()
    folder = tmp_path / "system"
    folder.mkdir()
    (folder / "gi").symlink_to("/usr/lib/python3/dist-packages/gi")
    desktop.env["PYTHONPATH"] = str(folder)
    probe = "import gi; gi.require_version('AyatanaAppIndicator3', '0.1'); import gi.repository.Gtk"
    environment = {**os.environ, **desktop.env}
    if subprocess.run(
        [sys.executable, "-c", probe], env=environment, capture_output=True
    ).returncode:
        pytest.skip(f"needs PyGObject for this Python, and AppIndicator: {INSTALL_MENU}")
    return desktop


def with_tray(
    launch: Launch, env: dict[str, str], models: dict[str, Any] | None = None, **settings: Any
) -> Program:
    return launch(models or {}, arguments=["--tray"], env=env, **settings)


def icons(program: Program) -> list[psutil.Process]:
    """The living processes that show an icon of the program."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_ours = process.environ().get(MARK) == program.mark
            is_icon = any(word.endswith("tray.py") for word in process.cmdline())
            if is_ours and is_icon and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def warnings(program: Program) -> list[str]:
    """What it has said of the tray, beyond what is well."""
    lines = [line.split("WARNING manager.tray: ") for line in program.output.splitlines()]
    return [line[1] for line in lines if len(line) == 2]


def serves_on(program: Program) -> bool:
    return bool(program.get("/health").json() == {"status": "ok"})


# --- the icon ---------------------------------------------------------------------------


def test_a_click_on_the_icon_opens_the_pages(launch: Launch, desktop: Desktop) -> None:
    desktop.tray()
    program = with_tray(launch, {**desktop.env, "PYSTRAY_BACKEND": "xorg"})
    eventually(desktop.is_drawn)
    desktop.click()
    eventually(lambda: desktop.opened() == [f"{program.url}/"])
    desktop.click()
    eventually(lambda: desktop.opened() == [f"{program.url}/"] * 2)
    program.end()
    assert icons(program) == []
    assert not desktop.is_drawn()


def test_its_title_says_how_many_models_are_ready(launch: Launch, desktop: Desktop) -> None:
    desktop.tray()
    env = {**desktop.env, "PYSTRAY_BACKEND": "xorg"}
    program = with_tray(launch, env, {"Here": {**fake(), "auto_start": True}, "There": fake()})
    eventually(lambda: desktop.shows("LLM-Manager: 1 of 2 models ready"))
    program.command("There", "start")
    eventually(lambda: desktop.shows("LLM-Manager: 2 of 2 models ready"))


def test_it_speaks_chinese_where_the_system_does(launch: Launch, with_menu: Desktop) -> None:
    with_menu.tray()
    env = {
        **with_menu.env,
        "PYSTRAY_BACKEND": "appindicator",
        "LANGUAGE": "",
        "LC_ALL": "zh_CN.UTF-8",
    }
    with_tray(launch, env, {"Model": fake()})
    eventually(lambda: with_menu.shows("LLM-Manager 0/1 个模型就绪"))


def test_an_icon_waits_for_a_tray_and_finds_the_next_one(launch: Launch, desktop: Desktop) -> None:
    program = with_tray(launch, {**desktop.env, "PYSTRAY_BACKEND": "xorg"})
    told = "the tray: this desktop has none; the icon comes when there is one"
    eventually(lambda: warnings(program) == [told])
    tray = desktop.tray()
    eventually(desktop.is_drawn)
    tray.kill()
    eventually(lambda: warnings(program) == [told] * 2)
    desktop.tray()
    eventually(desktop.is_drawn)
    desktop.click()
    eventually(lambda: desktop.opened() == [f"{program.url}/"])


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080/"),
        ("0.0.0.0", "http://127.0.0.1:8080/"),
        ("::", "http://127.0.0.1:8080/"),
        ("::1", "http://[::1]:8080/"),
        ("192.168.1.5", "http://192.168.1.5:8080/"),
        ("localhost", "http://localhost:8080/"),
    ],
)
def test_the_pages_are_opened_where_a_browser_finds_them(host: str, address: str) -> None:
    assert pages(host, 8080) == address


# --- its menu ---------------------------------------------------------------------------


def test_every_entry_of_the_menu_does_what_it_says(
    launch: Launch, with_menu: Desktop, tmp_path: Path
) -> None:
    cards = Cards(tmp_path / "machine", [card("NVIDIA GeForce RTX 4060", 8188)])
    with_menu.tray()
    env = {**with_menu.env, **env_of(cards), "PYSTRAY_BACKEND": "appindicator"}
    env["PYTHONPATH"] = os.pathsep.join([with_menu.env["PYTHONPATH"], env_of(cards)["PYTHONPATH"]])
    models = {"Wanted": {**fake(), "auto_start": True}, "Other": fake()}
    program = with_tray(launch, env, models)
    program.becomes("Wanted", state="ready")
    program.command("Other", "start")
    eventually(with_menu.is_drawn)
    with_menu.choose(STOP, LEFT)
    program.becomes("Wanted", state="stopped")
    program.becomes("Other", state="stopped")
    with_menu.choose(START, LEFT)
    program.becomes("Wanted", state="ready")
    assert program.model("Other")["state"] == "stopped"
    with_menu.choose(OPEN, LEFT)
    eventually(lambda: with_menu.opened() == [f"{program.url}/"])
    calls = cards.calls
    with_menu.choose(REFRESH, LEFT)
    eventually(lambda: cards.calls > calls)
    with_menu.choose(QUIT, LEFT)
    program.ends_well()
    assert icons(program) == []
    assert warnings(program) == []


# --- without a desktop ------------------------------------------------------------------


def test_without_a_desktop_it_says_so_in_one_line_and_serves_on(launch: Launch) -> None:
    program = with_tray(launch, {"DISPLAY": "", "WAYLAND_DISPLAY": ""})
    [said] = eventually(lambda: warnings(program))
    assert said == (
        "no icon in the tray: there is no desktop, neither DISPLAY nor WAYLAND_DISPLAY is set."
        " LLM-Manager serves on without it."
    )
    assert serves_on(program)


def test_without_pystray_it_says_how_to_get_it_and_serves_on(
    launch: Launch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pystray'] = None\n")
    program = with_tray(launch, {"DISPLAY": ":99", "PYTHONPATH": str(tmp_path)})
    [said] = eventually(lambda: warnings(program))
    assert "pystray cannot be imported; pip install -r requirements-tray.txt" in said
    assert serves_on(program)


@pytest.mark.skipif(not importlib.util.find_spec("pystray"), reason=f"needs pystray: {INSTALL}")
def test_a_desktop_out_of_reach_is_named_and_it_serves_on(launch: Launch) -> None:
    program = with_tray(launch, {"DISPLAY": "unix:98765", "PYSTRAY_BACKEND": "xorg"})
    [said] = eventually(lambda: warnings(program))
    assert "no desktop can be reached" in said
    assert "unix:98765" in said
    assert serves_on(program)


def test_the_models_outlive_the_desktop(launch: Launch, with_menu: Desktop) -> None:
    desktop = with_menu
    desktop.tray()
    models = {"Model": {**fake(), "auto_start": True}}
    # GTK ends the process that it is in together with the desktop.
    program = with_tray(launch, {**desktop.env, "PYSTRAY_BACKEND": "gtk"}, models)
    program.becomes("Model", state="ready")
    eventually(desktop.is_drawn)
    desktop.server.kill()
    [said] = eventually(lambda: warnings(program))
    assert said.startswith("no icon in the tray: ")
    assert program.model("Model")["state"] == "ready"
    eventually(lambda: icons(program) == [])


# --- the end ----------------------------------------------------------------------------


def test_an_icon_that_hangs_does_not_hold_the_end_up(launch: Launch, desktop: Desktop) -> None:
    desktop.tray()
    program = with_tray(launch, {**desktop.env, "PYSTRAY_BACKEND": "xorg"})
    eventually(desktop.is_drawn)
    [icon] = icons(program)
    with frozen(icon.pid):
        program.end()
        assert icons(program) == []


def test_the_program_may_end_while_the_icon_is_still_coming(
    launch: Launch, desktop: Desktop
) -> None:
    program = with_tray(launch, {**desktop.env, "PYSTRAY_BACKEND": "xorg"})
    program.end()
    assert icons(program) == []
    assert warnings(program) == []


def test_no_icon_is_left_of_a_program_that_was_killed(launch: Launch, desktop: Desktop) -> None:
    desktop.tray()
    program = with_tray(launch, {**desktop.env, "PYSTRAY_BACKEND": "xorg"})
    eventually(desktop.is_drawn)
    program.kill()
    eventually(lambda: icons(program) == [])


def test_an_icon_that_was_killed_is_told_and_it_serves_on(launch: Launch, desktop: Desktop) -> None:
    desktop.tray()
    program = with_tray(launch, {**desktop.env, "PYSTRAY_BACKEND": "xorg"})
    eventually(desktop.is_drawn)
    [icon] = icons(program)
    icon.kill()
    [said] = eventually(lambda: warnings(program))
    assert "its process ended with -9" in said
    assert serves_on(program)
