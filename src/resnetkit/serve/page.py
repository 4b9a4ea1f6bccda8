"""The page of a server: GET / and the files that it loads. It has no build step and uses no other address."""

from importlib.resources import files
from pathlib import PurePath

from fastapi import FastAPI, HTTPException, Response

from resnetkit.serve.guard import OPEN_FOLDER

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",  # pictures that were chosen, and explanations
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The Content-Security-Policy of the page: only its own files, no script or style within the HTML."""


def add_page(app: FastAPI) -> None:
    """Add the routes of the page to an application."""
    found = {
        file.name: file.read_bytes()
        for file in files("resnetkit.serve").joinpath("static").iterdir()
        if PurePath(file.name).suffix in TYPES
    }

    def answer(name: str) -> Response:
        kind = TYPES[PurePath(name).suffix]
        return Response(found[name], headers={"content-type": kind, "content-security-policy": POLICY})

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return answer("page.html")

    @app.api_route(f"{OPEN_FOLDER}{{name}}", methods=["GET", "HEAD"], include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in found or name == "page.html":
            raise HTTPException(404)
        return answer(name)
