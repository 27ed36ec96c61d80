"""`langbridge serve` before it serves: what it refuses, and how."""

import socket
from pathlib import Path

import pytest

from langbridge.errors import ConfigError
from langbridge.serve.run import bind
from langbridge.serve_command import KEYS, keys_of, run_name, serve


def test_keys_come_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS, "one key, another key")
    file = tmp_path / "keys"
    file.write_text("third key\n\n  fourth key \n")
    assert keys_of(file) == ["one key", "another key", "third key", "fourth key"]
    monkeypatch.delenv(KEYS)
    assert keys_of(None) == []
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no key"):
        keys_of(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        keys_of(tmp_path / "absent")


def test_what_cannot_be_served_is_refused_before_models_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    with pytest.raises(ConfigError, match="can be reached by others"):
        serve("runs/absent", host="0.0.0.0")
    with pytest.raises(ConfigError, match="at least 16"):
        serve("runs/absent", api_key=["short"])
    with pytest.raises(ConfigError, match="no engine named 'other'; known: transformers"):
        serve("runs/absent", engine="other")


def test_a_taken_port_is_named() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="choose another --port"):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="cannot listen"):
        bind("no.such.host.invalid", 0)
    assert isinstance(taken, socket.socket)


def test_names() -> None:
    assert (run_name("embedded"), run_name("runs/mine/"), run_name("someone/their-run")) == (
        "embedded",
        "mine",
        "their-run",
    )
