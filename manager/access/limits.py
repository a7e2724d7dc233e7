"""The limits of API keys: requests and tokens a minute, concurrent requests, a budget.

A minute is any sixty seconds, not one of the clock's: never more than a limit in any of them. What
a request takes is known when it has ended. Until then an estimate of it is held, so that many at
once cannot take together what is left for one; an admitted request is always finished.

All of it is in memory, and read from usage.db again when the program starts: rows are the truth.
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
from manager.billing import calendar, format_amount
from manager.clock import Clock
from manager.errors import ApiError
from manager.storage import billed_seq, read_connection
from manager.tokens import TokenUsage, prompt_estimate
from manager.usage import Reports

log = logging.getLogger(__name__)

MINUTE = 60.0
_USUAL_COMPLETION = 500  # tokens, until a model has shown what is usual
_MAX_PERIODS = 4  # days, and months, that are remembered
_WEIGHT = 0.1  # of the last answer in what is usual
_RETRY_SECONDS = 1.0  # while others that are in flight have to end
_MAX_DURATION_MS = 3_600_000  # of a request that a start finds; nearly all take less

_STARTS = {"day": calendar.day_start_ms, "month": calendar.month_start_ms}
_ENDS = {"day": calendar.next_day_ms, "month": calendar.next_month_ms}

Headers = list[tuple[str, str]]

Cost = Callable[[str, int, TokenUsage], int]
"""The price of a request from its model, its start (epoch ms) and its tokens, in billionths."""


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
class _Spending:
    """The amount spent in a day or a month, whose bounds are epoch ms."""

    start_ms: int
    end_ms: int
    spent: int = 0


@dataclass
class _Usage:
    """A key's counters at this moment."""

    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    in_flight: int = 0
    held_tokens: int = 0
    held_cost: int = 0
    # By the period; the newest last. Not only the current one: a clock that is set back returns
    # to an earlier one.
    spending: dict[str, list[_Spending]] = field(default_factory=lambda: defaultdict(list))
    # Appended by the requests' threads when they end, counted under the lock by the next caller.
    ended: deque[_End] = field(default_factory=deque)


_End = tuple[float, int, int, int, int | None, int]
"""A request that has ended: its end (monotonic), its start (epoch ms), the tokens and the cost that
were held for it, and those that it took; None where it took nothing."""


@dataclass(frozen=True)
class KeyUsage:
    """A key's use: of the last sixty seconds, and what was spent today and this month."""

    requests: int
    tokens: int
    in_flight: int
    spent: dict[str, int]


class Permit:
    """An admitted request of a key; ``headers`` are for its answer. Call ``end`` when it has ended,
    however it has."""

    __slots__ = ("_cost", "_is_open", "_limits", "_tokens", "_use", "has_budget", "headers")

    def __init__(
        self,
        limits: KeyLimits,
        use: _Usage,
        tokens: int,
        cost: int,
        has_budget: bool,
        headers: Headers,
    ) -> None:
        self.has_budget = has_budget
        self.headers = headers
        self._limits = limits
        self._use = use
        self._tokens = tokens
        self._cost = cost
        self._is_open = True

    def end(self, model: str, began_ms: int, usage: TokenUsage | None) -> None:
        """``began_ms`` is the request's start, epoch ms. A second call changes nothing."""
        if self._is_open:
            self._is_open = False
            held = (self._tokens, self._cost)
            end = self._limits.ended(model, began_ms, held, usage)
            # Without the lock, which every request of every key takes when it begins.
            self._use.ended.append(end)


class KeyLimits:
    """Counters of all keys, under one lock that is taken once a request, for microseconds: with
    many threads each acquisition may release the GIL to another."""

    def __init__(self, clock: Clock, zone: Callable[[], tzinfo], cost: Cost) -> None:
        self._clock = clock
        self._zone = zone
        self._cost = cost
        self._lock = threading.Lock()
        self._uses: defaultdict[str, _Usage] = defaultdict(_Usage)
        self._usual: dict[str, float] = {}  # completion tokens, by model

    def admit(self, key: Key, model: str, size: int, max_tokens: int | None) -> Permit:
        """Admits a request, counts it and holds what it may take: ``size`` is that of its prompt
        in bytes, ``max_tokens`` the limit that it has itself. Raises ApiError 429, and then it does
        not count."""
        prompt = prompt_estimate(size)
        if max_tokens is None:
            max_tokens = round(self._usual.get(model, _USUAL_COMPLETION))
        tokens, cost = prompt + max_tokens, 0
        if key.budget is not None:
            cost = self._cost_of(model, self._clock.wall_ms(), TokenUsage(prompt, 0, max_tokens))
        with self._lock:
            use, now = self._use(key.name)
            self._check(key, use, now)
            use.in_flight += 1
            use.requests.add(now, 1)
            use.held_tokens += tokens
            use.held_cost += cost
            rates = _rate_usage(key, use, now)
        has_budget = key.budget is not None
        return Permit(self, use, tokens, cost, has_budget, _headers(key, rates))

    def ended(
        self, model: str, began_ms: int, held: tuple[int, int], usage: TokenUsage | None
    ) -> _End:
        """What is to be counted of a request that has ended; without the lock."""
        now = self._clock.monotonic()
        if usage is None:
            return now, began_ms, *held, None, 0
        cost = self._cost_of(model, began_ms, usage)
        # Of two at once one may be left out of the mean, which is an estimate anyhow.
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
        """The key's usage now."""
        with self._lock:
            use, _ = self._use(key)
            spent = {period: self._current(use, period).spent for period in PERIODS}
            return KeyUsage(use.requests.total, use.tokens.total, use.in_flight, spent)

    def headers(self, key: Key) -> Headers:
        """OpenAI's ``x-ratelimit-*`` as they are now."""
        with self._lock:
            use, now = self._use(key.name)
            rates = _rate_usage(key, use, now)
        return _headers(key, rates)

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
        with read_connection(path) as connection:
            unpriced = connection.execute(
                "SELECT key, model, started_ms, prompt_tokens, cached_tokens, completion_tokens"
                " FROM requests WHERE seq > ? AND cost IS NULL AND key != ''",
                (billed_seq(connection),),
            ).fetchall()
            # A row's id begins with the start of its request; one that has just ended may have
            # started long before. What has not come yet is from before a clock was set back.
            recent = connection.execute(
                "SELECT key, started_ms, ended_ms, prompt_tokens + completion_tokens, leased_ms"
                " FROM requests WHERE id >= ? AND ended_ms > ? AND ended_ms <= ? AND key != ''"
                " ORDER BY ended_ms",
                (max(0, now_ms - _MAX_DURATION_MS).to_bytes(6, "big"), minute_ms, now_ms),
            ).fetchall()
        costs = [
            (key, started_ms, self._cost_of(model, started_ms, TokenUsage(*tokens)))
            for key, model, started_ms, *tokens in unpriced
        ]
        with self._lock:
            for period, groups in spent.items():
                for key, totals in groups.items():
                    use, _ = self._use(key)
                    self._current(use, period).spent = totals.cost_tokens + totals.adjustments
            for key, started_ms, cost in costs:
                self._spend(self._use(key)[0], started_ms, cost)
            for key, _, ended_ms, tokens, _ in recent:
                self._use(key)[0].tokens.add(self._monotonic(ended_ms, now_ms), tokens)
            for key, started_ms, _, _, leased_ms in sorted(recent, key=lambda row: row[1]):
                if started_ms > minute_ms and leased_ms is not None:  # else it was not admitted
                    self._use(key)[0].requests.add(self._monotonic(started_ms, now_ms), 1)

    # --- with the lock held -----------------------------------------------------------------------

    def _use(self, key: str) -> tuple[_Usage, float]:
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

    def _check(self, key: Key, use: _Usage, now: float) -> None:
        limit = key.requests_per_minute
        if limit is not None and use.requests.total >= limit:
            wait = use.requests.seconds_until(limit, now)
            raise _rate_limited(key, f"{limit} requests a minute", wait)
        limit = key.tokens_per_minute
        if limit is not None and use.tokens.total + use.held_tokens >= limit:
            wait = use.tokens.seconds_until(limit, now) or _RETRY_SECONDS
            raise _rate_limited(key, f"{limit} tokens a minute", wait)
        if key.budget is not None:
            self._check_budget(key, key.budget, use)
        limit = key.max_concurrency
        if limit is not None and use.in_flight >= limit:
            raise _rate_limited(key, f"{limit} requests at once", _RETRY_SECONDS)

    def _check_budget(self, key: Key, budget: Budget, use: _Usage) -> None:
        found = self._current(use, budget.period)
        if found.spent + use.held_cost < budget.amount:
            return
        limit = f"its budget of {format_amount(budget.amount)} a {budget.period}"
        if found.spent < budget.amount:
            why = f"requests in flight may use up {limit}; try again in a moment"
            wait = _RETRY_SECONDS
        else:
            why = f"{limit} is used up until {calendar.iso(found.end_ms)}"
            wait = max(_RETRY_SECONDS, (found.end_ms - self._clock.wall_ms()) / 1000)
        raise ApiError(
            429, "budget_exceeded", f"The key {key.name!r} is refused: {why}", retry_after=wait
        )

    def _current(self, use: _Usage, period: str) -> _Spending:
        now_ms, known = self._clock.wall_ms(), use.spending[period]
        for found in reversed(known):
            if found.start_ms <= now_ms < found.end_ms:
                return found
        zone = self._zone()
        found = _Spending(_STARTS[period](now_ms, zone), _ENDS[period](now_ms, zone))
        known.append(found)
        del known[:-_MAX_PERIODS]
        return found

    def _spend(self, use: _Usage, at_ms: int, amount: int) -> None:
        """Adds to the day and the month in which the request started."""
        if amount:
            for period in PERIODS:
                self._current(use, period)
                for one in use.spending[period]:
                    if one.start_ms <= at_ms < one.end_ms:
                        one.spent += amount

    # --- without it -------------------------------------------------------------------------------

    def _cost_of(self, model: str, at_ms: int, usage: TokenUsage) -> int:
        """May read the database. Where that fails nothing is counted; the next start of the
        program counts it, as each bill does."""
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


_RateUsage = tuple[int, float, int, float]


def _rate_usage(key: Key, use: _Usage, now: float) -> _RateUsage | None:
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


def _headers(key: Key, rates: _RateUsage | None) -> Headers:
    headers: Headers = []
    if rates is None:
        return headers
    requests, requests_reset, tokens, tokens_reset = rates
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
    """In the format of OpenAI's headers: ``20ms``, ``1.5s``, ``6m0s``."""
    ms = round(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
