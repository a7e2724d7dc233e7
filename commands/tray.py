"""`llm-manager tray`: an icon in the desktop's tray, a client of the API in a process of its own.

It is no part of the server's process: GTK ends the process that it is in when the desktop ends, and
pystray takes over the main thread and Ctrl-C. ``serve --tray`` starts it as its child and ends with
it only where its exit code is `QUIT`, which no other program can give.
"""

from __future__ import annotations

import argparse
import importlib
import locale
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import options
from commands.client import Client
from commands.open import show_pages
from commands.options import CommandError

QUIT = 10
"""The exit code of a child whose "Quit" was chosen."""

_ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 2.0
_STOP_SECONDS = 3.0
_INSTALL = "pip install -r requirements-tray.txt"
_ENGLISH = {
    "title": "LLM-Manager: {} of {} models ready",
    "open": "Open the pages",
    "refresh": "Refresh the devices",
    "start": "Start the auto-start models",
    "stop": "Stop all models",
    "quit": "Quit",
}
_CHINESE = {
    "title": "LLM-Manager {}/{} 个模型就绪",
    "open": "打开网页",
    "refresh": "刷新设备",
    "start": "启动自动启动的模型",
    "stop": "停止所有模型",
    "quit": "退出",
}


def add_to(commands: Any) -> None:
    """Adds the command to those of `add_subparsers`."""
    parser = options.command(
        commands, "tray", _run, "show an icon of the running program in the desktop's tray"
    )
    options.add_data_dir(parser)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)


def start(data_dir: Path) -> subprocess.Popen[bytes] | None:
    """The child process that shows the icon; what it has to say goes to our stderr."""
    command = [sys.executable, "-m", "commands", "tray", "--child", "--data-dir"]
    try:
        return subprocess.Popen(
            [*command, str(data_dir.absolute())],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # A Ctrl-C in the terminal is for the server, which ends the icon last.
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    except OSError as error:
        logging.getLogger(__name__).warning("no icon in the tray: %s", error)
        return None


def stop(icon: subprocess.Popen[bytes]) -> None:
    """Ends the child, if it still runs."""
    icon.terminate()
    try:
        icon.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        icon.kill()
        icon.wait()


def _run(arguments: argparse.Namespace) -> None:
    try:
        icon = Icon(load_pystray(), Client(arguments.data_dir), QUIT if arguments.child else 0)
    except CommandError as error:
        raise CommandError(f"no icon in the tray: {error}") from error
    icon.run()


class Icon:
    """The icon and its menu. It ends with the program that it is for."""

    def __init__(self, pystray: Any, client: Client, quit_code: int) -> None:
        """Raises CommandError where the desktop has no tray."""
        logger = logging.getLogger("pystray")
        logger.addHandler(logging.NullHandler())  # its tracebacks are of desktops that end
        logger.propagate = False
        self._client = client
        self._quit_code = quit_code
        self._is_x = pystray.Icon.__module__.endswith("_xorg")
        # There its title is Latin-1.
        self._words = _CHINESE if is_chinese() and not self._is_x else _ENGLISH
        self._icon = pystray.Icon("llm-manager", _image(), "LLM-Manager", self._menu(pystray))
        if self._is_x:
            _prepare_x(self._icon)

    def run(self) -> None:
        """Shows it; ends the process."""
        self._icon.run(self._follow)
        self._end(1, "the desktop has ended")

    def _menu(self, pystray: Any) -> Any:
        def item(name: str, act: Callable[[], None], **settings: Any) -> Any:
            return pystray.MenuItem(self._words[name], lambda: self._do(act), **settings)

        return pystray.Menu(
            item("open", lambda: show_pages(self._client), default=True),
            pystray.Menu.SEPARATOR,
            item("refresh", self._client.refresh_devices),
            item("start", self._client.start_auto_start),
            item("stop", self._client.stop_all),
            pystray.Menu.SEPARATOR,
            pystray.MenuItem(self._words["quit"], lambda: self._end(self._quit_code)),
        )

    def _do(self, act: Callable[[], None]) -> None:
        def run() -> None:
            try:
                act()
            except (CommandError, OSError) as error:
                print(f"{options.PROGRAM} tray: {error}", file=sys.stderr)

        # In a thread: the program may be busy, and some browsers return when they are closed.
        threading.Thread(target=run, name="tray-action", daemon=True).start()

    def _follow(self, icon: Any) -> None:
        """Shows in the title how many models are ready, in a thread that pystray starts."""
        icon.visible = True
        while self._client.is_running():
            try:
                states = [model["state"] for model in self._client.models()]
                self._set_title(self._words["title"].format(states.count("ready"), len(states)))
            except CommandError:
                pass  # it is busy, or is stopping
            if self._is_x and icon._systray_manager is None:
                self._end(1, "the desktop's tray has ended")
            time.sleep(_POLL_SECONDS)
        self._end(0)

    def _set_title(self, title: str) -> None:
        if self._is_x:  # its setter waits for the icon's loop, which may have missed the message
            self._icon._window.set_wm_name(title)
            self._icon._display.flush()
        else:
            self._icon.title = title

    def _end(self, code: int, reason: str = "") -> None:
        if reason:
            print(f"{options.PROGRAM}: no icon in the tray any more: {reason}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)  # pystray's threads may wait for a desktop that has ended


def load_pystray() -> Any:
    """Raises CommandError where it is not installed, or finds no desktop."""
    is_linux = sys.platform == "linux"
    if is_linux and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise CommandError("there is no desktop, neither DISPLAY nor WAYLAND_DISPLAY is set")
    try:
        return importlib.import_module("pystray")
    except Exception as error:  # each backend's libraries have their own
        if isinstance(error, ModuleNotFoundError) and error.name in ("pystray", "PIL"):
            raise CommandError(f"{error.name} is not installed: {_INSTALL}") from None
        raise CommandError(f"no desktop can be reached: {error}") from error


def _prepare_x(icon: Any) -> None:
    """What pystray 0.19 leaves out where it draws on X itself. Raises CommandError where the
    desktop has no tray: https://specifications.freedesktop.org/systemtray-spec"""
    from Xlib import X

    if icon._get_systray_manager() is None:
        raise CommandError("this desktop has none")
    # run() sets it after the other thread may have needed it.
    icon._thread = threading.current_thread()
    # Else it asks the tray for a place twice at once, and may lose both.
    icon._icon_valid = True
    # Without the last one, no click reaches it: https://github.com/moses-palmer/pystray/issues/151
    mask = X.ExposureMask | X.StructureNotifyMask | X.ButtonPressMask
    icon._window.change_attributes(event_mask=mask)
    icon.visible = True  # from this thread, as the other one might wait for ever


def _image() -> Any:
    """One address, and three models behind it. No pixel is transparent: not every tray can that."""
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (64, 64), "#1f5fbf")
    draw = ImageDraw.Draw(image)
    for y in (14, 32, 50):
        draw.line([(14, 32), (48, y)], "white", 4)
        draw.ellipse([(41, y - 7), (55, y + 7)], "white")
    draw.ellipse([(6, 23), (24, 41)], "white")
    return image


def is_chinese() -> bool:
    """By the variables that gettext reads, or where there are none by the system's setting."""
    names = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
    language = next(filter(None, map(os.environ.get, names)), None) or locale.getlocale()[0] or ""
    return language.startswith(("zh", "Chinese"))
