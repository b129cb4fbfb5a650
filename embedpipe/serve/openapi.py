"""The OpenAPI document of the server, from its table of endpoints."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from .endpoints import ENDPOINTS, Endpoint

_PART = re.compile(r"{(\w+)}")
_NUMBERS = {"row"}
_REF = "#/components/schemas/{model}"
_REFUSALS = {
    "400": "Something in the request is wrong; error and remedy say what.",
    "401": "The token is missing.",
    "403": "The host or the origin may not use this server.",
    "404": "There is no such data set, row, picture or page.",
    "409": "There is something of that name, or the model may not be loaded.",
    "413": "The request is too large.",
}


def openapi_document() -> dict[str, Any]:
    """The document, as OpenAPI 3.1 has it."""
    bodies = [(endpoint.body, "validation") for endpoint in ENDPOINTS if endpoint.body is not None]
    _, schemas = models_json_schema(bodies, ref_template=_REF)  # type: ignore[arg-type]
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    refusal = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}, "remedy": {"type": "string"}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "embedpipe serve",
            "version": version("embedpipe"),
            "description": "Search, cuts and selections over embedding data sets. See docs/serving.md.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Refusal": refusal},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    parts = [
        {
            "name": found[1],
            "in": "path",
            "required": True,
            "schema": {"type": "integer" if found[1] in _NUMBERS else "string"},
        }
        for found in _PART.finditer(endpoint.path)
    ]
    asked = [
        {"name": name, "in": "query", "description": said, "schema": {"type": "string"}}
        for name, said in endpoint.parameters.items()
    ]
    refusal = {"application/json": {"schema": {"$ref": _REF.format(model="Refusal")}}}
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": parts + asked,
        "responses": {
            "200": {"description": endpoint.summary, "content": {endpoint.media: {}}},
            **{status: {"description": said, "content": refusal} for status, said in _REFUSALS.items()},
        },
    }
    if endpoint.body is not None:
        schema = {"$ref": _REF.format(model=endpoint.body.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation
