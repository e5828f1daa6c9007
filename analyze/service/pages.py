"""The page of a service: its files are those of analyze/service/page, and no others."""

from importlib.resources import files

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def router() -> APIRouter:
    """The routes; the files are read once."""
    routes = APIRouter(include_in_schema=False)
    kept = {
        file.name: (file.read_bytes(), _TYPES[suffix])
        for file in (files("analyze.service") / "page").iterdir()
        if (suffix := f".{file.name.rpartition('.')[2]}") in _TYPES
    }

    @routes.get("/")
    def page() -> Response:
        return sent("index.html")

    @routes.get("/page/{name}")
    def file(name: str) -> Response:
        return sent(name)

    def sent(name: str) -> Response:
        if name not in kept:
            raise HTTPException(404)
        content, kind = kept[name]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return routes
