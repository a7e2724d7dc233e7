"""Whether a five-field cron expression can be scheduled.

Only what APScheduler's `CronTrigger.from_crontab` takes too is let through.
"""

from __future__ import annotations

import re

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

# Name, least, most, and the names that stand for the numbers from the least on.
FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("weekday", 0, 6, WEEKDAYS),
)

NUMBERS = re.compile(r"(\*|[0-9]{1,2})(?:-([0-9]{1,2}))?(?:/([0-9]{1,2}))?")
NAMES = re.compile(r"([a-z]+)(?:-([a-z]+))?")


def fault(expression: str) -> str | None:
    """What is wrong with the expression, as a message that says what to write; None if nothing."""
    given = expression.split()
    if len(given) != len(FIELDS):
        names = ", ".join(name for name, *_ in FIELDS)
        return f"expected five fields ({names}), found {len(given)}"
    for written, (name, low, high, words) in zip(given, FIELDS, strict=True):
        for part in written.split(","):
            if not _fits(part.lower(), low, high, words):
                span = f"{low} to {high}" + (f" or {words[0]} to {words[-1]}" if words else "")
                return f"{name} {part!r}: expected * or {span}, as in {low}, {low}-{high} or */2"
    return None


def _fits(part: str, low: int, high: int, words: tuple[str, ...]) -> bool:
    named = NAMES.fullmatch(part)
    if named:
        ends = [word for word in named.groups() if word]
        return all(word in words for word in ends) and ends == sorted(ends, key=words.index)
    numeric = NUMBERS.fullmatch(part)
    if not numeric:
        return False
    first, last, step = numeric.groups()
    if first == "*":
        if last:
            return False
        begin, end = low, high
    else:
        begin = int(first)
        end = int(last) if last else high if step else begin
    # A step beyond the range would make one moment of it, so it is a mistake.
    return low <= begin <= end <= high and (step is None or 1 <= int(step) <= end - begin)
