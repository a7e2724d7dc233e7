"""The errors that a client gets, of the OpenAI side and of ``/api``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLIENT_CLOSED_REQUEST = 499  # nginx's number for a client that closed before its answer


class ApiError(Exception):
    """A refusal or a failure that the error table lists.

    ``status`` is the HTTP status, ``code`` the stable name that a program can test,
    ``message`` what a person can act on, ``retry_after`` seconds, where waiting helps;
    ``details`` are further fields of the error's JSON.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.details = details or {}

    @property
    def type(self) -> str:
        """OpenAI's class of error, from the status."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 403:
            return "permission_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's SDKs expect it: ``{"error": {...}}``."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
                **self.details,
            }
        }


class ClientDisconnected(Exception):
    """The client disconnected before its answer was there; nobody is left to answer."""
