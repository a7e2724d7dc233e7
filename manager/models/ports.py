"""Ports on loopback for the models' servers: which are free, who holds one."""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading

import psutil

# Below the ranges that systems hand out for outgoing connections (Linux: 32768 and up), so
# that no connection of ours can take a port between its choice and the server's start.
_RANGE = range(21000, 31000)


class NoFreePort(Exception):
    """Every port that could be chosen is taken."""


class Ports:
    """Chosen ports, each for one run at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()

    def choose(self, avoid: set[int]) -> int:
        """A free port that is no other run's and not in ``avoid``. Release it when the run has
        ended. Raises NoFreePort."""
        # From a random place: another manager on this machine may choose at the same time, and
        # finds the same ports free while the models are still loading.
        first = random.randrange(len(_RANGE))
        for port in itertools.chain(_RANGE[first:], _RANGE[:first]):
            with self._lock:
                if port in self._taken or port in avoid:
                    continue
                self._taken.add(port)
            if is_free(port):
                return port
            self.release(port)
        raise NoFreePort(f"no port from {_RANGE.start} to {_RANGE.stop - 1} is free")

    def claim(self, port: int) -> None:
        """Counts a port as taken that a run has already."""
        with self._lock:
            self._taken.add(port)

    def release(self, port: int) -> None:
        with self._lock:
            self._taken.discard(port)


def is_free(port: int) -> bool:
    """Whether a server could listen there, on loopback and on every address."""
    for address in ("127.0.0.1", ""):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            if os.name == "posix":
                # As servers do: a port whose last connections are still being closed is free.
                # (On Windows the option would let us take a port that is in use.)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((address, port))
            except OSError:
                return False
    return True


def listener(port: int) -> int | None:
    """The process that listens there; None where nobody does or it cannot be known."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,):
            pid: int | None = connection.pid
            return pid
    return None


def holder(port: int) -> str:
    """Which process listens there, as a person would name it."""
    pid = listener(port)
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})" if pid else "another program"
    except psutil.Error:
        return "another program"
