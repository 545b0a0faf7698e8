"""The playground's files: types, headers, and that nothing else is reachable beside them."""

from __future__ import annotations

import re
from importlib.resources import files
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from edge_nudge.server.pages import CONTENT_TYPES, is_page, page_routes

FOLDER = files("edge_nudge.server") / "page"
NAMES = sorted(entry.name for entry in FOLDER.iterdir())


def get(path: str, headers: dict[str, str] | None = None, method: str = "GET") -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=list(page_routes())))
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            return await client.request(method, path, headers=headers)

    return anyio.run(ask)


def test_each_file_is_served_with_its_type_and_nothing_is_left_out() -> None:
    assert {"index.html", "page.js", "stream.js", "answer.js", "page.css"} <= set(NAMES)
    for name in NAMES:
        response = get("/" if name == "index.html" else f"/page/{name}")
        assert response.status_code == 200
        assert response.content == (FOLDER / name).read_bytes()
        assert response.headers["content-type"] == CONTENT_TYPES[name.rpartition(".")[2]]


@pytest.mark.parametrize("name", NAMES)
def test_headers_confine_the_page(name: str) -> None:
    headers = get("/" if name == "index.html" else f"/page/{name}").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"


def test_an_unchanged_file_is_not_sent_again() -> None:
    first = get("/page/page.js")
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = get("/page/page.js", {"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert "content-security-policy" in again.headers
    assert get("/page/page.js", {"if-none-match": '"other"'}).content == first.content
    assert get("/page/page.css").headers["etag"] != tag


@pytest.mark.parametrize(
    "path",
    [
        "/page", "/page/", "/page/index.html", "/page/../pages.py", "/page/..%2fpages.py", "/page/%2e%2e/pages.py",
        "/page/..%5cpages.py", "/page//etc/passwd", "/page/%2fetc%2fpasswd", "/page/page.js%00.css", "/page/page.js/",
        "/page/PAGE.JS", "/pages.py", "/page/__init__.py",
    ],
)  # fmt: skip
def test_nothing_outside_the_folder_is_reachable(path: str) -> None:
    assert get(path).status_code in (404, 307)
    assert get(path).headers.get("location", "http://page/").startswith("http://page/")


def test_only_reading_is_allowed() -> None:
    assert get("/", method="HEAD").status_code == 200
    assert get("/", method="POST").status_code == 405


def test_the_paths_without_a_key_are_those_of_the_page() -> None:
    assert all(is_page(route.path) for route in page_routes())
    for path in ("/v1/models", "/health", "/page", "/pages", "", "//", "/slots", "/v1/page/x"):
        assert not is_page(path)


def test_the_page_has_no_inline_script_or_style_and_no_outer_address() -> None:
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)
    assert re.findall(r"<script[^>]*>([^<]*)", html) == [""]
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses
    assert not any(urlsplit(address).netloc or address.startswith("/") for address in addresses)
    for name in NAMES:
        text = (FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage", text), (
            name
        )
