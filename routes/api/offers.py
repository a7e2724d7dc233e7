"""``/api/config/files`` and ``/propose``: what "add a model" has to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, jsonify

from manager.config import config_file, edit
from manager.engines import (
    BY_ID,
    ENGINES,
    Fit,
    ProposalError,
    Target,
    offer,
)
from manager.errors import ApiError
from manager.gguf import GgufError, Listed, list_models
from routes.api import devices as device_views
from routes.calls import Api, Rule
from routes.request import bad, boolean, choice, integer, list_of, text
from routes.services import Services

_MAX_DEVICES = 64
_MAX_CONTEXT = 100_000_000
_PROPOSAL = {
    "engine": choice(*BY_ID).required(),
    "file": text(1).described("The path of a file of `GET /api/config/files`"),
    "model": text(1).described("For vLLM: the name of a Hugging Face model, or its folder"),
    "projector": boolean().default_to(True).described("With the image projector that is beside it"),
    "devices": list_of(text(1), 0, _MAX_DEVICES, "names of devices").default_to(()),
    "context": integer(1, _MAX_CONTEXT).described("In tokens; else one that fits"),
    "name": text(1, 200).described("Else one that is made of the file's"),
}


def blueprint(services: Services) -> Api:
    api = Api("offers", tag="models")

    @api.call("GET /api/config/files", Rule.CONFIG)
    def files() -> Response:
        """The GGUF files of `models_dir`, and the engines and devices to run them with.

        `kind` of a file is `chat`, `base`, `embedding`, `reranker`, `adapter` or `other`, `context`
        what it was trained for. One that cannot be read has an `error` alone. `notes` say what is
        not listed. An engine that cannot be run here, or has no device to run on, says why:
        `unavailable`.
        """
        config = services.fleet.config
        devices = device_views.read(services)["devices"]
        kinds = {device["kind"] for device in devices}
        listing = list_models(config.program.models_dir)
        return jsonify(
            {
                "folders": [str(folder) for folder in config.program.models_dir],
                "files": [_file(listed) for listed in listing.models],
                "notes": list(listing.notes),
                "engines": [
                    {
                        "id": engine.id,
                        "title": engine.title,
                        "kinds": sorted(kind.value for kind in engine.kinds),
                        "device_kinds": sorted(engine.device_kinds),
                        "has_command": engine.command is not None,
                        "unavailable": engine.lacks_device(kinds) or engine.unavailable(),
                    }
                    for engine in ENGINES
                ],
                "devices": [
                    {key: device[key] for key in ("id", "name", "kind", "total_mb", "budget_mb")}
                    for device in devices
                ],
                "writable": config_file.is_writable(config.path),
            }
        )

    @api.call("POST /api/config/propose", Rule.CONFIG, body=_PROPOSAL, audit=False)
    def proposal(body: dict[str, Any]) -> Response:
        """An entry of the config for a file or a model; nothing is written.

        `fits` has for each device alone what llama.cpp takes there at each context, `largest` the
        last that fits, null where none does.
        """
        config, engine = services.fleet.config, BY_ID[body["engine"]]
        listed = _listed(services, body["file"]) if "file" in body else None
        model = listed.model if listed else None
        projectors = listed.projectors if listed and body["projector"] else ()
        names = [name for one in config.models.values() for name in (one.name, *one.aliases)]
        try:
            found = offer(
                model or body.get("model", ""),
                engine,
                _targets(services),
                devices=body["devices"],
                context=body.get("context"),
                projector=projectors[0] if projectors else None,
                name=body.get("name"),
                taken=names,
            )
        except (GgufError, ProposalError) as error:
            raise ApiError(400, "not_possible", str(error)) from error
        proposed = found.proposal
        return jsonify(
            {
                "name": proposed.name,
                "mode": proposed.mode,
                "entry": edit.written(proposed.entry),
                "context": found.context,
                "fits": [_fit(fit) for fit in found.fits],
            }
        )

    return api


def _listed(services: Services, path: str) -> Listed:
    """That file, if it is one of `models_dir`: no other is opened. Raises ApiError."""
    for listed in list_models(services.fleet.config.program.models_dir).models:
        if str(listed.path) == path:
            if listed.error:
                raise ApiError(400, "not_possible", listed.error)
            return listed
    raise bad("file", "file has to be one of those that GET /api/config/files lists")


def _targets(services: Services) -> list[Target]:
    """The devices whose memory is known."""
    return [
        Target(device["name"], total, is_host=device["kind"] == "cpu")
        for device in device_views.view(services)["devices"]
        if (total := device["budget_mb"] or device["total_mb"])
    ]


def _file(listed: Listed) -> Mapping[str, Any]:
    model = listed.model
    if model is None:
        return {"path": str(listed.path), "error": listed.error}
    return {
        "path": str(listed.path),
        "error": None,
        "name": model.name,
        "kind": model.kind.value,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "quantisation": model.quantisation,
        "context": model.context,
        "bytes": model.size,
        "pieces": len(model.files),
        "projectors": [str(path) for path in listed.projectors],
    }


def _fit(fit: Fit) -> dict[str, Any]:
    needs = [
        {"context": need.context, "device_mb": need.device_mb, "host_mb": need.host_mb}
        for need in fit.needs
    ]
    return {
        "device": fit.target.name,
        "is_host": fit.target.is_host,
        "total_mb": fit.target.total_mb,
        "largest": fit.largest.context if fit.largest else None,
        "needs": needs,
    }
