"""The OpenAPI document: which problems an operation can answer with, and what FastAPI does not say by itself."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from aimx.sidecar.models import ProblemBody
from aimx.sidecar.problems import MEDIA_TYPE, PROBLEMS, TYPE

DESCRIPTION = """Messages, traces and workflows of one AIMX node, and the proofs that they are what they were.

Every error is an RFC 9457 problem whose `detail` says what to do. An agent's token sees what that agent sent or
received; the admin's sees everything, and each look at what a message says is an event in the audit log."""

_HEADERS: dict[str, tuple[str, str]] = {
    "WWW-Authenticate": ("The challenge (RFC 6750).", "string"),
    "Retry-After": ("Seconds to wait before asking again.", "integer"),
    "Allow": ("The methods this address has.", "string"),
}

TAGS = [
    {"name": "messages", "description": "What was sent, what it says and what became of it."},
    {"name": "conversations", "description": "Traces and workflows: who answered whom."},
    {"name": "audit", "description": "The transparency log: proofs, verification, and its files as C2SP serves them."},
    {"name": "witness", "description": "This node cosigns the checkpoints of other logs (c2sp.org/tlog-witness)."},
    {"name": "node", "description": "For whoever runs the node."},
]


def problems(*names: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation that can end in these problems (and in `failed`)."""
    found: dict[int | str, dict[str, Any]] = {}
    for name in (*names, "failed"):
        kind = PROBLEMS[name]
        example = {"type": TYPE + name, "title": kind.title, "status": kind.status, "detail": kind.detail}
        entry = found.setdefault(kind.status, {"description": kind.title, "content": {MEDIA_TYPE: {"examples": {}}}})
        entry["content"][MEDIA_TYPE]["schema"] = {"$ref": "#/components/schemas/Problem"}
        entry["content"][MEDIA_TYPE]["examples"][name] = {"value": example}
        for header in kind.headers:
            text, kind_of = _HEADERS[header]
            entry.setdefault("headers", {})[header] = {"description": text, "schema": {"type": kind_of}}
    return found


def content(media_type: str, description: str, example: str | None = None, binary: bool = False) -> dict[str, Any]:
    """The 200 of an operation that does not answer JSON."""
    schema: dict[str, Any] = {"type": "string", "format": "binary"} if binary else {"type": "string"}
    media = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"description": description, "content": {media_type: media}}


def openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """A replacement for `app.openapi`."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=DESCRIPTION,
                routes=app.routes,
                tags=TAGS,
                license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            )
            schema = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(schema.pop("$defs", {}))
            schemas["Problem"] = schema
            for operation in (one for path in document["paths"].values() for one in path.values()):
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _without_null(parameter["schema"])
            app.openapi_schema = document
        return app.openapi_schema

    return build


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """An optional parameter is left out; nobody can send null in a URL, whatever the model's type says."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **kinds[0]}
