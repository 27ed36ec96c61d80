"""Malformed requests, made from the server's own document: each is answered, and none with status 500."""

import http.client
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from serving import chatting, running

from conftest import build

COUNT = 300


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    path = Path(__file__).parent.parent.parent / "bench" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [1, 2])
def test_no_malformed_request_breaks_the_server(fuzz: ModuleType, seed: int) -> None:
    statuses: Counter[int] = Counter()
    with running(chatting(build())) as server:
        document = server.get("/openapi.json")[1]
        names = ["tiny", "tiny:bridge", "tiny:plain", "tiny:raw"]
        for one in fuzz.attempts(document, COUNT, seed=seed, names=names):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.request(one.method, one.path, one.body, one.headers)
            reply = connection.getresponse()
            text = reply.read().decode()
            statuses[reply.status] += 1
            assert reply.status < 500, (one, text)
            assert "internal_error" not in text, (one, text)
            if reply.status >= 400:
                assert json.loads(text)["error"]["message"], one
            connection.close()
        assert server.service.gate.inside == 0
        assert server.complete("who?")["choices"][0]["finish_reason"]
    assert statuses[200] > COUNT / 20  # some get far
    assert statuses[400] > COUNT / 3
