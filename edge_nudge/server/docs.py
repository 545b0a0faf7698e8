"""A plain page made from the schema: every route with the fields of its body.

Owns what the page says. Never ships anything that loads from elsewhere.
"""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response

from edge_nudge.server.pages import HEADERS


def add_docs(app: FastAPI) -> None:
    """Serve `/docs` from the schema."""

    @app.get("/docs", include_in_schema=False, response_model=None)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()), headers=dict(HEADERS))


def docs_page(schema: dict[str, Any]) -> str:
    """Return a page that lists every route with the fields of its body."""
    bodies = schema["components"]["schemas"]
    parts = [f"<h1>{escape(schema['info']['title'])} {escape(schema['info']['version'])}</h1>"]
    parts.append('<p>The same as a schema: <a href="openapi.json">openapi.json</a></p>')
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation['summary'])}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if "$ref" in body:
                parts.append(_fields(bodies[body["$ref"].rsplit("/", 1)[-1]]))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(schema['info']['title'])}</title>"
        '<link rel="icon" href="page/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="page/docs.css">'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _fields(body: dict[str, Any]) -> str:
    rows = []
    for name, field in body["properties"].items():
        needed = "needed" if name in body.get("required", ()) else ""
        cells = (f"<code>{escape(name)}</code>", escape(_kind(field)), needed, escape(field.get("description", "")))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _kind(field: dict[str, Any]) -> str:
    """Return the type of a field in a word or two; null, which means not given, is left out."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(kind) for kind in field["anyOf"] if kind.get("type") != "null"))
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[-1]
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return str(field.get("type", "any"))
