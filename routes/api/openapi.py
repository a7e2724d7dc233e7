"""``/openapi.json``: what can be asked of this program, for tools."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from flask import Flask, Response, current_app, jsonify

from manager import __version__
from routes.calls import CHANGING, Api, Call, Rule
from routes.request import Field
from routes.services import Services

_FILE = Path(__file__).with_name("openapi.yaml")
_DOCUMENT = "openapi"  # in the application's extensions
# What each call may be refused with.
_ERRORS = (400, 401, 403, 503)
_SECURITY: dict[Rule, list[dict[str, list[str]]]] = {
    Rule.OPEN: [{}],
    Rule.MODELS: [{}, {"bearer": []}, {"apiKey": []}],
    Rule.RAW: [{"session": []}, {"bearer": []}, {"apiKey": []}],
    Rule.OLLAMA: [{}, {"bearer": []}, {"apiKey": []}],
    Rule.KEY: [{"bearer": []}, {"apiKey": []}],
    Rule.LOCAL: [{}, {"session": []}, {"bearer": []}],
    Rule.SCRIPT: [{"bearer": []}],
    Rule.ADMIN: [{"session": []}, {"bearer": []}],
    Rule.CONFIG: [{"session": []}, {"bearer": []}],
}
"""All others: as the document says for those that say nothing."""


def blueprint(_services: Services) -> Api:
    api = Api("openapi", tag="program")

    @api.call("GET /openapi.json", Rule.OPEN)
    def openapi() -> Response:
        """This description, as OpenAPI 3.1."""
        return jsonify(current_app.extensions[_DOCUMENT])

    return api


def init_app(app: Flask, calls: Iterable[Call]) -> None:
    """Describes the application's calls, which are complete. Raises LookupError for one that names
    a response, a schema or a parameter of a path that openapi.yaml has not."""
    document = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    components = document["components"]
    document["info"]["version"] = __version__
    components["securitySchemes"]["session"]["name"] = app.config["SESSION_COOKIE_NAME"]
    paths: dict[str, Any] = {}
    for call in calls:
        if call.tag:
            item = paths.setdefault(call.template, {})
            item[call.method.lower()] = _operation(call, components)
    document["paths"] = paths
    app.extensions[_DOCUMENT] = document


def _operation(call: Call, components: dict[str, Any]) -> dict[str, Any]:
    def reference(kind: str, name: str) -> dict[str, str]:
        if name not in components[kind]:
            raise LookupError(f"{call.name}: openapi.yaml has no {name} in {kind}")
        return {"$ref": f"#/components/{kind}/{name}"}

    in_path = [reference("parameters", name) for name in call.path_names]
    unread = [reference("parameters", name) for name in call.parameters]
    in_query = [_parameter(name, one) for name, one in call.query.items()]
    errors = {*_ERRORS, *call.errors, *((404,) if in_path else ())}
    if call.method in CHANGING:
        errors.update((413, 415))
    error = "OllamaError" if call.rule is Rule.OLLAMA else "Error"
    statuses = {**dict.fromkeys(errors, error), **call.answers}
    operation: dict[str, Any] = {"summary": call.summary, "tags": [call.tag]}
    if call.description:
        operation["description"] = call.description
    if call.rule in _SECURITY:
        operation["security"] = _SECURITY[call.rule]
    if in_path or unread or in_query:
        operation["parameters"] = in_path + unread + in_query
    if call.body is not None or call.schema is not None:
        schema = call.body.schema if call.body else reference("schemas", call.schema or "")
        kind = "multipart/form-data" if call.takes_form else "application/json"
        content = {kind: {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = {
        str(status): reference("responses", statuses[status]) for status in sorted(statuses)
    }
    return operation


def _parameter(name: str, one: Field) -> dict[str, Any]:
    described = {"description": one.schema["description"]} if "description" in one.schema else {}
    schema = {key: value for key, value in one.schema.items() if key != "description"}
    return {"name": name, "in": "query", **described, "schema": schema}
