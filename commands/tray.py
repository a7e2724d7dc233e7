"""The icon in the desktop's tray: the program's side of it, and the process that shows it.

It has a process of its own. GTK ends the process that it is in when the desktop ends, and the
models are not to end with somebody's session; and pystray wants the main thread, waits without a
bound for a display that hangs, and takes Ctrl-C over.

The two talk in lines. The process says what was chosen (``refresh``, ``start``, ``stop``,
``quit``), asks for the models' ``count`` each second, and has a ``note``, a ``warning`` or the
``end``'s reason for the log. It is answered with ``READY TOTAL``. When the program closes its
side, it ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import locale
import logging
import os
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the icon's process needs none of it
    from manager.devices import Monitor
    from manager.models.fleet import Fleet

log = logging.getLogger("manager.tray")

_STOP_SECONDS = 3.0
_PAUSE = 1.0  # seconds between two looks at the models, or for a tray
_INSTALL = "pip install -r requirements-tray.txt"
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1", "": "127.0.0.1"}

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


def pages(host: str, port: int) -> str:
    """Where a browser on this machine finds the program that listens at ``host``."""
    host = _ANY_HOST.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class Tray:
    """Runs the icon's process. The thread ``tray`` does what is chosen there.

    ``quit`` begins the program's end. Where no icon can be shown, the log says why; that is all.
    """

    def __init__(
        self, address: str, fleet: Fleet, monitor: Monitor, quit: Callable[[], None]
    ) -> None:
        self._address = address
        self._actions = {
            "count": self._tell_count,
            "refresh": monitor.refresh,
            "start": fleet.start_auto_start,
            "stop": fleet.stop_all,
            "quit": quit,
        }
        self._fleet = fleet
        self._lock = threading.Lock()  # for writing to the process, and closing that
        self._stopping = False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="tray", daemon=True)

    def start(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, __file__, self._address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                # A Ctrl-C in the terminal is for the server, which ends the icon last.
                start_new_session=os.name == "posix",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            _say_none(str(error))
            return
        self._thread.start()

    def stop(self) -> None:
        """Takes the icon away and waits for that, for some seconds at most."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with self._lock, contextlib.suppress(OSError):  # what was not read any more
            self._stopping = True
            process.stdin.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the tray's icon (pid %d) does not end and is killed", process.pid)
            process.kill()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        why = None
        with process.stdout:
            for line in process.stdout:
                word, _, text = line.rstrip("\n").partition(" ")
                if word == "note":
                    log.info("the tray: %s", text)
                elif word == "warning":
                    log.warning("the tray: %s", text)
                elif word == "end":
                    why = text
                else:
                    self._do(word)
        code = process.wait()
        if not self._stopping:
            _say_none(why or f"its process ended with {code}")

    def _do(self, word: str) -> None:
        if word != "count":
            log.info("the tray: %s", word)
        try:
            self._actions[word]()
        except Exception:
            # A fault of one choice must not end the thread, and with it all others.
            log.exception("the tray's %r failed", word)

    def _tell_count(self) -> None:
        states = [model.state.value for model in self._fleet.models()]
        assert self._process is not None
        assert self._process.stdin is not None
        with self._lock:
            if self._stopping:
                return
            try:
                self._process.stdin.write(f"{states.count('ready')} {len(states)}\n")
                self._process.stdin.flush()
            except OSError:
                log.debug("the tray's icon has ended and needs no title")


def _say_none(why: str) -> None:
    log.warning("no icon in the tray: %s. LLM-Manager serves on without it.", why)


class _NoIcon(Exception):
    """No icon can be shown; the message says why, and what to do."""


class _Desktop:
    """The icon's process: shows it until the program closes its side of the pipes."""

    def __init__(self, address: str, pipe: int) -> None:
        self._address = address
        self._pipe = pipe
        self._words = _CHINESE if _is_chinese() else _ENGLISH
        self._count = ["0", "0"]
        self._icon: Any = None
        self._ended = threading.Event()

    def run(self) -> None:
        """Raises _NoIcon, and what the desktop's libraries raise."""
        threading.Thread(target=self._listen, daemon=True).start()
        pystray = _load()
        backend = pystray.Icon.__module__.rpartition("_")[2]
        logger = logging.getLogger("pystray")
        logger.addHandler(_Notes(self.tell))
        logger.propagate = False
        if backend == "xorg":
            self._words = _ENGLISH  # its title is Latin-1
            self.tell("note", "a click opens the pages; how to get a menu is in README.md")
        if not _has_tray(backend):
            self.tell("warning", "this desktop has none; the icon comes when there is one")
        # The others wait for one themselves.
        while backend == "xorg" and not _has_tray(backend):
            self._ended.wait(_PAUSE)
        icon = pystray.Icon("llm-manager", _image(), self._title(), self._menu(pystray))
        if backend == "xorg":
            _mend(icon)
            icon.visible = True
            icon.run(self._follow_on_x)
        else:
            self._icon = icon
            icon.run(self._follow)
        if not self._ended.is_set():
            raise _NoIcon("the desktop has ended it")

    def tell(self, word: str, text: str = "") -> None:
        with contextlib.suppress(BrokenPipeError):  # _listen sees that the program has gone
            os.write(self._pipe, " ".join([word, *text.split()]).encode() + b"\n")

    def _menu(self, pystray: Any) -> Any:
        def chosen(word: str) -> Any:
            return pystray.MenuItem(self._words[word], lambda: self.tell(word))

        return pystray.Menu(
            pystray.MenuItem(self._words["open"], self._open, default=True),
            pystray.Menu.SEPARATOR,
            chosen("refresh"),
            chosen("start"),
            chosen("stop"),
            pystray.Menu.SEPARATOR,
            chosen("quit"),
        )

    def _follow(self, icon: Any) -> None:
        """Keeps the title right, in a thread that pystray starts with the icon's loop."""
        icon.visible = True
        while not self._ended.is_set():
            self.tell("count")
            icon.title = self._title()
            self._ended.wait(_PAUSE)
        icon.stop()

    def _follow_on_x(self, icon: Any) -> None:
        """The same where pystray draws on X itself. There its methods wait without a bound for the
        icon's loop, which may have ended; so what they do is done here."""
        from Xlib.error import ConnectionClosedError

        try:
            while icon._systray_manager is not None:
                self.tell("count")
                icon._window.set_wm_name(self._title())
                icon._display.flush()
                self._ended.wait(_PAUSE)
        except ConnectionClosedError:
            return  # the loop, too, has seen that
        # The tray has ended. pystray looks only once for another, too early: begin anew.
        os.dup2(self._pipe, 1)
        os.execv(sys.executable, [sys.executable, *sys.argv])

    def _listen(self) -> None:
        with open(0, encoding="utf-8", closefd=False) as answers:
            for line in answers:
                self._count = line.split()
        self._ended.set()
        if self._icon is None:  # nothing that would have to be cleaned up
            os._exit(0)

    def _title(self) -> str:
        return self._words["title"].format(*self._count)

    def _open(self) -> None:
        # Some browsers are waited for until they are closed.
        threading.Thread(target=self._browse, daemon=True).start()

    def _browse(self) -> None:
        if not webbrowser.open(self._address):
            self.tell("warning", f"no browser was found; the pages are at {self._address}")


class _Notes(logging.Handler):
    """What pystray logs, without the tracebacks: a tray that ends is none of our faults."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._tell("note", f"{record.getMessage()} {error!r}" if error else record.getMessage())


def _load() -> Any:
    """pystray, with the first of its backends that works here. Raises _NoIcon."""
    wanted = os.environ.get("PYSTRAY_BACKEND")
    if sys.platform == "linux":
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise _NoIcon("there is no desktop, neither DISPLAY nor WAYLAND_DISPLAY is set")
        names = [wanted] if wanted else ["appindicator", "gtk", "xorg"]
    else:
        names = [wanted or {"darwin": "darwin", "win32": "win32"}.get(sys.platform, "xorg")]
    if missing := [name for name in ("pystray", "PIL") if importlib.util.find_spec(name) is None]:
        raise _NoIcon(f"{' and '.join(missing)} cannot be imported; {_INSTALL}")
    faults = []
    for name in names:
        # Its own search ends at the first library that is there in part.
        os.environ["PYSTRAY_BACKEND"] = name
        try:
            return importlib.import_module("pystray")
        except Exception as error:  # noqa: BLE001 - each backend's libraries have their own
            faults.append(f"{name}: {error}")
    raise _NoIcon(f"no desktop can be reached ({'; '.join(faults)})")


def _has_tray(backend: str) -> bool:
    """Whether there is a tray now, as far as is known of the desktop."""
    if backend not in ("appindicator", "gtk", "xorg"):
        return True
    return (backend == "appindicator" and _has_tray_on_bus()) or (
        bool(os.environ.get("DISPLAY")) and _has_tray_on_x()
    )


def _has_tray_on_x() -> bool:
    """https://specifications.freedesktop.org/systemtray-spec"""
    from Xlib import X
    from Xlib.display import Display

    with contextlib.closing(Display()) as display:
        selection = display.intern_atom(f"_NET_SYSTEM_TRAY_S{display.get_default_screen()}")
        return bool(display.get_selection_owner(selection) != X.NONE)


def _has_tray_on_bus() -> bool:
    """https://www.freedesktop.org/wiki/Specifications/StatusNotifierItem"""
    from gi.repository import Gio, GLib

    bus = Gio.bus_get_sync(Gio.BusType.SESSION, None)
    name = "org.freedesktop.DBus"
    wanted = GLib.Variant("(s)", ("org.kde.StatusNotifierWatcher",))
    flags = Gio.DBusCallFlags.NONE
    answer = bus.call_sync(
        name, "/org/freedesktop/DBus", name, "NameHasOwner", wanted, None, flags, 5000, None
    )
    return bool(answer.unpack()[0])


def _mend(icon: Any) -> None:
    """What pystray 0.19 leaves out where it draws on X itself."""
    from Xlib import X

    # run() sets it when the other thread may already have asked for it.
    icon._thread = threading.current_thread()
    # Else it asks the tray for a place twice at once, and may lose both. What it looks like is
    # drawn when it is told its size.
    icon._icon_valid = True
    # Without the last one, no click reaches it: https://github.com/moses-palmer/pystray/issues/151
    mask = X.ExposureMask | X.StructureNotifyMask | X.ButtonPressMask
    icon._window.change_attributes(event_mask=mask)


def _image() -> Any:
    """One door, and three models behind it. No pixel is transparent: not every tray can that."""
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (64, 64), "#1f5fbf")
    draw = ImageDraw.Draw(image)
    for y in (14, 32, 50):
        draw.line([(14, 32), (48, y)], "white", 4)
        draw.ellipse([(41, y - 7), (55, y + 7)], "white")
    draw.ellipse([(6, 23), (24, 41)], "white")
    return image


def _is_chinese() -> bool:
    """By the variables that gettext looks at, or where there are none by the system's setting."""
    names = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
    language = next(filter(None, map(os.environ.get, names)), None) or locale.getlocale()[0] or ""
    return language.startswith(("zh", "Chinese"))


def _main(address: str) -> None:
    pipe = os.dup(1)  # which no browser inherits
    os.dup2(2, 1)  # what libraries print is nothing for the program
    desktop = _Desktop(address, pipe)
    try:
        desktop.run()
    except _NoIcon as error:
        desktop.tell("end", str(error))
    except Exception as error:  # noqa: BLE001 - each backend's libraries have their own
        desktop.tell("end", f"the desktop failed: {error}")
    # pystray's threads may wait for a desktop that is gone.
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1])
