"""What a browser gets: the playground, and a plain page made from the schema.

Owns paths and headers of pages. Never ships anything that loads from elsewhere.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"
HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


def add_pages(app: FastAPI) -> None:
    """Serve `/` and `/page/` from the package, and `/docs` from the schema."""

    @app.get("/", include_in_schema=False, response_model=None)
    async def playground() -> Response:
        file = FOLDER / "index.html"
        if not file.is_file():
            raise HTTPException(404, "Not Found")
        return FileResponse(file, headers=HEADERS)

    @app.get("/docs", include_in_schema=False, response_model=None)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()), headers=HEADERS)

    if FOLDER.is_dir():
        app.mount("/page", StaticFiles(directory=FOLDER), name="page")


def docs_page(schema: dict[str, Any]) -> str:
    """Return a page that lists every route with the fields of its body."""
    bodies = schema["components"]["schemas"]
    parts = [f"<h1>{escape(schema['info']['title'])} {escape(schema['info']['version'])}</h1>"]
    parts.append('<p>The same as a schema: <a href="/openapi.json">/openapi.json</a></p>')
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation['summary'])}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if "$ref" in body:
                parts.append(_fields(bodies[body["$ref"].rsplit("/", 1)[-1]]))
    title = f"<title>{escape(schema['info']['title'])}</title>"
    return f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<body>{"".join(parts)}</body></html>'


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
