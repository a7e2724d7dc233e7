"""Ports on loopback for the models' servers: which are free, who holds one."""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from manager.clock import boot_id

HOSTS = ("127.0.0.1", "::1")
"""Where a model's server may listen, in the order in which it is looked for there."""
CONNECT_SECONDS = 1.0

# Below the ranges that systems hand out for outgoing connections (Linux: 32768 and up), so
# that no connection of ours can take a port between its choice and the server's start.
_RANGE = range(21000, 31000)
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING = "0A"


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
    """Whether a server could listen there, on loopback and on every address, of both kinds."""
    return all(
        _can_bind(family, address, port)
        for family, address in (
            (socket.AF_INET, "127.0.0.1"),
            (socket.AF_INET, ""),
            (socket.AF_INET6, "::1"),
            (socket.AF_INET6, "::"),
        )
    )


def _can_bind(family: socket.AddressFamily, address: str, port: int) -> bool:
    is_ipv6 = family == socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            if is_ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if os.name == "posix":
                # As servers do: a port whose last connections are still being closed is free.
                # (On Windows the option would let us take a port that is in use.)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
    except OSError as error:
        # Many systems have no IPv6, and then nobody listens there.
        return is_ipv6 and error.errno not in (errno.EADDRINUSE, errno.EACCES)
    return True


def accepts(port: int) -> bool:
    """Whether something on loopback takes connections there."""
    for host in HOSTS:
        try:
            connect(host, port, CONNECT_SECONDS)
        except OSError:
            continue
        return True
    return False


def connect(host: str, port: int, seconds: float) -> None:
    """Makes a connection and closes it. Raises OSError where nothing takes it in that time."""
    with socket.create_connection((host, port), seconds) as sock:
        # Where nobody listens on a port that systems hand out for outgoing connections, the
        # connection may be given that very port, and then it has reached itself.
        if sock.getsockname() == sock.getpeername():
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def listeners(port: int) -> frozenset[str]:
    """What listens there, each by a name that no other listener ever has, be it of the same program
    or after a restart of the system. Empty where nobody does, or where it cannot be known. Raises
    OSError where the system is out of descriptors."""
    boot = boot_id()
    if boot is None:
        return _listening_processes(port)  # no Linux: the process has to do
    return frozenset(
        f"{boot}/{inode}" for table in _TABLES for inode in _listening_inodes(table, port)
    )


def _listening_processes(port: int) -> frozenset[str]:
    names = set()
    for pid in _listening_pids(port):
        try:
            names.add(f"{pid}/{psutil.Process(pid).create_time()}")
        except psutil.Error:
            continue  # it has ended meanwhile
    return frozenset(names)


def _listening_inodes(table: Path, port: int) -> Iterator[str]:
    """The listening sockets of a table of /proc/net, whoever they belong to: unlike the processes
    that have them open, every user can see them."""
    try:
        with table.open() as lines:
            next(lines)
            for line in lines:
                fields = line.split()
                if fields[3] != _LISTENING:
                    return  # behind the listening ones there are only connections: thousands
                if int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]
    except FileNotFoundError:
        return  # no IPv6


def listener(port: int) -> int | None:
    """The process that listens there; None where nobody does or it cannot be known."""
    return next(iter(_listening_pids(port)), None)


def _listening_pids(port: int) -> list[int]:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return []
    return [
        connection.pid
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr[1:2] == (port,)
        and connection.pid
    ]


def holder(port: int) -> str:
    """Which process listens there, as a person would name it."""
    pid = listener(port)
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})" if pid else "another program"
    except psutil.Error:
        return "another program"
