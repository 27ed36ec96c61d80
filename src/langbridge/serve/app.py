"""The HTTP face of a Service: its paths."""

import base64
import logging
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from langbridge.data.examples import assets
from langbridge.errors import LangBridgeError, PromptError
from langbridge.generate import BridgedGenerator
from langbridge.serve import answers
from langbridge.serve.api import Asked, ChatRequest, CompletionRequest, EmbeddingRequest, ExplainRequest
from langbridge.serve.conversation import Turn
from langbridge.serve.doors import Doors
from langbridge.serve.prompts import RAW, READERS, Prepared
from langbridge.serve.replies import (
    GONE,
    EventStream,
    known_error,
    on_http,
    on_invalid,
    on_known,
    on_unknown,
    unless_gone,
)
from langbridge.serve.service import Ask, Begun, Said, Service

log = logging.getLogger("langbridge.serve")
Kind = answers.Completions | answers.Chats


def make_app(service: Service) -> FastAPI:
    """Return the application; the service is stopped when the application is."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.stop()

    app = FastAPI(title="LangBridge", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(LangBridgeError, on_known)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_unknown)
    app.add_middleware(Doors, settings=service.settings)
    _add_asking(app, service)
    _add_encoding(app, service)
    _add_looking(app, service)
    return app


def _add_asking(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue prompts."""
        ask = completion_ask(service, body)
        form = _form(service, body, logprobs=body.logprobs is not None, echo=bool(body.echo))
        return await _answer(service, ask, answers.Completions(form), body, request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        ask = chat_ask(service, body)
        return await _answer(
            service, ask, answers.Chats(_form(service, body, logprobs=bool(body.logprobs))), body, request
        )


def _add_encoding(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Return what the encoder makes of texts, whatever their language."""
        service.reader(body.model)
        if body.dimensions not in (None, service.model.encoder.dim):
            raise PromptError(f"dimensions: these embeddings have {service.model.encoder.dim}, got {body.dimensions}.")
        found = await unless_gone(request, _embedded(service, body))
        return JSONResponse(found) if found is not None else Response(status_code=GONE)

    @app.post("/v1/explain")
    async def explain(body: ExplainRequest, request: Request) -> Response:
        """Return the LM tokens nearest to each vector of a text's soft prompt."""
        service.reader(body.model)
        found = await unless_gone(request, _explained(service, body))
        return JSONResponse(found) if found is not None else Response(status_code=GONE)


def _add_looking(app: FastAPI, service: Service) -> None:
    name, made = service.settings.name, int(time.time())

    @app.get("/v1/models")
    async def models() -> Response:
        """List the model, and the readers that can stand behind its name."""
        names = [name, *(f"{name}:{reader}" for reader in READERS)]
        data = [{"id": one, "object": "model", "created": made, "owned_by": "langbridge"} for one in names]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/v1/models/{model}")
    async def model(model: str) -> Response:
        """Describe one model."""
        service.reader(model)
        return JSONResponse({"id": model, "object": "model", "created": made, "owned_by": "langbridge"})

    @app.get("/health")
    async def health() -> Response:
        """Tell whether requests are let in."""
        load, gate = service.engine.load(), service.gate
        body = {"status": "stopping" if gate.stopping else "ok", "running": load.running, "waiting": load.waiting}
        return JSONResponse(body, 503 if gate.stopping else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return metrics as Prometheus reads them."""
        return Response(service.telemetry.page(), media_type=CONTENT_TYPE_LATEST)

    if service.settings.playground:
        page = (assets() / "playground.html").read_text(encoding="utf-8").replace("{{model}}", name)

        @app.get("/", include_in_schema=False)
        async def playground() -> Response:
            """Show the playground."""
            return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})


POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'none'"
)
"""What the playground may load: nothing from elsewhere."""


def _form(service: Service, body: Asked, *, logprobs: bool, echo: bool = False) -> answers.Form:
    return answers.Form(model=body.model, decode=service.prompts.decode, n=body.n or 1, logprobs=logprobs, echo=echo)


def completion_ask(service: Service, body: CompletionRequest) -> Ask:
    """Return what a completion request wants."""
    reader, prompts = service.reader(body.model), body.prompts

    async def prepare() -> Sequence[Prepared]:
        return [await service.prompts.completion(prompt, reader) for prompt in prompts]

    most = 16 if body.max_tokens is None else body.max_tokens
    texts = tuple(prompt if isinstance(prompt, str) else str(prompt) for prompt in prompts)
    return _ask("/v1/completions", body, prepare, texts, body.logprobs, most, echo=bool(body.echo))


def chat_ask(service: Service, body: ChatRequest) -> Ask:
    """Return what a chat request wants."""
    reader = service.reader(body.model)
    if reader == RAW:
        raise PromptError("raw reads bare text: use /v1/completions, or ask without :raw.")
    turns = [Turn("system" if m.role == "developer" else m.role, m.text) for m in body.messages]
    slots = service.conversations.slots(turns)

    async def prepare() -> Sequence[Prepared]:
        return [await service.prompts.prepare(slots, reader)]

    logprobs = body.top_logprobs or 0 if body.logprobs else None
    return _ask(
        "/v1/chat/completions",
        body,
        prepare,
        ("\n".join(turn.text for turn in turns),),
        logprobs,
        body.max_completion_tokens or body.max_tokens,
    )


def _ask(
    path: str,
    body: Asked,
    prepare: Callable[[], Any],
    texts: tuple[str, ...],
    logprobs: int | None,
    most: int | None,
    *,
    echo: bool = False,
) -> Ask:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Ask(
        path=path,
        prepare=prepare,
        texts=texts,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        stop=stop,
        seed=body.seed,
        n=body.n or 1,
        logprobs=logprobs,
        most=most,
        echo=echo,
        past_end=body.ignore_eos,
    )


async def _answer(service: Service, ask: Ask, kind: Kind, body: Asked, request: Request) -> Response:
    """Answer whole or as a stream; what is wrong with a request is found before a stream begins."""
    source = service.answers(ask)
    if not body.stream:
        found = await unless_gone(request, _whole(source, kind, ask))
        return JSONResponse(found) if found is not None else Response(status_code=GONE)
    begun = await unless_gone(request, anext(source))
    if begun is None:
        await source.aclose()
        return Response(status_code=GONE)
    assert isinstance(begun, Begun)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    return EventStream(_events(source, begun, kind, with_usage=with_usage))


async def _whole(source: AsyncGenerator[Begun | Said], kind: Kind, ask: Ask) -> answers.Json:
    choices = [answers.Choice() for _ in range(ask.completions)]
    begun = None
    async with aclosing(source) as found:
        async for one in found:
            if isinstance(one, Begun):
                begun = one
            else:
                choices[kind.form.number(one)].add(one)
    assert begun is not None
    return answers.whole(kind, begun, choices)


async def _events(
    source: AsyncGenerator[Begun | Said], begun: Begun, kind: Kind, *, with_usage: bool
) -> AsyncGenerator[bytes]:
    """Yield the events of a stream; an error in its midst is an event too, and the last one."""

    def chunk(*choices: answers.Json, **extra: Any) -> bytes:
        usage = {"usage": None} if with_usage else {}
        return answers.event({**answers.envelope(kind, begun, choices, chunk=True), **usage, **extra})

    async with aclosing(source) as found:
        try:
            for choice in kind.opening(begun):
                yield chunk(choice)
            async for said in found:
                assert isinstance(said, Said)
                piece = said.piece
                if piece.text or piece.finish or kind.form.logprobs:
                    yield chunk(kind.piece(said))
        except LangBridgeError as error:
            yield answers.event(known_error(error)[1])
            return
        except Exception:
            log.exception("a stream broke down")
            yield answers.event({"error": {"message": "the server made a mistake.", "type": "internal_error"}})
            return
    extra = {"usage": answers.usage(begun)} if with_usage else {}
    yield chunk(langbridge=answers.about(begun), **extra)
    yield b"data: [DONE]\n\n"


async def _embedded(service: Service, body: EmbeddingRequest) -> answers.Json:
    texts = [body.input] if isinstance(body.input, str) else body.input
    data: list[answers.Json] = []

    async def work() -> int:
        tokens = 0
        for number, text in enumerate(texts):
            found = await service.encoder.encode(text)
            values = found.pooled.tolist()
            packed = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
            value = packed if body.encoding_format == "base64" else values
            data.append({"object": "embedding", "index": number, "embedding": value})
            tokens += found.tokens
        return tokens

    tokens = await service.encode("/v1/embeddings", work)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "encoder_tokens": tokens}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


async def _explained(service: Service, body: ExplainRequest) -> answers.Json:
    generator, data = BridgedGenerator(service.model), []
    route = None

    async def work() -> int:
        nonlocal route
        route = await service.prompts.route(body.input)
        heard = await service.encoder.run(lambda: generator.explain(body.input, body.nearest))
        for one in heard:
            nearest = [{"token": token, "cosine": cosine} for token, cosine in one.nearest]
            data.append({"encoder_token": one.encoder_token, "nearest": nearest})
        return len(heard)

    await service.encode("/v1/explain", work)
    shown = route.record() if route is not None else None
    return {"object": "list", "data": data, "model": body.model, "route": shown}
