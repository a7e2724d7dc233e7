"""Ports for the models' servers: free ones, each for one run at a time."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from manager.models import ports
from manager.models.ports import NoFreePort, Ports


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Another program's server on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def a_free_range(monkeypatch: pytest.MonkeyPatch, length: int) -> range:
    """Has the choice fall on a few ports, all of them free, that nobody else chooses from."""
    for start in range(20_000, 21_000 - length, length):
        numbers = range(start, start + length)
        if all(ports.is_free(port) for port in numbers):
            monkeypatch.setattr(ports, "_RANGE", numbers)
            return numbers
    raise AssertionError("this machine has no ports left")


# --- choosing ---------------------------------------------------------------------------


def test_a_chosen_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", Ports().choose(set()))):
        pass


def test_each_run_gets_a_port_of_its_own_until_it_is_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = a_free_range(monkeypatch, 3)
    choice = Ports()
    assert {choice.choose(set()) for _ in range(3)} == set(numbers)
    with pytest.raises(NoFreePort):
        choice.choose(set())
    choice.release(numbers[1])
    assert choice.choose(set()) == numbers[1]


def test_ports_that_the_config_gives_to_models_are_not_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = a_free_range(monkeypatch, 3)
    assert Ports().choose({numbers[0], numbers[1]}) == numbers[2]
    with pytest.raises(NoFreePort):
        Ports().choose(set(numbers))


def test_a_port_that_an_adopted_run_has_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = a_free_range(monkeypatch, 2)
    choice = Ports()
    choice.claim(numbers[0])
    assert choice.choose(set()) == numbers[1]


def test_a_port_that_another_program_holds_is_not_chosen_until_that_closes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = a_free_range(monkeypatch, 2)
    with socket.create_server(("127.0.0.1", numbers[0])):
        choice = Ports()
        assert choice.choose(set()) == numbers[1]
    assert choice.choose(set()) == numbers[0]


def test_many_starts_at_once_never_choose_the_same_port() -> None:
    choice = Ports()
    with ThreadPoolExecutor(16) as threads:
        chosen = list(threads.map(lambda _: choice.choose(set()), range(100)))
    assert len(set(chosen)) == 100


def test_releasing_a_port_that_was_never_taken_is_no_error() -> None:
    Ports().release(1)


# --- free or not ------------------------------------------------------------------------


def test_a_port_is_not_free_while_a_server_listens_there(listener: socket.socket) -> None:
    port = port_of(listener)
    assert not ports.is_free(port)
    listener.close()
    assert ports.is_free(port)


def test_a_server_on_every_address_counts_too() -> None:
    with socket.create_server(("", 0)) as everywhere:
        assert not ports.is_free(port_of(everywhere))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_a_server_on_every_address_of_both_kinds_counts_too() -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as everywhere:
        assert not ports.is_free(port_of(everywhere))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("address", ["::1", "::"])
def test_a_server_that_only_speaks_ipv6_counts_too(address: str) -> None:
    with socket.create_server((address, 0), family=socket.AF_INET6) as only_ipv6:
        assert not ports.is_free(port_of(only_ipv6))
        assert f"pid {os.getpid()}" in ports.holder(port_of(only_ipv6))


def test_a_port_is_free_on_a_system_without_ipv6(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket

    def refuse_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, kind)

    port = port_of(listener)
    listener.close()
    monkeypatch.setattr(socket, "socket", refuse_ipv6)
    assert ports.is_free(port)


def test_a_port_whose_last_connections_are_still_being_closed_is_free(
    listener: socket.socket,
) -> None:
    port = port_of(listener)
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, _ = listener.accept()
        served.close()  # first, so that it is the server's end that lingers
        assert client.recv(1) == b""
    listener.close()
    assert ports.is_free(port)


# --- which one it is --------------------------------------------------------------------


def test_a_server_is_known_by_its_listener_as_long_as_that_is_there(
    listener: socket.socket,
) -> None:
    port = port_of(listener)
    known = ports.listeners(port)
    assert len(known) == 1
    with socket.create_connection(("127.0.0.1", port)):
        assert ports.listeners(port) == known
    listener.close()
    assert ports.listeners(port) == frozenset()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is known by its process only")
def test_another_server_on_the_port_is_another_one_though_it_is_of_the_same_process(
    listener: socket.socket,
) -> None:
    port = port_of(listener)
    known = ports.listeners(port)
    listener.close()
    with socket.create_server(("127.0.0.1", port)):
        assert ports.listeners(port)
        assert ports.listeners(port).isdisjoint(known)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_a_server_that_only_speaks_ipv6_is_known_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as only_ipv6:
        assert ports.listeners(port_of(only_ipv6))
        assert ports.accepts(port_of(only_ipv6))


def test_where_sockets_are_not_shown_the_process_stands_for_them(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "boot_id", lambda: None)
    created = psutil.Process().create_time()
    assert ports.listeners(port_of(listener)) == {f"{os.getpid()}/{created}"}


def test_a_port_takes_connections_or_not(listener: socket.socket) -> None:
    port = port_of(listener)
    assert ports.accepts(port)
    listener.close()
    assert not ports.accepts(port)


@pytest.mark.skipif(sys.platform != "linux", reason="others give no such port")
def test_a_connection_that_reaches_itself_is_none(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by chance where nobody listens and the system gives a connection the port that it is
    for."""
    port = port_of(listener)
    listener.close()

    def from_that_port(address: tuple[str, int], timeout: float) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(timeout)
        sock.bind(address)
        sock.connect(address)
        return sock

    monkeypatch.setattr(socket, "create_connection", from_that_port)
    with pytest.raises(ConnectionRefusedError):
        ports.connect("127.0.0.1", port, 5)


# --- who it is --------------------------------------------------------------------------


def test_the_holder_of_a_port_is_named_with_its_pid(listener: socket.socket) -> None:
    holder = ports.holder(port_of(listener))
    assert f"pid {os.getpid()}" in holder
    assert psutil.Process().name() in holder


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_a_holder_that_listens_on_ipv6_is_named_as_well() -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as everywhere:
        assert f"pid {os.getpid()}" in ports.holder(port_of(everywhere))


def test_a_client_of_the_port_is_not_its_holder(listener: socket.socket) -> None:
    port = port_of(listener)
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, _ = listener.accept()
        with served:
            listener.close()
            assert ports.holder(port) == "another program"
            assert ports.holder(port_of(client)) == "another program"


def test_a_holder_that_this_user_may_not_see_is_another_program(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kind: str) -> None:
        raise psutil.AccessDenied(msg=kind)

    monkeypatch.setattr(psutil, "net_connections", refused)
    assert ports.holder(port_of(listener)) == "another program"
