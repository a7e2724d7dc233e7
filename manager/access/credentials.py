"""Generated secrets and chosen passwords: made, hashed, compared."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from werkzeug.security import check_password_hash, generate_password_hash

from manager.errors import ApiError

KEY_PREFIX = "sk-llm-"
"""Of API keys. It lets a leaked one be found, and distinguished from keys of others."""
TOKEN_PREFIX = "tk-llm-"  # nosec B105

_BYTES = 32
_HINT = 4
_MIN_PASSWORD = 8
_MAX_PASSWORD = 200


def new_secret(prefix: str) -> str:
    """256 random bits, in text."""
    return prefix + secrets.token_urlsafe(_BYTES)


def digest(secret: str) -> bytes:
    """The stored form of a secret. Nobody finds 256 bits by trying: one round is enough, and a
    request costs a microsecond more. (A password is hashed by the functions below.)"""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def is_same(one: bytes, other: bytes) -> bool:
    """Compares two digests in constant time."""
    return hmac.compare_digest(one, other)


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
