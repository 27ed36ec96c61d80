"""Under load and abuse: who is let in, how much, and what they are told."""

import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Running, events, running

from conftest import build
from langbridge.errors import ConfigError, EngineError
from langbridge.serve.settings import ServeSettings

KEYS = ("the first key of two", "the second key of two")
LONG: dict[str, Any] = {"model": "tiny", "prompt": "who?", "max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    with running(build(), most_completions=4, rows=2, most_bytes=2000, most_new_tokens=240) as found:
        yield found


def raw(server: Running, request: bytes) -> socket.socket:
    """Send bytes; the answer is left unread."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(request)
    return connection


def asking(fields: dict[str, Any], path: str = "/v1/completions") -> bytes:
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def outcomes(server: Running, outcome: str) -> float:
    """How many requests ended so."""
    lines = server.get("/metrics")[1].splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith("langbridge_requests_total") and f'outcome="{outcome}"' in line
    )


def wait_for(condition: Any) -> None:
    """Return when something is so; a test that waits in vain is ended from outside."""
    while not condition():
        threading.Event().wait(0.005)


def test_keys() -> None:
    with running(build(), api_keys=KEYS) as server:
        for key in KEYS:
            status, _ = server.get("/v1/models", Authorization=f"Bearer {key}")
            assert status == 200
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEYS[0]}, {"Authorization": "Bearer "}):
            status, found = server.get("/v1/models", **header)
            assert status == 401
            assert found["error"]["code"] == "invalid_api_key"
            assert server.get("/metrics", **header)[0] == 401
        assert server.post("/v1/completions", b"not even JSON")[0] == 401  # it is not read
        assert server.get("/health")[0] == server.get("/")[0] == 200


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"host": "0.0.0.0"}, "can be reached by others"),
        ({"host": "example.org"}, "can be reached by others"),
        ({"api_keys": ("short",)}, "at least 16"),
        ({"most_bytes": 0}, "most_bytes must be positive"),
        ({"port": 70000}, "a port up to 65535"),
        ({"name": "a:b"}, "nor hold a colon"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ServeSettings(**settings)
    assert ServeSettings(host="::1").loopback
    assert not ServeSettings(host="0.0.0.0", api_keys=KEYS).loopback


def test_a_foreign_name_for_this_machine_is_refused(tiny: Running) -> None:
    """A page elsewhere must not reach a server without keys through the browser of whoever runs it."""
    assert tiny.get("/v1/models", Host="evil.example")[0] == 403
    assert tiny.get("/v1/models", Host=f"localhost:{tiny.port}")[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "complaint"),
    [
        ("/v1/completions", b"{", 400, "not JSON"),
        ("/v1/completions", {"model": "tiny"}, 400, "prompt: Field required"),
        ("/v1/completions", {"model": "tiny", "prompt": ""}, 400, "empty"),
        ("/v1/completions", {"model": "tiny", "prompt": []}, 400, "prompt"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "tools": []}, 400, "tools: Extra inputs"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 241}, 400, "more than the 240"),
        ("/v1/completions", {"model": "tiny", "prompt": "x" * 100, "max_tokens": 200}, 400, "more than the LM's 256"),
        ("/v1/completions", {"model": "tiny", "prompt": "\ud800"}, 400, "half a character"),
        ("/v1/completions", {"model": "\udfff", "prompt": "x"}, 400, "model"),
        ("/v1/completions", {"model": "tiny:best", "prompt": "x"}, 404, "no model 'tiny:best'"),
        ("/v1/completions", {"model": "tiny:raw", "prompt": [999]}, 400, "token 999"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "n": 5}, 400, "takes 4 in all"),
        ("/v1/completions", b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400, "temperature"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "stop": [""]}, 400, "stop"),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 0}, 400, "echo only"),
        ("/v1/chat/completions", {"model": "tiny:raw", "messages": [{"role": "user", "content": "x"}]}, 400, "raw"),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
        ("/v1/embeddings", {"model": "tiny", "input": "x", "dimensions": 7}, 400, "have 24, got 7"),
        ("/v1/nothing", {}, 404, "Not Found"),
    ],
)
def test_mistakes_are_told_in_openais_form(tiny: Running, path: str, body: Any, status: int, complaint: str) -> None:
    found, answer = tiny.post(path, body)
    assert found == status
    assert complaint in answer["error"]["message"]
    assert "Traceback" not in json.dumps(answer)


def test_large_bodies_are_not_read(tiny: Running) -> None:
    status, found = tiny.post("/v1/completions", {"model": "tiny", "prompt": "x" * 3000})
    assert status == 413
    assert "more than 2000 bytes" in found["error"]["message"]
    chunks = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunks += b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b" " * 1024 + b"\r\n400\r\n" + b" " * 1024 + b"\r\n"
    with raw(tiny, chunks) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_full_server_says_when_to_come_back(tiny: Running) -> None:
    streams = [raw(tiny, asking({**LONG, "stream": True})) for _ in range(4)]
    wait_for(lambda: tiny.service.gate.inside == 4)
    with raw(tiny, asking({**LONG, "max_tokens": 1})) as connection:
        answer = connection.recv(4000).decode()
    assert answer.startswith("HTTP/1.1 429")
    assert "retry-after: " in answer.lower()
    for stream in streams:
        stream.close()
    wait_for(lambda: tiny.service.gate.inside == 0)
    assert tiny.complete("who?")["choices"][0]["finish_reason"]


@pytest.mark.parametrize("stream", [True, False])
def test_whoever_leaves_frees_the_slot(tiny: Running, stream: bool) -> None:
    before = outcomes(tiny, "cancelled")
    connection = raw(tiny, asking({**LONG, "stream": stream, "n": 2}))
    wait_for(lambda: tiny.service.engine.load().running == 2)
    connection.close()
    wait_for(lambda: tiny.service.engine.load().running == 0 and tiny.service.gate.inside == 0)
    assert outcomes(tiny, "cancelled") == before + 1


def test_late_requests_are_given_up() -> None:
    with running(build(), timeout=0.02) as server:
        status, found = server.post("/v1/completions", {**LONG, "n": 16})
        assert status == 504
        assert "longer than 0.02 s" in found["error"]["message"]
        wait_for(lambda: server.service.engine.load().running == 0)
        assert outcomes(server, "timeout") == 1


def test_a_broken_engine_is_told_without_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    """An engine that is closed behind the server's back: status 503, also in the midst of a stream."""
    with running(build()) as server:
        status, stream = 0, ""

        def listen() -> None:
            nonlocal status, stream
            status, stream = server.post("/v1/completions", {**LONG, "n": 8, "stream": True})

        thread = threading.Thread(target=listen)
        thread.start()
        wait_for(lambda: server.service.engine.load().running == 8)
        closing = server.service.engine._closing = True  # as if its thread had died
        assert closing
        thread.join()
        assert status == 200
        last = json.loads(stream.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["type"] == "engine_error"
        status, found = server.post("/v1/completions", LONG)
        assert status == 503
        assert found["error"]["message"] == "the engine is closed."
        assert isinstance(EngineError("x"), Exception)


def test_logs_hold_no_text_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "langbridge.serve")
    secret = "my secret"
    for log_prompts in (False, True):
        caplog.clear()
        with running(build(), log_prompts=log_prompts) as server:
            answer = server.complete(secret, model="tiny:plain")["choices"][0]["text"]
            wait_for(lambda: any('"request"' in record.getMessage() for record in caplog.records))
        lines = [json.loads(r.getMessage()) for r in caplog.records if r.getMessage().startswith("{")]
        assert [line["outcome"] for line in lines] == ["ok"]
        assert lines[0]["completion_tokens"] > 0
        assert (secret in caplog.text, lines[0].get("answers")) == (log_prompts, [answer] if log_prompts else None)


def test_metrics_count_requests_and_tokens(tiny: Running) -> None:
    before = tiny.get("/metrics")[1]
    found = tiny.complete("who?")
    after = tiny.get("/metrics")[1]

    def tokens(page: str, kind: str) -> float:
        lines = [line for line in page.splitlines() if line.startswith(f'langbridge_tokens_total{{kind="{kind}"}}')]
        return float(lines[0].split()[-1]) if lines else 0.0

    for kind in ("prompt", "completion", "encoder"):
        assert tokens(after, kind) - tokens(before, kind) == found["usage"][f"{kind}_tokens"]


def test_stopping_lets_requests_end_and_nobody_in() -> None:
    with running(build()) as server:
        connection = raw(server, asking({**LONG, "stream": True, "n": 4}))
        wait_for(lambda: server.service.engine.load().running == 4)
        server.stop()
        wait_for(lambda: server.service.gate.stopping)
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        assert "data: [DONE]" in answer
        assert answer.count('"finish_reason": "length"') == 4
        connection.close()


def test_stopping_tells_whoever_takes_too_long() -> None:
    with running(build(), drain=0.0) as server:
        streams = [raw(server, asking({**LONG, "stream": stream, "n": 8})) for stream in (True, False)]
        wait_for(lambda: server.service.engine.load().running == 16)
        server.stop()
        answers = [b"".join(iter(lambda c=c: c.recv(65536), b"")).decode() for c in streams]
        assert answers[1].startswith("HTTP/1.1 503")
        for text in answers:
            assert "the engine was closed before this request was finished" in text
        for connection in streams:
            connection.close()


def test_streams_of_a_quick_answer_are_whole(tiny: Running) -> None:
    found = events(tiny.post("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 1, "stream": True})[1])
    assert [choice["finish_reason"] is None for event in found for choice in event["choices"]] == [False]
