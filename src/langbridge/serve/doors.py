"""In front of the application: keys, hosts, and the size of bodies; a request that may not pass is not read."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from langbridge.serve.gate import OPEN, Keys
from langbridge.serve.replies import error_reply
from langbridge.serve.settings import ServeSettings

OWN = ("localhost", "127.0.0.1", "::1")


class Doors:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings
        self.keys = Keys(settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._expected(headers.get("host", "")):
            reply = error_reply(403, "this server answers on this machine only, by its own name.", "wrong_host")
        elif scope["path"] not in OPEN and not self.keys.admit(headers.get("authorization", "")):
            reply = error_reply(401, "no valid API key: send `Authorization: Bearer KEY`.", "invalid_api_key")
            reply.headers["WWW-Authenticate"] = "Bearer"
        elif _stated(headers) > self.settings.most_bytes:
            reply = self._too_large()
        else:
            await self._pass(scope, receive, send)
            return
        await reply(scope, receive, send)

    def _expected(self, host: str) -> bool:
        """Tell whether a browser was not led here by a foreign name; with keys, any name will do."""
        return bool(self.settings.api_keys) or (urlsplit(f"//{host}").hostname or "") in (*OWN, self.settings.host)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        read, refused = 0, False

        async def counted() -> Message:
            """Take a part of the body; where it grows beyond the limit, it ends there."""
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.settings.most_bytes and not refused:
                refused = True
                await self._too_large()(scope, receive, send)
            return {"type": "http.disconnect"} if refused else message

        async def unless_refused(message: Message) -> None:
            if not refused:
                await send(message)

        await self.app(scope, counted, unless_refused)

    def _too_large(self) -> Response:
        limit = self.settings.most_bytes
        reply = error_reply(413, f"the request has more than {limit} bytes, which is the most here.", "too_large")
        reply.headers["Connection"] = "close"
        return reply


def _stated(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
