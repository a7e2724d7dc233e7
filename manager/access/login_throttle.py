"""Delays for who guesses passwords."""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from manager.errors import ApiError

_FREE = 3  # wrong ones before the first delay
_FIRST_DELAY = 1.0  # seconds; doubles with each further one
_LONGEST_DELAY = 300.0
_FORGOTTEN = 3600.0  # seconds after the last wrong one
_MOST_ADDRESSES = 10_000
# To check a password takes 32 MB and some 60 ms of a core: more at once would only hold up models.
_AT_ONCE = 2
_LONGEST_WAIT = 5.0


@dataclass
class _Tries:
    failures: int
    again_at: float
    last: float


class LoginThrottle:
    """Lets an address try passwords, the slower the more of them were wrong."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._tries: OrderedDict[str, _Tries] = OrderedDict()
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def attempt(self, address: str, check: Callable[[], bool]) -> bool:
        """What ``check`` says. Raises ApiError 429 where the address has to wait before it may try
        again, and 503 where too many try at the same moment."""
        origin = _origin(address)
        with self._lock:
            now = self._monotonic()
            tries = self._tries.get(origin)
            if tries is not None and now - tries.last > _FORGOTTEN:
                del self._tries[origin]
                tries = None
            if tries is not None and now < tries.again_at:
                wait = tries.again_at - now
                raise ApiError(
                    429,
                    "too_many_attempts",
                    f"Too many wrong passwords from {address}: try again in {wait:.0f} s",
                    retry_after=wait,
                )
            # Counted before it is checked: else many at once would all be the first.
            self._count(origin, tries, now)
        if not self._places.acquire(timeout=_LONGEST_WAIT):
            raise ApiError(503, "busy", "Too many sign-ins at once; try again", retry_after=1)
        try:
            is_right = check()
        finally:
            self._places.release()
        if is_right:
            with self._lock:
                self._tries.pop(origin, None)
        return is_right

    def _count(self, origin: str, tries: _Tries | None, now: float) -> None:
        failures = 1 if tries is None else tries.failures + 1
        beyond = failures - _FREE
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(beyond, 20)) if beyond >= 0 else 0.0
        self._tries[origin] = _Tries(failures, now + delay, now)
        self._tries.move_to_end(origin)
        if len(self._tries) > _MOST_ADDRESSES:
            self._tries.popitem(last=False)


def _origin(address: str) -> str:
    """Who has one address of IPv6 mostly has 2**64 of them."""
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
