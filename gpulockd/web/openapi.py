"""The OpenAPI 3.1 document, generated from the route table and its types."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from gpulockd.web.problems import MEDIA_TYPE, Problem
from gpulockd.web.table import Row

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def document(rows: Iterable[Row], version: str) -> dict[str, Any]:
    """Return the document of these rows; every route has its own entry."""
    rows = list(rows)
    types = {kind for row in rows for kind in (*_kinds(row.answer), *_kinds(row.request))} | {Problem}
    ordered = sorted(types, key=lambda kind: str(kind.__name__))
    _, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        path = _PARAMETER.sub(r"{\1}", row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(row)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpulockd", "version": version, "summary": "One GPU, one program at a time, in a fair line."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "`gpulockd token`"}},
        },
    }


def _kinds(annotation: Any) -> tuple[Any, ...]:
    if annotation is None or annotation in (str, dict):
        return ()
    return get_args(annotation) or (annotation,)


def _schema(annotation: Any) -> dict[str, Any]:
    if annotation is str:
        return {"type": "string"}
    if annotation is dict:
        return {"type": "object"}
    found = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in _kinds(annotation)]
    return found[0] if len(found) == 1 else {"oneOf": found}


def _operation(row: Row) -> dict[str, Any]:
    name = row.handler.__name__
    problems = {"description": "what went wrong, with a hint", "content": {MEDIA_TYPE: {"schema": _schema(Problem)}}}
    found: dict[str, Any] = {
        "operationId": name,
        "summary": row.summary,
        "responses": {
            "200": {"description": row.summary, "content": {row.media: {"schema": _schema(row.answer)}}},
            "default": problems,
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": path, "in": "path", "required": True, "schema": {"type": "string"}}
        for path in _PARAMETER.findall(row.path)
    ]
    parameters += [
        {"name": query.name, "in": "query", "description": query.summary, "schema": {"type": query.type}}
        for query in row.query
    ]
    if parameters:
        found["parameters"] = parameters
    if row.request is not None:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(row.request)}},
        }
    if row.access == "writer":
        found["security"] = [{"token": []}]
    return found
