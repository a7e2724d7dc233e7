"""Authorization for tests of the Flask app with a part of its services."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flask.testing import FlaskClient

from manager.access.registry import AccessSnapshot

TOKEN = "tk-llm-" + "t" * 43


def unlocked() -> dict[str, Any]:
    """The services that authorize, where there is no account and no key."""
    return {
        "access": SimpleNamespace(snapshot=AccessSnapshot(), record=lambda _function: None),
        "local_token": SimpleNamespace(check=lambda secret: "1" if secret == TOKEN else None),
    }


def as_admin(client: FlaskClient) -> FlaskClient:
    """The test client, which sends the local token from now on."""
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    return client
