"""The ASGI application: routes over the table of endpoints, the page's files, and errors as answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from importlib.resources import files as package_files
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..errors import (
    DatasetError,
    EmbedpipeError,
    InputError,
    ModelError,
    OutputBusy,
    OutputUnwritable,
    RunMismatch,
    StorageFailed,
)
from ..visible import visible
from .config import ServeConfig
from .endpoints import ENDPOINTS, Asked, Endpoint
from .guard import Guard
from .openapi import openapi_document
from .service import NoSuchThing, Service
from .shown import JsonAnswer

logger = logging.getLogger("embedpipe")

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_STATUS: tuple[tuple[type[EmbedpipeError], int], ...] = (
    (NoSuchThing, 404),
    (InputError, 400),
    (RunMismatch, 409),
    (OutputBusy, 409),
    (ModelError, 409),
    (DatasetError, 409),
    (StorageFailed, 502),
    (OutputUnwritable, 507),
)
_SAID = 1_000  # characters of what a client sent or did wrong


def application(service: Service, config: ServeConfig) -> ASGIApp:
    """The server's application. It reads nothing but the data sets of `service` and the page's own files."""
    routes = [Route(endpoint.path, _handler(service, endpoint), methods=[endpoint.method]) for endpoint in ENDPOINTS]
    document = openapi_document()

    async def openapi(request: Request) -> Response:
        return JsonAnswer(document)

    routes += [Route("/openapi.json", openapi), *_page_routes()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})
    return Guard(app, config)  # around everything, so that its headers are on what fails, too


def _handler(service: Service, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        try:
            body = await _body(request, endpoint)
            asked = Asked(request.path_params, request.query_params, body)
            found = await run_in_threadpool(_answered, service, endpoint, asked)
        except EmbedpipeError as problem:
            status = next((status for kind, status in _STATUS if isinstance(problem, kind)), 500)
            found = _error(status, problem.what, problem.remedy)
        service.metrics.count(endpoint.name, found.status_code)
        return found

    return handle


def _answered(service: Service, endpoint: Endpoint, asked: Asked) -> Response:
    """In a thread: the answer, written as JSON there too."""
    found = endpoint.answer(service, asked)
    return found if isinstance(found, Response) else JsonAnswer(found)


async def _body(request: Request, endpoint: Endpoint) -> Any:
    if endpoint.body is None:
        return None
    if endpoint.strict and request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "send JSON, as application/json")
    try:
        return endpoint.body.model_validate_json(await request.body())
    except ValidationError as problem:
        wrong = problem.errors(include_url=False, include_context=False, include_input=False)
        said = "; ".join(f"{'.'.join(map(str, it['loc'])) or 'body'}: {it['msg']}" for it in wrong[:5])
        raise InputError(said[:_SAID], "See /openapi.json") from None


def _page_routes() -> list[Route]:
    """The page's files, read once: an address is one of these names or nothing."""
    found = []
    for entry in sorted(package_files(__package__).joinpath("page").iterdir(), key=lambda it: it.name):
        ending = entry.name[entry.name.rfind(".") :]
        if ending in _TYPES:
            path = "/" if entry.name == "index.html" else f"/page/{entry.name}"
            found.append(Route(path, _file(entry.read_bytes(), _TYPES[ending])))
    return found


def _file(content: bytes, media: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=media, headers={"cache-control": "no-cache"})

    return answer


async def _refused(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    return _error(problem.status_code, str(problem.detail), "", dict(problem.headers or {}))


async def _failed(request: Request, problem: Exception) -> Response:
    said = (request.method, visible(request.url.path)[:_SAID], type(problem).__name__, visible(str(problem)))
    logger.error("%s %s: %s: %s", *said, exc_info=logger.isEnabledFor(logging.DEBUG))
    return _error(500, "internal error", "The terminal of the server says more")


def _error(status: int, what: str, remedy: str, headers: dict[str, str] | None = None) -> Response:
    return JsonAnswer({"error": what, **({"remedy": remedy} if remedy else {})}, status, headers)
