"""Delays for clients that guess passwords."""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from manager.errors import ApiError

_FREE_FAILURES = 3
_FIRST_DELAY_SECONDS = 1.0  # doubles with each further failure
_MAX_DELAY_SECONDS = 300.0
_RESET_SECONDS = 3600.0  # after the last failure
_MAX_ADDRESSES = 10_000
# Checking a password takes 32 MB and some 60 ms of a core: more at once would only slow models.
_MAX_CHECKS = 2
_MAX_WAIT_SECONDS = 5.0


@dataclass
class _Attempts:
    failures: int
    allowed_at: float
    last: float


class LoginThrottle:
    """Limits an address's attempts, the more the more of them failed."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._attempts: OrderedDict[str, _Attempts] = OrderedDict()
        self._checks = threading.BoundedSemaphore(_MAX_CHECKS)

    def attempt(self, address: str, check: Callable[[], bool]) -> bool:
        """The result of ``check``. Raises ApiError 429 where the address has to wait before the
        next attempt, and 503 where too many are checked at the same moment."""
        origin = _origin(address)
        with self._lock:
            now = self._monotonic()
            attempts = self._attempts.get(origin)
            if attempts is not None and now - attempts.last > _RESET_SECONDS:
                del self._attempts[origin]
                attempts = None
            if attempts is not None and now < attempts.allowed_at:
                wait = attempts.allowed_at - now
                raise ApiError(
                    429,
                    "too_many_attempts",
                    f"Too many wrong passwords from {address}: try again in {wait:.0f} s",
                    retry_after=wait,
                )
            # Counted before it is checked: else many at once would all be the first.
            self._count(origin, attempts, now)
        if not self._checks.acquire(timeout=_MAX_WAIT_SECONDS):
            raise ApiError(503, "busy", "Too many sign-ins at once; try again", retry_after=1)
        try:
            is_right = check()
        finally:
            self._checks.release()
        if is_right:
            with self._lock:
                self._attempts.pop(origin, None)
        return is_right

    def _count(self, origin: str, attempts: _Attempts | None, now: float) -> None:
        failures = 1 if attempts is None else attempts.failures + 1
        beyond = failures - _FREE_FAILURES
        delay = (
            min(_MAX_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(beyond, 20))
            if beyond >= 0
            else 0.0
        )
        self._attempts[origin] = _Attempts(failures, now + delay, now)
        self._attempts.move_to_end(origin)
        if len(self._attempts) > _MAX_ADDRESSES:
            self._attempts.popitem(last=False)


def _origin(address: str) -> str:
    """The address that is counted: a client with one IPv6 address mostly has 2**64 of them."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = getattr(found, "ipv4_mapped", None)
    if mapped is not None:
        return str(mapped)
    if found.version == 6:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address
