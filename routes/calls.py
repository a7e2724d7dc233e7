"""How a route is declared: its path, who may call it, what it takes, what it answers.

The guard, the audit table, the check of a query and of a body, /openapi.json and docs/http-api.md
are made from these declarations.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flask import Blueprint

from routes.request import Body, Field, Fields, read_body, read_query

View = TypeVar("View", bound=Callable[..., Any])

_PARTS = re.compile(r"<(?:\w+:)?(\w+)>")
CHANGING = frozenset(("POST", "PUT", "PATCH", "DELETE"))


class Rule(enum.Enum):
    """Who may call a route, in the words of the docs; `auth` says what each means."""

    OPEN = "everybody"
    MODELS = "an API key, where keys are asked for"
    OLLAMA = "an API key, as for `/v1`"
    KEY = "an API key"
    RAW = "an admin, or an API key with `raw`"
    VIEW = "a viewer"
    LOCAL = "an admin, or anybody on this machine"
    ADMIN = "an admin"
    SCRIPT = "a script with an admin's token"
    CONFIG = "an admin on this machine"
    SETUP = "an admin, while there is no account"


@dataclass(frozen=True)
class Call:
    """One route: ``path`` is Flask's, and ``tag`` the group it is listed in, empty for what is not
    part of the API. ``audit``: a call that succeeds is in the audit table. ``answers`` are the
    successes and ``errors`` the refusals beyond those that each call may get: statuses, with names
    of responses in openapi.yaml. ``schema`` and ``parameters`` are the names there of a body, which
    is a form if it ``takes_form``, and of a query's parameters that are not read here."""

    method: str
    path: str
    rule: Rule
    audit: bool
    tag: str = ""
    summary: str = ""
    description: str = ""
    query: Fields = field(default_factory=dict)
    body: Body | None = None
    parameters: Sequence[str] = ()
    schema: str | None = None
    takes_form: bool = False
    answers: Mapping[int, str] = field(default_factory=lambda: {200: "Json"})
    errors: Sequence[int] = ()

    @property
    def path_names(self) -> list[str]:
        """The names of the path's parts that are parameters."""
        return _PARTS.findall(self.path)

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it: ``/api/models/{name}``."""
        return _PARTS.sub(r"{\1}", self.path)

    @property
    def name(self) -> str:
        """As the audit table and the docs have it: ``POST /api/models/{name}/stop``."""
        return f"{self.method} {self.template}"


class Api(Blueprint):
    """A blueprint all of whose routes are declared; ``calls`` has them by endpoint."""

    def __init__(self, name: str, tag: str = "") -> None:
        super().__init__(name, __name__)
        self.tag = tag
        self.calls: dict[str, Call] = {}

    def call(
        self,
        name: str,
        rule: Rule,
        *,
        query: Mapping[str, Field] | None = None,
        body: Mapping[str, Field] | Body | None = None,
        audit: bool | None = None,
        endpoint: str | None = None,
        tag: str | None = None,
        summary: str | None = None,
        parameters: Sequence[str] = (),
        schema: str | None = None,
        takes_form: bool = False,
        answers: Mapping[int, str] | None = None,
        errors: Sequence[int] = (),
    ) -> Callable[[View], View]:
        """Declares the view below as the route ``name``, such as ``GET /api/keys/<name>``.

        - The view's docstring describes the call for OpenAPI and the docs: its first paragraph is
          the summary.
        - ``query`` and ``body`` name the fields that are taken. Their values come to the view as
          the arguments ``query`` and ``body``, dicts without those that were left out and have no
          default; an unknown name or a value of another kind is 400 before the view is called.
          Without ``query`` a query string is ignored.
        - What succeeds with ``Rule.ADMIN`` or ``CONFIG`` and is not a GET goes into the audit
          table, unless ``audit`` says otherwise. A view that changes nothing this time (a dry run)
          sets ``g.is_change = False``; one that has changed something and then fails sets it True.
        """
        method, path = name.split(" ")
        taken = Body(body) if isinstance(body, Mapping) else body
        is_change = method in CHANGING and rule in (Rule.ADMIN, Rule.CONFIG)

        def declare(view: View) -> View:
            first, _, rest = inspect.cleandoc(view.__doc__ or "").partition("\n\n")
            call = Call(
                method=method,
                path=path,
                rule=rule,
                audit=is_change if audit is None else audit,
                tag=self.tag if tag is None else tag,
                summary=first.replace("\n", " ") if summary is None else summary,
                description=rest.replace("\n", " "),
                query=query or {},
                body=taken,
                parameters=parameters,
                schema=schema,
                takes_form=takes_form,
                answers=answers or {200: "Json"},
                errors=errors,
            )
            named = endpoint or view.__name__
            self.calls[f"{self.name}.{named}"] = call
            self.add_url_rule(path, named, _reading(view, call), methods=[method])
            return view

        return declare


def _reading(view: Callable[..., Any], call: Call) -> Callable[..., Any]:
    """The view, with its query and body read."""
    query, body = call.query, call.body
    if not query and body is None:
        return view  # as the models' own routes, whose bodies go on as they are

    @functools.wraps(view)
    def read_and_call(**parts: Any) -> Any:
        if query:
            parts["query"] = read_query(query)
        if body is not None:
            parts["body"] = read_body(body)
        return view(**parts)

    return read_and_call
