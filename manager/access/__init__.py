"""Authentication, authorization and limits: keys, accounts, tokens, audit.

API keys are for ``/v1``; accounts, with a password, and tokens, for scripts, are for the pages and
``/api``. All are in usage.db, so that they are saved and restored with what was used under them.
"""

from manager.access import accounts, api_keys, audit, credentials, local_token, registry
from manager.access.accounts import ADMIN, FIRST, VIEWER, Account, Token
from manager.access.api_keys import Budget, Key
from manager.access.limits import KeyLimits, Permit
from manager.access.local_token import LocalToken, LocalTokenError
from manager.access.login_throttle import LoginThrottle
from manager.access.registry import AccessRegistry, invalid_key_error

__all__ = [
    "ADMIN",
    "FIRST",
    "VIEWER",
    "AccessRegistry",
    "Account",
    "Budget",
    "Key",
    "KeyLimits",
    "LocalToken",
    "LocalTokenError",
    "LoginThrottle",
    "Permit",
    "Token",
    "accounts",
    "api_keys",
    "audit",
    "credentials",
    "invalid_key_error",
    "local_token",
    "registry",
]
