"""The OpenAPI 3.1 document, generated from the route table and its types."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, get_args

import msgspec

from gpulockd.web.problems import MEDIA_TYPE, Problem
from gpulockd.web.table import Query, Row

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")

_ALWAYS = (400, 403, 414, 421, 431, 500, 503)
_WITH_BODY = (408, 413, 415, 422)
_HEADERS = {
    401: {"WWW-Authenticate": {"description": "Bearer", "required": True, "schema": {"type": "string"}}},
    503: {"Retry-After": {"description": "when to ask again (in seconds)", "schema": {"type": "integer"}}},
}


def document(rows: Iterable[Row], version: str, *, needs_token: bool = True) -> dict[str, Any]:
    """Return the document of these rows; every route has its own entry.

    :param needs_token: whether a write needs the bearer token, as over TCP; on the unix socket the peer's uid decides
    """
    rows = list(rows)
    types = {kind for row in rows for kind in (*_kinds(row.answer), *_kinds(row.form or row.request))} | {Problem}
    ordered = sorted(types, key=lambda kind: str(kind.__name__))
    _, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for row in rows:
        path = template(row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, needs_token)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpulockd", "version": version, "summary": "One GPU, one program at a time, in a fair line."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "`gpulockd token`"}},
        },
    }


def needed_of(kind: Any) -> list[str]:
    """Return the fields that a body of this kind must have; an empty body will do where there are none."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return []
    return [field.encode_name for field in msgspec.structs.fields(kind) if field.required]


def template(path: str) -> str:
    """Return a route's path as the document and the metrics name it: `{id:path}` is only how it is matched."""
    return _PARAMETER.sub(r"{\1}", path)


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


def _operation(row: Row, needs_token: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": row.handler.__name__,
        "summary": row.summary,
        "responses": {
            "200": {"description": row.summary, "content": {row.media: {"schema": _schema(row.answer)}}},
            **{str(status): _refusal(status) for status in _statuses(row)},
            "default": _refusal(None),
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": path, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for path in _PARAMETER.findall(row.path)
    ]
    parameters += [_parameter(query) for query in row.query]
    if parameters:
        found["parameters"] = parameters
    if row.request is not None:
        found["requestBody"] = {
            "required": bool(needed_of(row.request)),
            "content": {"application/json": {"schema": _schema(row.form or row.request)}},
        }
    if row.access != "free" and needs_token:
        found["security"] = [{"token": []}]
    return found


def _statuses(row: Row) -> list[int]:
    """Every status of a problem that this route may answer."""
    found = {*_ALWAYS, *row.problems}
    found |= set(_WITH_BODY) if row.request is not None else set()
    found |= {422} if row.query else set()
    found |= {404} if "{" in row.path else set()
    found |= {401} if row.access != "free" else set()
    return sorted(found)


def _refusal(status: int | None) -> dict[str, Any]:
    what = "what went wrong, with a hint" if status is None else HTTPStatus(status).phrase
    found: dict[str, Any] = {"description": what, "content": {MEDIA_TYPE: {"schema": _schema(Problem)}}}
    if status in _HEADERS:
        found["headers"] = _HEADERS[status]
    return found


def _parameter(query: Query) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": query.type}
    if query.type == "integer":
        schema |= {"minimum": 0, "maximum": query.most}
    elif query.pattern:
        schema["pattern"] = query.pattern
    return {"name": query.name, "in": query.place, "description": query.summary, "schema": schema}
