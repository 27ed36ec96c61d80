"""Errors in OpenAI's form, and answers that end when whoever asked leaves."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from langbridge.errors import EngineError, LangBridgeError, PromptError
from langbridge.serve.gate import BusyError, StoppingError
from langbridge.serve.service import LateError, UnknownModelError

log = logging.getLogger("langbridge.serve")
Result = TypeVar("Result")
STATUS: dict[type[LangBridgeError], tuple[int, str]] = {
    BusyError: (429, "rate_limit_error"),
    StoppingError: (503, "server_stopping"),
    LateError: (504, "timeout"),
    EngineError: (503, "engine_error"),
    UnknownModelError: (404, "model_not_found"),
    PromptError: (400, "invalid_request_error"),
}
GONE = 499
"""Status of an answer that nobody waits for any more; it is never sent."""


def error_body(message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": kind}}


def error_reply(status: int, message: str, kind: str, param: str | None = None) -> Response:
    """Return an error's response; text that is no text is shown escaped."""
    body = json.dumps(error_body(message, kind, param))  # ASCII: also for half a character
    return Response(body, status, media_type="application/json")


def known_error(error: LangBridgeError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error that has a message for whoever asked."""
    status, kind = STATUS.get(type(error), (400, "invalid_request_error"))
    return status, error_body(str(error), kind)


async def on_known(request: Request, error: Exception) -> Response:
    """Answer a LangBridgeError."""
    assert isinstance(error, LangBridgeError)
    status, body = known_error(error)
    reply = Response(json.dumps(body), status, media_type="application/json")
    if isinstance(error, BusyError):
        reply.headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, StoppingError):
        reply.headers["Retry-After"] = "5"
    return reply


async def on_invalid(request: Request, error: Exception) -> Response:
    """Answer a request whose fields are wrong: which one, and why; never with what it held."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_reply(400, "the body is not JSON.", "invalid_request_error")
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return error_reply(400, f"{where}: {first['msg']}", "invalid_request_error", where)


async def on_http(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses: unknown paths, wrong methods, broken JSON."""
    assert isinstance(error, HTTPException)
    reply = error_reply(error.status_code, str(error.detail), "invalid_request_error")
    reply.headers.update(error.headers or {})
    return reply


async def on_unknown(request: Request, error: Exception) -> Response:
    """Answer a mistake of ours, without telling more than that it happened."""
    return error_reply(500, "the server made a mistake; it is in its log.", "internal_error")


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result | None:
    """Do work for whoever asked; stop and return None when the connection is closed."""
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events; when their reader leaves, their source is closed at once."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until they end or nobody reads them."""
        task = asyncio.create_task(self._send(send))
        watch = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            for one in (task, watch):
                one.cancel()
            await asyncio.gather(task, watch, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async with aclosing(self.source) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for part in events:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
