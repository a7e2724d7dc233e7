"""The program's own log: to the terminal and to a file that is rotated."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

from manager.storage import PROGRAM_LOG

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FILE_BYTES = 10 << 20
_FILES = 5
_LINES_KEPT = 1000


class BufferedLogHandler(logging.handlers.BufferingHandler):
    """Keeps lines back for a moment and writes them as one; warnings and worse at once.

    Two writes and a look at the file's size for every request would be a tenth of what a
    request costs. Whoever makes it calls ``flush`` about every second.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(_LINES_KEPT)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PROGRAM_LOG
        self._targets: list[logging.Handler] = [
            logging.StreamHandler(),
            logging.handlers.RotatingFileHandler(path, "a", _FILE_BYTES, _FILES, encoding="utf-8"),
        ]
        self.setFormatter(logging.Formatter(_FORMAT))

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or super().shouldFlush(record)

    def flush(self) -> None:
        self.acquire()
        try:
            records, self.buffer = self.buffer, []
        finally:
            self.release()
        if records:
            text = "\n".join(map(self.format, records))
            for target in self._targets:
                target.handle(logging.makeLogRecord({"msg": text}))


def configure(folder: Path, level: str) -> BufferedLogHandler:
    """Everything that is logged goes to the journal from here on. Raises OSError."""
    journal = BufferedLogHandler(folder)
    logging.basicConfig(handlers=[journal], force=True)
    logging.logProcesses = False  # a system call a line, and never shown
    logging.getLogger("manager").setLevel(level)
    logging.getLogger("routes").setLevel(level)
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    return journal
