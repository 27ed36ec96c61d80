"""Chromium without a window, driven over its own protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page:
    """One page of a browser."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.numbers = socket, itertools.count(1)
        self.errors: list[str] = []
        """What the page complained of."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> Any:
        """Ask the browser for something."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": given}))
        while True:
            found = json.loads(self.socket.recv(timeout=60))
            if found.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(found["params"]["exceptionDetails"]))
            if found.get("method") == "Log.entryAdded" and found["params"]["entry"]["source"] != "network":
                self.errors.append(found["params"]["entry"]["text"])
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]

    def run(self, script: str) -> Any:
        """Return what a script gives."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Return when a script gives something true; the page itself waits, a minute at most."""
        wait = f"""new Promise((yes, no) => {{
            const began = Date.now();
            (function look() {{
                if ({script}) yes(true);
                else if (Date.now() - began > 60000) no(new Error({json.dumps(script)}));
                else setTimeout(look, 10);
            }})();
        }})"""
        self.run(wait)

    def open(self, url: str) -> None:
        """Load a page."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href.startsWith('http')")

    def leave(self) -> None:
        """Let go of the page and its connections."""
        self.call("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")

    def press(self, key: str, code: int, *, control: bool = False, text: str = "") -> None:
        """Press a key."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 if control else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Write text where the focus is."""
        self.call("Input.insertText", text=text)

    def screen(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Choose the size of the window, and what the user likes."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def picture(self, path: Path) -> None:
        """Write what the page looks like, all of it."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """Open a page while the block runs; skips where there is no Chromium."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium: install one of {', '.join(NAMES)}")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += [f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen([program, *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "DevTools listening on" in line), "")
        if not line:
            pytest.skip("Chromium does not start here")
        host = line.split("ws://")[1].split("/")[0]
        with urllib.request.urlopen(f"http://{host}/json/list", timeout=60) as reply:
            address = next(one for one in json.load(reply) if one["type"] == "page")["webSocketDebuggerUrl"]
        with connect(address, max_size=2**26) as socket:
            yield Page(socket)
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
