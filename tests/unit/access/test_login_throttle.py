"""Wrong passwords delay further attempts from their address."""

from __future__ import annotations

import math

from manager.access.login_throttle import LoginThrottle
from manager.errors import ApiError


class Client:
    """A client that tries passwords, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.checked = 0
        self.throttle = LoginThrottle(lambda: self.now)

    def attempt(self, address: str = "203.0.113.9", right: bool = False) -> float:
        """0, or the seconds that it has to wait."""

        def check() -> bool:
            self.checked += 1
            return right

        try:
            assert self.throttle.attempt(address, check) is right
        except ApiError as error:
            return error.retry_after or math.nan
        return 0.0


def test_wrong_passwords_cost_ever_more_time() -> None:
    client = Client()
    assert [client.attempt() for _ in range(3)] == [0, 0, 0]
    waits = []
    for _ in range(12):
        wait = client.attempt()
        waits.append(wait)
        client.now += wait
        assert client.attempt() == 0
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert client.checked == 3 + 12  # what has to wait is not even checked


def test_the_delay_is_of_one_address_and_ends_with_a_success_or_an_hour() -> None:
    client = Client()
    for _ in range(3):
        client.attempt()
    assert client.attempt() > 0
    assert client.attempt("203.0.113.10", right=True) == 0
    client.now += 1
    assert client.attempt(right=True) == 0
    assert [client.attempt() for _ in range(3)] == [0, 0, 0]
    assert client.attempt() > 0
    client.now += 3601
    assert [client.attempt() for _ in range(3)] == [0, 0, 0]


def test_a_network_of_ipv6_is_one_address() -> None:
    client = Client()
    for number in range(3):
        client.attempt(f"2001:db8::{number:x}")
    assert client.attempt("2001:db8::ffff") > 0
    assert client.attempt("2001:db8:0:1::1") == 0


def test_very_many_addresses_do_not_fill_the_memory() -> None:
    client = Client()
    for number in range(10_050):
        client.attempt(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(client.throttle._attempts) == 10_000
