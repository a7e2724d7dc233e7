"""Secrets, generated or brought along, and chosen passwords: made, checked, hashed, compared."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import string

from werkzeug.security import check_password_hash, generate_password_hash

from manager.errors import ApiError

KEY_PREFIX = "sk-llm-"
"""Of API keys. It lets a leaked one be found, and distinguished from keys of others."""
TOKEN_PREFIX = "tk-llm-"  # nosec B105

MIN_SECRET_BITS = 88
"""What a secret that is brought along has to be worth, by ``estimated_bits``."""

_BYTES = 32
_HINT = 4
_MAX_SECRET = 256
_KINDS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
_PREFIX = re.compile(r"(?:[a-z]{1,12}[-_.:])*")  # sk-, sk-or-
_MIN_PASSWORD = 8
_MAX_PASSWORD = 200


def new_secret(prefix: str) -> str:
    """256 random bits, in text."""
    return prefix + secrets.token_urlsafe(_BYTES)


def digest(secret: str) -> bytes:
    """The stored form of a secret. Nobody finds 256 bits by trying: one round is enough, and a
    request costs a microsecond more. One that is brought along has to be as hopeless to find, for
    who has a copy of the database: see `check_secret`. (A password is hashed by the functions
    below.)"""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def is_same(one: bytes, other: bytes) -> bool:
    """Compares two digests in constant time."""
    return hmac.compare_digest(one, other)


def check_secret(secret: str) -> None:
    """Raises ApiError 400 for one, brought along for a key, that is no text for a header, that
    would pass for a token, or that could be guessed. The message has nothing of it."""
    if not 0 < len(secret) <= _MAX_SECRET or not all("!" <= c <= "~" for c in secret):
        raise _bad_secret(
            f"a secret has 1 to {_MAX_SECRET} characters of ASCII that can be seen, no blanks"
        )
    if secret.startswith(TOKEN_PREFIX):
        raise _bad_secret(f"what begins with {TOKEN_PREFIX} is a token, and no key's secret")
    kinds = sum(any(c in kind for c in secret) for kind in _KINDS)
    if kinds < 2 or estimated_bits(secret) < MIN_SECRET_BITS:
        raise _bad_secret(
            "this secret could be guessed: it takes 20 letters and digits, or 28 hexadecimal ones,"
            " that were chosen at random. Words before a - count for nothing, and nor do characters"
            " that are repeated or in sequence"
        )


def estimated_bits(secret: str) -> float:
    """What it takes to find a secret by trying, in bits, if its characters were chosen at random:
    their number times the logarithm of how many there are of their kinds.

    Not counted are the characters that ``hint`` shows, words at its beginning that a - or the like
    ends, since they are a maker's prefix or a phrase, and of three in a row the last, where they
    are the same or follow each other (``aaa``, ``123``) or were there before. Whether a person has
    chosen the rest cannot be known.
    """
    counted = _PREFIX.sub("", secret, count=1)[:-_HINT]
    threes = {counted[at : at + 3] for at in range(len(counted) - 2)}
    fresh = sum(not _is_sequence(three) for three in threes)
    return (fresh + 2) * math.log2(_alphabet(counted)) if fresh else 0.0


def _is_sequence(three: str) -> bool:
    first, second, third = map(ord, three)
    return third - second == second - first and abs(second - first) <= 1


def _alphabet(text: str) -> int:
    used = set(text)
    if used <= set(string.hexdigits + "-"):
        return 16
    kinds = [kind for kind in _KINDS if used.intersection(kind)]
    return sum(map(len, kinds)) + len(used.difference(*kinds))


def _bad_secret(message: str) -> ApiError:
    return ApiError(400, "bad_parameter", message, param="secret")


def hint(secret: str) -> str:
    """The end of a secret, by which a person recognizes it."""
    return secret[-_HINT:]


def password_hash(password: str) -> str:
    """scrypt with a salt. It takes some 60 ms and 32 MB: not for two hundred threads at once.

    Raises ApiError 400 for a password that is too short or too long.
    """
    if not _MIN_PASSWORD <= len(password) <= _MAX_PASSWORD:
        raise ApiError(
            400,
            "bad_parameter",
            f"a password has {_MIN_PASSWORD} to {_MAX_PASSWORD} characters",
            param="password",
        )
    return generate_password_hash(password)


def is_password(hashed: str, password: str) -> bool:
    """Whether it is the one that was hashed; as slow as hashing one."""
    return len(password) <= _MAX_PASSWORD and check_password_hash(hashed, password)
