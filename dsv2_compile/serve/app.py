"""The paths of the server, and what every request goes through."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dsv2_compile.serve import body, metrics
from dsv2_compile.serve.errors import ApiError, internal, shutting_down
from dsv2_compile.serve.exchange import LEFT, Exchange
from dsv2_compile.serve.reply import Reply
from dsv2_compile.serve.service import Service

COMPLETIONS, CHAT, MODELS, HEALTH, METRICS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/health",
    "/metrics",
)

_log = logging.getLogger("dsv2_compile.serve")


def app(service: Service) -> ASGIApp:
    async def completions(request: Request) -> Reply:
        return await _begin(service, request, False)

    async def chat_completions(request: Request) -> Reply:
        return await _begin(service, request, True)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != service.options.name:
            raise ApiError(404, f"There is no model {name[:200]!r} here.", "model", "model_not_found")
        return JSONResponse(_model(service))

    async def health(request: Request) -> Response:
        if not service.healthy:
            raise shutting_down()
        return JSONResponse({"status": "ok"})

    async def measured(request: Request) -> Response:
        text = service.metrics.text(service.scheduler.stats)
        return PlainTextResponse(text, headers={"content-type": metrics.CONTENT_TYPE})

    routes = [
        Route(COMPLETIONS, completions, methods=["POST"]),
        Route(CHAT, chat_completions, methods=["POST"]),
        Route(MODELS, models),
        Route(MODELS + "/{name:path}", model),
        Route(HEALTH, health),
        Route(METRICS, measured),
    ]
    handlers: dict[Any, Any] = {ApiError: _told, HTTPException: _told_by_starlette, ClientDisconnect: _nobody}
    return _Guard(service, Starlette(routes=routes, exception_handlers=handlers))


async def _begin(service: Service, request: Request, is_chat: bool) -> Reply:
    began = time.perf_counter()
    if not service.healthy:
        raise shutting_down()
    data = await body.read(request, service.options.max_body, service.options.client_timeout)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service.workers, service.begin, data, is_chat, began, loop)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.options.name,
        "object": "model",
        "created": service.created,
        "owned_by": "dsv2-compile",
        "max_model_len": service.max_tokens,
    }


def _response(e: ApiError) -> Response:
    return JSONResponse(e.body(), e.status, e.headers)


async def _told(request: Request, e: ApiError) -> Response:
    return _response(e)


async def _told_by_starlette(request: Request, e: HTTPException) -> Response:
    """404 and 405."""
    message = f"{request.method} {request.url.path[:200]}: {e.detail}."
    return _response(ApiError(e.status_code, message, headers=dict(e.headers or {})))


async def _nobody(request: Request, e: ClientDisconnect) -> Response:
    return Response(status_code=LEFT)


class _Guard:
    """Around all paths: the API key, the count of responses, and what nobody foresaw."""

    def __init__(self, service: Service, inner: ASGIApp) -> None:
        self._service, self._inner = service, inner
        key = service.options.api_key
        self._expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(receive, send)
        path = _label(scope["path"])
        works = path in (COMPLETIONS, CHAT)
        self._service.active += works
        try:
            error = self._refusal(scope)
            answer = self._inner if error is None else _response(error)
            await answer(scope, exchange.receive, exchange.send)
        except Exception:
            _log.exception("%s %s", scope["method"], scope["path"])
            if exchange.status == LEFT:
                await _response(internal())(scope, exchange.receive, exchange.send)
        finally:
            self._service.active -= works
            self._service.metrics.responded(path, exchange.status)

    def _refusal(self, scope: Scope) -> ApiError | None:
        if self._expected is None or scope["path"] == HEALTH:
            return None
        given = Headers(scope=scope).get("authorization", "").encode()
        if hmac.compare_digest(given, self._expected):
            return None
        return ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")


def _label(path: str) -> str:
    """One of few words for the metrics, whatever paths are asked for."""
    if path.startswith(MODELS):
        return MODELS
    return path if path in (COMPLETIONS, CHAT, HEALTH, METRICS) else "other"
