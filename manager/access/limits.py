"""What keys may do at a time: requests and tokens a minute, tasks at once, a budget.

A minute is any sixty seconds, not one of the clock's: never more than a limit in any of them. What
a request takes is known when it has ended. Until then an estimate of it is held, so that many at
once cannot take together what is left for one; a request that was let in is always finished.

All of it is in memory, and read anew from usage.db when the program starts: rows are the truth.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path

from manager.access.api_keys import PERIODS, Budget, Key
from manager.billing import calendar
from manager.billing.pricing import decimal_text
from manager.clock import Clock
from manager.errors import ApiError
from manager.storage.maintenance import billed_seq
from manager.storage.store import reading
from manager.tokens import TokenUsage, prompt_estimate
from manager.usage.reports import Reports

log = logging.getLogger(__name__)

MINUTE = 60.0
_USUAL_COMPLETION = 500  # tokens, until a model has shown what is usual
_MOST_SPANS = 4  # of a period that are remembered
_WEIGHT = 0.1  # of the last answer in what is usual
_SOON = 1.0  # seconds, for who waits for others to end
_LONGEST_MS = 3_600_000  # that a request takes which a start looks for; nearly all take less

_STARTS = {"day": calendar.day_start_ms, "month": calendar.month_start_ms}
_ENDS = {"day": calendar.next_day_ms, "month": calendar.next_month_ms}

Headers = list[tuple[str, str]]

Cost = Callable[[str, int, TokenUsage], int]
"""What so many tokens of a model cost that were asked for at a moment (epoch ms), in billionths."""


class Window:
    """Amounts of the last sixty seconds, oldest first."""

    def __init__(self) -> None:
        self.total = 0
        self._entries: deque[tuple[float, int]] = deque()

    def add(self, at: float, amount: int) -> None:
        self._entries.append((at, amount))
        self.total += amount

    def drop_old(self, now: float) -> None:
        while self._entries and self._entries[0][0] <= now - MINUTE:
            self.total -= self._entries.popleft()[1]

    def seconds_until(self, below: int, now: float) -> float:
        """How long until the total is below this, as it is now."""
        total = self.total
        if total < below:
            return 0.0
        for at, amount in self._entries:
            total -= amount
            if total < below:
                return max(0.0, at + MINUTE - now)
        return self.seconds_until_empty(now)

    def seconds_until_empty(self, now: float) -> float:
        return max(0.0, self._entries[-1][0] + MINUTE - now) if self._entries else 0.0


@dataclass
class _Span:
    """What was spent in a day or a month, whose bounds are epoch ms."""

    start_ms: int
    end_ms: int
    spent: int = 0


@dataclass
class _Use:
    """What a key does at this moment."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    in_flight: int = 0
    held_tokens: int = 0
    held_cost: int = 0
    # By the period; the newest last. Not only that of now: a clock that was set back comes again
    # to one that it had left.
    spans: dict[str, list[_Span]] = field(default_factory=lambda: defaultdict(list))
    # Told by the requests' threads when they end, taken with the lock held by whoever looks next.
    ended: deque[_End] = field(default_factory=deque)


_End = tuple[float, int, int, int, int | None, int]
"""A request that has ended: when, when it was asked for, the tokens and the cost that were held for
it, and those that it took, if it took something."""


@dataclass(frozen=True)
class KeyUsage:
    """A key's use: of the last sixty seconds, and what was spent today and this month."""

    requests: int
    tokens: int
    in_flight: int
    spent: dict[str, int]


class Permit:
    """A request of a key that was let in; ``headers`` are for its answer. ``end`` when it has
    ended, however it has."""

    __slots__ = ("_cost", "_is_open", "_limits", "_tokens", "_use", "headers")

    def __init__(
        self, limits: KeyLimits, use: _Use, tokens: int, cost: int, headers: Headers
    ) -> None:
        self.headers = headers
        self._limits = limits
        self._use = use
        self._tokens = tokens
        self._cost = cost
        self._is_open = True

    def end(
        self, model: str, began_ms: int, usage: TokenUsage | None, is_billed: bool = True
    ) -> None:
        """``began_ms`` is when it was asked for, epoch ms; more than once changes nothing."""
        if self._is_open:
            self._is_open = False
            held = (self._tokens, self._cost)
            end = self._limits.ended(model, began_ms, held, usage, is_billed)
            # Without the lock, which all requests of all keys want when they begin.
            self._use.ended.append(end)


class KeyLimits:
    """Counts for all keys, under one lock that is taken once a request, for microseconds: with
    many threads each time is a turn at the interpreter's lock given away."""

    def __init__(self, clock: Clock, zone: Callable[[], tzinfo], cost: Cost) -> None:
        self._clock = clock
        self._zone = zone
        self._cost = cost
        self._lock = threading.Lock()
        self._uses: defaultdict[str, _Use] = defaultdict(_Use)
        self._usual: dict[str, float] = {}  # completion tokens, by model

    def admit(self, key: Key, model: str, size: int, max_tokens: int | None) -> Permit:
        """Lets a request in, counts it and holds what it may take: ``size`` is that of its body in
        bytes, ``max_tokens`` what it says itself. Raises ApiError 429, and then it does not
        count."""
        prompt = prompt_estimate(size)
        if max_tokens is None:
            max_tokens = round(self._usual.get(model, _USUAL_COMPLETION))
        tokens, cost = prompt + max_tokens, 0
        if key.budget is not None:
            cost = self._cost_of(model, self._clock.wall_ms(), TokenUsage(prompt, 0, max_tokens))
        with self._lock:
            use, now = self._use(key.name)
            self._refuse(key, use, now)
            use.in_flight += 1
            use.requests.add(now, 1)
            use.held_tokens += tokens
            use.held_cost += cost
            left = _left(key, use, now)
        return Permit(self, use, tokens, cost, _headers(key, left))

    def ended(
        self,
        model: str,
        began_ms: int,
        held: tuple[int, int],
        usage: TokenUsage | None,
        is_billed: bool,
    ) -> _End:
        """What is to be counted of a request that has ended; without the lock."""
        now = self._clock.monotonic()
        if usage is None:
            return now, began_ms, *held, None, 0
        cost = self._cost_of(model, began_ms, usage) if is_billed else 0
        # Of two at once one may be left out of what is usual, which is an estimate anyhow.
        usual = self._usual.get(model, float(usage.completion_tokens))
        self._usual[model] = usual + _WEIGHT * (usage.completion_tokens - usual)
        tokens = usage.prompt_tokens + usage.completion_tokens
        return now, began_ms, *held, tokens, cost

    def apply_adjustment(self, key: str, at_ms: int, amount: int) -> None:
        """Counts an adjustment of a key's bill for that moment (epoch ms, billionths)."""
        with self._lock:
            use, _ = self._use(key)
            self._spend(use, at_ms, amount)

    def view(self, key: str) -> KeyUsage:
        """What the key does now."""
        with self._lock:
            use, _ = self._use(key)
            spent = {period: self._span(use, period).spent for period in PERIODS}
            return KeyUsage(use.requests.total, use.tokens.total, use.in_flight, spent)

    def headers(self, key: Key) -> Headers:
        """OpenAI's ``x-ratelimit-*`` as they are now."""
        with self._lock:
            use, now = self._use(key.name)
            left = _left(key, use, now)
        return _headers(key, left)

    def load(self, path: Path, reports: Reports) -> None:
        """Counts what is in usage.db of the last minute, of today and of this month. Before the
        first request. Raises sqlite3.Error."""
        zone, now_ms = self._zone(), self._clock.wall_ms()
        minute_ms = now_ms - round(MINUTE * 1000)
        spent = {
            period: reports.summary(
                _STARTS[period](now_ms, zone), _ENDS[period](now_ms, zone), zone, group="key"
            ).groups
            for period in PERIODS
        }
        with reading(path) as connection:
            unpriced = connection.execute(
                "SELECT key, model, started_ms, prompt_tokens, cached_tokens, completion_tokens"
                " FROM requests WHERE seq > ? AND cost IS NULL AND key != ''",
                (billed_seq(connection),),
            ).fetchall()
            # A row's id begins with when it was asked for; one that has just ended may have been
            # asked for long before.
            recent = connection.execute(
                "SELECT key, started_ms, ended_ms, prompt_tokens + completion_tokens, leased_ms"
                " FROM requests WHERE id >= ? AND ended_ms > ? AND key != '' ORDER BY ended_ms",
                (max(0, now_ms - _LONGEST_MS).to_bytes(6, "big"), minute_ms),
            ).fetchall()
        costs = [
            (key, started_ms, self._cost_of(model, started_ms, TokenUsage(*tokens)))
            for key, model, started_ms, *tokens in unpriced
        ]
        with self._lock:
            for period, groups in spent.items():
                for key, totals in groups.items():
                    use, _ = self._use(key)
                    self._span(use, period).spent = totals.cost_tokens + totals.adjustments
            for key, started_ms, cost in costs:
                self._spend(self._use(key)[0], started_ms, cost)
            for key, _, ended_ms, tokens, _ in recent:
                self._use(key)[0].tokens.add(self._monotonic(ended_ms, now_ms), tokens)
            for key, started_ms, _, _, leased_ms in sorted(recent, key=lambda row: row[1]):
                if started_ms > minute_ms and leased_ms is not None:  # else it was not let in
                    self._use(key)[0].requests.add(self._monotonic(started_ms, now_ms), 1)

    # --- with the lock held -----------------------------------------------------------------------

    def _use(self, key: str) -> tuple[_Use, float]:
        use, now = self._uses[key], self._clock.monotonic()
        while use.ended:
            at, began_ms, held_tokens, held_cost, tokens, cost = use.ended.popleft()
            use.in_flight -= 1
            use.held_tokens -= held_tokens
            use.held_cost -= held_cost
            if tokens is not None:
                use.tokens.add(at, tokens)
                self._spend(use, began_ms, cost)
        use.requests.drop_old(now)
        use.tokens.drop_old(now)
        return use, now

    def _refuse(self, key: Key, use: _Use, now: float) -> None:
        limit = key.requests_per_minute
        if limit is not None and use.requests.total >= limit:
            wait = use.requests.seconds_until(limit, now)
            raise _rate_limited(key, f"{limit} requests a minute", wait)
        limit = key.tokens_per_minute
        if limit is not None and use.tokens.total + use.held_tokens >= limit:
            wait = use.tokens.seconds_until(limit, now) or _SOON
            raise _rate_limited(key, f"{limit} tokens a minute", wait)
        if key.budget is not None:
            self._refuse_cost(key, key.budget, use)
        limit = key.max_concurrency
        if limit is not None and use.in_flight >= limit:
            raise _rate_limited(key, f"{limit} requests at once", _SOON)

    def _refuse_cost(self, key: Key, budget: Budget, use: _Use) -> None:
        span = self._span(use, budget.period)
        if span.spent + use.held_cost < budget.amount:
            return
        limit = f"its budget of {decimal_text(budget.amount)} a {budget.period}"
        if span.spent < budget.amount:
            why = f"what is under way may use up {limit}; try again in a moment"
            wait = _SOON
        else:
            why = f"{limit} is used up until {calendar.iso(span.end_ms)}"
            wait = max(_SOON, (span.end_ms - self._clock.wall_ms()) / 1000)
        raise ApiError(
            429, "budget_exceeded", f"The key {key.name!r} is refused: {why}", retry_after=wait
        )

    def _span(self, use: _Use, period: str) -> _Span:
        now_ms, spans = self._clock.wall_ms(), use.spans[period]
        for span in reversed(spans):
            if span.start_ms <= now_ms < span.end_ms:
                return span
        zone = self._zone()
        span = _Span(_STARTS[period](now_ms, zone), _ENDS[period](now_ms, zone))
        spans.append(span)
        del spans[:-_MOST_SPANS]
        return span

    def _spend(self, use: _Use, at_ms: int, amount: int) -> None:
        """On the bill of the day and the month that it was asked for in."""
        if amount:
            for period in PERIODS:
                self._span(use, period)
                for span in use.spans[period]:
                    if span.start_ms <= at_ms < span.end_ms:
                        span.spent += amount

    # --- without it -------------------------------------------------------------------------------

    def _cost_of(self, model: str, at_ms: int, usage: TokenUsage) -> int:
        """May read the database. Where that cannot be read nothing is counted; the next start of
        the program counts it, as each bill does."""
        try:
            return self._cost(model, at_ms, usage)
        except sqlite3.Error as error:
            log.error("what a request to %s costs is not in its key's budget: %s", model, error)
            return 0

    def _monotonic(self, ms: int, now_ms: int) -> float:
        return self._clock.monotonic() - max(0, now_ms - ms) / 1000


def _rate_limited(key: Key, limit: str, wait: float) -> ApiError:
    return ApiError(
        429,
        "rate_limited",
        f"The key {key.name!r} may do {limit}; try again in {duration(wait)}",
        retry_after=wait,
    )


_Left = tuple[int, float, int, float]


def _left(key: Key, use: _Use, now: float) -> _Left | None:
    """The requests of the last minute and the seconds until there are none, and the same of tokens;
    None where neither is limited."""
    if key.requests_per_minute is None and key.tokens_per_minute is None:
        return None
    return (
        use.requests.total,
        use.requests.seconds_until_empty(now),
        use.tokens.total + use.held_tokens,
        use.tokens.seconds_until_empty(now),
    )


def _headers(key: Key, left: _Left | None) -> Headers:
    headers: Headers = []
    if left is None:
        return headers
    requests, requests_reset, tokens, tokens_reset = left
    if (limit := key.requests_per_minute) is not None:
        headers += [
            ("X-Ratelimit-Limit-Requests", str(limit)),
            ("X-Ratelimit-Remaining-Requests", str(max(0, limit - requests))),
            ("X-Ratelimit-Reset-Requests", duration(requests_reset)),
        ]
    if (limit := key.tokens_per_minute) is not None:
        headers += [
            ("X-Ratelimit-Limit-Tokens", str(limit)),
            ("X-Ratelimit-Remaining-Tokens", str(max(0, limit - tokens))),
            ("X-Ratelimit-Reset-Tokens", duration(tokens_reset)),
        ]
    return headers


def duration(seconds: float) -> str:
    """As OpenAI spells it in its headers: ``20ms``, ``1.5s``, ``6m0s``."""
    ms = round(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
