"""Which devices a scheme's names mean.

Pure: no clock, no I/O, no locks.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

_MAX_ASSIGNMENTS = 500
_TOKEN = re.compile(r"[a-z0-9]+|[^\W_a-z0-9]+")
# Behind a name, these make it another product: RTX 4060 Ti, RTX 4070 SUPER, RX 7900 XT.
_VARIANTS = frozenset(("ti", "super", "xt", "xtx", "gre", "d"))


def matches(wanted: str, name: str) -> bool:
    """Whether a device's name is the wanted one: its words in it, side by side, and no word
    behind them that makes it another product. ``v100`` is ``Tesla V100-SXM2-16GB``."""
    want, have = _TOKEN.findall(wanted.casefold()), _TOKEN.findall(name.casefold())
    for at in range(len(have) - len(want) + 1):
        if have[at : at + len(want)] == want:
            behind = have[at + len(want) : at + len(want) + 1]
            if not _VARIANTS.intersection(behind):
                return bool(want)
    return False


def assignments(required: Sequence[str], devices: Mapping[str, str]) -> Sequence[Mapping[str, str]]:
    """Every way to assign each required name a device of its own: device id → the name, as it is
    first spelled in ``required``.

    ``devices`` is id → the device's name. Of two orders of equal devices only one is given.
    """
    return _assignments(tuple(required), tuple(devices.items()))


@functools.lru_cache(maxsize=1024)  # asked again and again, for all who wait
def _assignments(
    required: tuple[str, ...], devices: tuple[tuple[str, str], ...]
) -> tuple[Mapping[str, str], ...]:
    spelled = {_folded(name): name for name in reversed(required)}
    fitting = sorted((_folded(name), _found(name, dict(devices))) for name in required)

    def assign(at: int, taken: dict[str, str]) -> Iterator[dict[str, str]]:
        if at == len(fitting):
            yield dict(taken)
            return
        name, ids = fitting[at]
        if at and fitting[at - 1][0] == name:
            last = next(reversed(taken))
            ids = ids[ids.index(last) + 1 :]
        for device_id in ids:
            if device_id not in taken:
                taken[device_id] = spelled[name]
                yield from assign(at + 1, taken)
                del taken[device_id]

    return tuple(itertools.islice(assign(0, {}), _MAX_ASSIGNMENTS))


def missing_devices(required: Sequence[str], devices: Mapping[str, str]) -> str:
    """Why there is no assignment, for a person."""
    for name in required:
        wanted = sum(_folded(other) == _folded(name) for other in required)
        found = len(_found(name, devices))
        if not found:
            return f"{name} is not online"
        if found < wanted:
            return f"it needs {wanted} of {name}, and {found} is online"
    return "some of its devices would have to be the same device"


def _found(name: str, devices: Mapping[str, str]) -> list[str]:
    return [device_id for device_id, full_name in devices.items() if matches(name, full_name)]


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())
