"""What a terminal shows of a program's output. Pure: no I/O."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but the tab and the line's end
# One that is cut off, by the line's end or by another, is what there is of it.
_SEQUENCE = re.compile(
    r"""
      (?P<begin> (?:\x1b\[|\x9b) (?:[01]?G | [12]K) )              # to the line's begin, erase it
    | (?:\x1b\[|\x9b) [0-?]* [ -/]* [@-~]?                         # CSI: colours, the cursor
    | (?:\x1b[]PX^_] | [\x9d\x90\x98\x9e\x9f])                     # OSC and others: titles, links,
      [^\x00-\x1f\x9c]* (?:\x07 | \x1b\\ | \x9c)?                  #   up to their terminator
    | \x1b [ -/]* [0-~]?                                           # charsets, a lone ESC
    """,
    re.VERBOSE,
)
# The same in bytes, where more of it may come; and the first bytes of a character of UTF-8.
_UNFINISHED = re.compile(
    rb"""
    (?: (?:\x1b\[|\xc2\x9b) [0-?]* [ -/]*
      | (?:\x1b[]PX^_] | \xc2[\x90\x98\x9d-\x9f]) (?:(?!\xc2\x9c)[^\x00-\x1f])* \x1b?
      | \x1b [ -/]*
      | [\xc2-\xdf] | [\xe0-\xef][\x80-\xbf]? | [\xf0-\xf4][\x80-\xbf]{0,2}
    ) \Z
    """,
    re.VERBOSE,
)
_MAX_SEQUENCE = 4096  # bytes; a link may be long


def plain_text(line: bytes) -> str:
    """A line, without its end, as a terminal shows it once it is whole: no escape sequences and
    control characters but tabs, and of what was overwritten (a progress bar) the last state. Bytes
    that are no UTF-8 become U+FFFD."""
    text = line.decode("utf-8", "replace")
    if not _CONTROL.search(text):
        return text
    text = _SEQUENCE.sub(lambda found: "\r" if found["begin"] else "", text)
    if "\r" in text:
        states = reversed(text.split("\r"))
        # The last may be blanks that erase the bar.
        text = next((state for state in states if state.strip()), "").rstrip()
    if "\b" in text:
        text = _overwritten(text)
    return _CONTROL.sub("", text)


def escaped(line: str) -> str:
    """A line with no character that a terminal would act on, for names that others chose."""
    return "".join(
        character if character.isprintable() else f"\\x{ord(character):02x}" for character in line
    )


def unfinished_bytes(data: bytes) -> int:
    """How many bytes at the end are the begin of a sequence or of a character: to be joined with
    what comes before they are shown."""
    found = _UNFINISHED.search(data[-_MAX_SEQUENCE:])
    return len(found[0]) if found else 0


def _overwritten(text: str) -> str:
    """With backspaces carried out, which move the cursor and erase nothing. What a shorter state
    leaves of a longer one is not shown."""
    shown: list[str] = []
    at = 0
    is_moved = False
    for character in text:
        is_moved = character == "\b"
        if is_moved:
            at = max(0, at - 1)
        else:
            shown[at : at + 1] = character
            at += 1
    return "".join(shown if is_moved else shown[:at])
