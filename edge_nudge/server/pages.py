"""The playground's files: what a browser gets at `/` and below `/page/`.

Owns which files there are, their types and the headers that confine them. Never reads a path from a request, never
answers for the API, and holds no secret: the page is there without a key, and asks the reader for it.

1. A route stands for one file of the package, read once; any other path is no route.
2. The page runs only what is served here: no inline script or style, no other origin, no frame around it, and no
   text that becomes markup (trusted types).
3. A browser asks again each time and is answered 304 where nothing changed: after an update it never runs old files.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

START = "index.html"
CONTENT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    }
)
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": "; ".join(
            (
                "default-src 'none'",
                "script-src 'self'",
                "style-src 'self'",
                "img-src 'self'",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
                "require-trusted-types-for 'script'",
                "trusted-types 'none'",
            )
        ),
        "x-content-type-options": "nosniff",
        # The key can come in the address; it is a fragment, which no browser sends, and nothing else is sent either.
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache",
    }
)


def page_routes() -> list[Route]:
    """Return the routes of the playground, for `app.router.routes`; none of them is in the OpenAPI schema."""
    folder = files("edge_nudge.server").joinpath("page")
    return [_route(file.name, file.read_bytes()) for file in folder.iterdir() if _kind(file.name) in CONTENT_TYPES]


def is_page(path: str) -> bool:
    """Tell whether a request path is the playground's and needs no key."""
    return path == "/" or path.startswith("/page/")


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _route(name: str, content: bytes) -> Route:
    etag = f'"{sha256(content).hexdigest()[:32]}"'
    content_type = CONTENT_TYPES[_kind(name)]

    async def serve(request: Request) -> Response:
        headers = {**HEADERS, "etag": etag}
        known = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
        if etag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers={**headers, "content-type": content_type})

    return Route("/" if name == START else f"/page/{name}", serve, methods=["GET"], name=f"page {name}")
