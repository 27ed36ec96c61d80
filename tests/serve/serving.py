"""A real server on a real port, in a thread of the test's own process."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from langbridge.checkpoint import LangBridge
from langbridge.config import RoutingConfig
from langbridge.engine.transformers import TransformersEngine
from langbridge.prompt import PromptTemplate
from langbridge.serve.app import make_app
from langbridge.serve.run import Server, bind
from langbridge.serve.service import Service
from langbridge.serve.settings import ServeSettings

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.first %}{{ raise_exception('no') }}{% endif %}"
    "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A chat template of plain letters, that wants the user to begin."""


def chatting(model: LangBridge) -> LangBridge:
    """Give a tiny model's LM a chat template, and the run that template."""
    model.lm_tokenizer.chat_template = CHAT
    model.template = PromptTemplate.of("chat", model.lm_tokenizer)
    return model


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    port: int
    service: Service
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Ask it to stop, as SIGTERM does; it stops when the block ends."""
        self.server.should_exit = True

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self._ask(urllib.request.Request(self.url + path, headers=headers))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **{name.replace("_", "-"): v for name, v in headers.items()}}
        return self._ask(urllib.request.Request(self.url + path, data=data, headers=headers))

    def complete(self, prompt: Any, **given: Any) -> Any:
        """Ask greedily for a completion, and return it."""
        fields = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0, **given}
        status, found = self.post("/v1/completions", fields)
        assert status == 200, found
        return found

    def chat(self, *turns: tuple[str, str], **given: Any) -> Any:
        """Ask greedily for a chat's next turn, and return it."""
        messages = [{"role": role, "content": text} for role, text in turns]
        fields = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0, **given}
        status, found = self.post("/v1/chat/completions", fields)
        assert status == 200, found
        return found

    @staticmethod
    def _ask(request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, _read(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _read(error)


def _read(reply: Any) -> Any:
    body = reply.read()
    return json.loads(body) if "json" in (reply.headers.get("content-type") or "") else body.decode()


@contextmanager
def running(
    model: LangBridge, *, rows: int = 32, routing: RoutingConfig | None = None, **settings: Any
) -> Iterator[Running]:
    """Serve a model while the block runs."""
    chosen = ServeSettings(**{"name": "tiny", "port": 0, "drain": 20.0, **settings})
    listening = bind(chosen.host, chosen.port)
    service = Service(model, TransformersEngine(model, most_rows=rows), chosen, routing or RoutingConfig())
    config = uvicorn.Config(make_app(service), access_log=False, log_config=None, timeout_graceful_shutdown=60)
    server = Server(config, service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        yield Running(listening.getsockname()[1], service, server)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def events(stream: Any) -> list[Any]:
    """The events of a stream that was read whole."""
    parts = [part.removeprefix("data: ") for part in stream.split("\n\n") if part]
    assert parts[-1] == "[DONE]"
    return [json.loads(part) for part in parts[:-1]]
