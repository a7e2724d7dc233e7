"""Who used a model last. Pure: time is an argument."""

from __future__ import annotations


class LastUse:
    """The last user, and when anybody else was. Times are seconds on any one clock."""

    def __init__(self) -> None:
        self._user: str | None = None
        self._at: float | None = None
        self._others_at: float | None = None

    def record(self, user: str, now: float) -> None:
        if user != self._user:
            self._user, self._others_at = user, self._at
        self._at = now

    def by_others(self, user: str) -> float | None:
        """When somebody else than this user was last using it; None for never."""
        return self._others_at if user == self._user else self._at
