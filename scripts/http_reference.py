"""Writes what docs/http-api.md has of each call, from the routes: `make reference`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flask import Flask

import routes
from manager.clock import Clock
from manager.config.settings import Config, Program
from manager.interfaces import BUILT_IN, Interface
from manager.metrics import Metrics
from routes.auth import calls_of
from routes.calls import Call
from routes.request import Fields

PAGE = Path(__file__).resolve().parent.parent / "docs" / "http-api.md"
_MARK = "<!-- made from the routes by `make reference` -->\n"
_TITLES = {
    "openai": "Models, for clients",
    "ollama": "Models, for Ollama's clients",
    "models": "Models",
    "program": "The program",
    "usage": "Usage",
    "money": "Prices and bills",
    "data": "What is stored",
    "access": "Keys, accounts, tokens",
    "": "Pages",
}


def application(kinds: Sequence[Interface]) -> Flask:
    """The application with these modes, over as much of the services as its making needs."""
    services: Any = SimpleNamespace(
        fleet=SimpleNamespace(config=Config(Path("config.yaml"), Program(), {}), models=list),
        interfaces={kind.mode: kind for kind in kinds},
        clock=Clock(),
        monitor=SimpleNamespace(add_listener=lambda _listener: None),
        activity=None,
        spool=None,
        data_dir=Path("data"),
        metrics=Metrics(),
        closing=threading.Event(),
    )
    return routes.create_app(services, b"secret")


def page_text(before: str) -> str:
    """The page with the calls of now behind its mark."""
    head, mark, _ = before.partition(_MARK)
    if not mark:
        raise ValueError(f"{PAGE.name} has to have the line {_MARK.strip()}")
    calls = list(calls_of(application([kind() for kind in BUILT_IN])).values())
    sections = []
    for tag, title in _TITLES.items():
        rows = [_row(call) for call in calls if call.tag == tag]
        sections.append(f"\n## {title}\n\n| call | who may | |\n|---|---|---|\n{''.join(rows)}")
    return head + mark + "".join(sections)


def _row(call: Call) -> str:
    texts = [call.summary.rstrip(".") + "." if call.summary else "", call.description]
    if call.parameters:
        texts.append(f"Query: {', '.join(f'`{name}` (needed)' for name in call.parameters)}.")
    if call.query:
        texts.append(f"Query: {_names(call.query)}.")
    if call.body is not None:
        texts.append(f"Body: {_names(call.body.fields)}.")
    cells = (f"`{call.name}`", call.rule.value, " ".join(filter(None, texts)))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _names(fields: Fields) -> str:
    return ", ".join(
        f"`{name}`{' (needed)' if field.is_required else ''}" for name, field in fields.items()
    )


if __name__ == "__main__":
    PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
