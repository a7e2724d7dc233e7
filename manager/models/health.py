"""Whether a server that lives still serves. Pure: times are arguments, in seconds on one clock.

What happens at each stage of a check:

=======  =====================================  =======================  =========================
stage    a failure                              a success, or a byte of  requests
                                                an answer in flight
=======  =====================================  =======================  =========================
NONE     is counted; the third in a row, if     the count begins again   get leases
         the first was five seconds ago,
         begins a check: HEALTH
HEALTH   is counted                             ends the check           get leases, while its
                                                                         health is asked; then
                                                                         DRAIN
DRAIN    is counted; one more time-out has      ends the check           get leases, unless its
         requests queued                                                 health was bad or one has
                                                                         timed out: those are
                                                                         queued. With nothing in
                                                                         flight: REQUEST
REQUEST  cannot come, nothing is in flight      cannot come              are queued, while one
                                                                         token is asked for. Then
                                                                         NONE, or a restart
=======  =====================================  =======================  =========================

Health alone decides nothing: a busy server may say 503, and one with a broken device that it is
well. It decides whether DRAIN queues requests. With failures that came quickly from a server that
says it is well, one client's requests may be to blame: then others go on, and the token waits for
a moment without them. A server that is silent would never have such a moment under steady load.
So new requests are queued; those in flight have an answer, or end at ``upstream_timeout``.

Where the config wants no token (`probe: false`), REQUEST asks for the health once more, and that
decides.

Of a server that others start the health alone decides: a token would cost money, and nothing is
restarted. It is asked now and then without a failure as well.

A 4xx and a client that disconnected say nothing about the server: they neither count nor end a
series. Within five minutes of a restart there is no check: ``note`` says so until one is served.
"""

from __future__ import annotations

import enum

from manager.relay import Outcome

FAILURES = 3
MIN_SECONDS = 5.0  # from the first of a series to the one that begins a check
RESTART_SECONDS = 300.0  # from one restart to the next
TIMED_OUT = 504


class Stage(enum.Enum):
    """How far the check of a server is; see the table above."""

    NONE = "none"
    HEALTH = "health"
    DRAIN = "drain"
    REQUEST = "request"


class ServerHealth:
    """The failures of one model's server in a row, and the check that they lead to."""

    def __init__(self) -> None:
        self.stage = Stage.NONE
        self.note: str | None = None  # why there is no check of a server whose requests fail
        self._failures = 0
        self._first_at = 0.0
        self._last_failure = ""
        self._has_timed_out = False
        self._health_fault: str | None = None
        self._restarted_at: float | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether a success would change nothing."""
        return not self._failures and self.stage is Stage.NONE

    @property
    def holds_leases(self) -> bool:
        """Whether requests are queued for the sake of the check."""
        if self.stage is Stage.DRAIN:
            return self._has_timed_out or self._health_fault is not None
        return self.stage is Stage.REQUEST

    def is_due(self, in_flight: int) -> bool:
        """Whether ``begin`` has a question."""
        return self.stage is Stage.HEALTH or (self.stage is Stage.DRAIN and not in_flight)

    @property
    def failures(self) -> int:
        """In a row."""
        return self._failures

    def ask(self) -> None:
        """Begins a check of a server whose requests do not fail, or has none."""
        if self.stage is Stage.NONE:
            self.stage = Stage.HEALTH

    def served(self) -> None:
        """A request has succeeded, an answer has got bytes, or the server is another one."""
        self.stage = Stage.NONE
        self.note = None
        self._failures = 0
        self._has_timed_out = False
        self._health_fault = None

    def failed(self, failure: str, now: float, *, timed_out: bool = False) -> None:
        """A request has failed through no fault of its client."""
        if not self._failures:
            self._first_at = now
        self._failures += 1
        self._last_failure = failure
        self._has_timed_out = self._has_timed_out or timed_out
        if self._failures < FAILURES or now - self._first_at < MIN_SECONDS:
            return
        since = RESTART_SECONDS if self._restarted_at is None else now - self._restarted_at
        if self.stage is Stage.NONE and since >= RESTART_SECONDS:
            self.stage = Stage.HEALTH
            self.note = None
        elif self.stage is Stage.NONE and self.note is None:
            self.note = (
                f"{self._series(now)}; it was restarted for that {since:.0f} seconds ago, and is"
                f" not restarted more than once in {RESTART_SECONDS:.0f} seconds"
            )

    def begin(self, in_flight: int) -> Stage | None:
        """What is to be asked now, HEALTH or REQUEST; ``answered`` takes the answer."""
        if not self.is_due(in_flight):
            return None
        if self.stage is Stage.DRAIN:
            self.stage = Stage.REQUEST
        return self.stage

    def answered(
        self, asked: Stage, fault: str | None, now: float, *, is_remote: bool = False
    ) -> str | None:
        """Takes what is wrong with the answer, None where nothing is. Returns why the server is
        to be restarted, where it is; or why it counts as failed, where it ``is_remote``: others
        start it."""
        if self.stage is not asked:
            return None  # a request was served meanwhile
        if is_remote:
            series = self._series(now) if self._failures else None
            self.served()
            return fault and "it does not answer: " + "; ".join(filter(None, [series, fault]))
        if asked is Stage.HEALTH:
            self.stage, self._health_fault = Stage.DRAIN, fault
            return None
        reason = None
        if fault is not None:
            self._restarted_at = now
            faults = [self._series(now), self._health_fault, fault]
            reason = "it no longer served: " + "; ".join(filter(None, faults))
        self.served()
        return reason

    def _series(self, now: float) -> str:
        return (
            f"{self._failures} requests in a row failed within"
            f" {now - self._first_at:.0f} seconds, the last with: {self._last_failure}"
        )


def failure_of(outcome: Outcome) -> str | None:
    """Why a request that came to this counts as a failure of the server; None where it does not.
    An error inside of an answer counts by its own status."""
    if outcome.status < 500:
        return None
    return outcome.error or f"its server answered {outcome.status}"
