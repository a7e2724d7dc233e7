"""llama-swap's filters as changes of requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_KNOWN = ("stripParams", "strip_params", "setParams", "setParamsByID")


@dataclass
class Filters:
    """`request` is as config.yaml has it, `by_name` what is set where a request asks for the model
    by that name. `lost` says what of the filters is in neither."""

    request: dict[str, Any] = field(default_factory=dict)
    by_name: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def read(given: Mapping[str, Any]) -> Filters:
    """Filters with their macros expanded."""
    filters = Filters(lost=[f"{key} has no counterpart" for key in given if key not in _KNOWN])
    strip = given.get("stripParams") or given.get("strip_params") or ""
    names = [name.strip() for name in str(strip).split(",")]
    if stripped := [name for name in dict.fromkeys(names) if name not in ("", "model")]:
        filters.request["strip"] = stripped
    fixed, default = _split(given.get("setParams"))
    if default:
        filters.request["default"] = default
    if fixed:
        filters.request["set"] = fixed
    by_name = given.get("setParamsByID")
    for name, fields in by_name.items() if isinstance(by_name, dict) else ():
        filters.by_name[name], default = _split(fields)
        if default:
            filters.lost.append(f"setParamsByID: {name} has no defaults of its own here (?)")
    return filters


def _split(fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is set, and what ends in ``?``, which is set where a request does not have it."""
    if not isinstance(fields, dict):
        return {}, {}
    named = {name: value for name, value in fields.items() if name.rstrip("?") != "model"}
    fixed = {name: value for name, value in named.items() if not name.endswith("?")}
    default = {name[:-1]: value for name, value in named.items() if name.endswith("?")}
    return fixed, default
