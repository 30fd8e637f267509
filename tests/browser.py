"""A real Chromium without a window: what a page asks for, complains about, and shows."""

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websocket import create_connection

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-extensions"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*"),
)
START_SECONDS = 60
QUIET_SECONDS = 1.0


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Visit:
    """What happened while a page was open."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    answer: Any = None
    screenshot: bytes = b""


def visit(browser: str, url: str, expression: str, folder: Path) -> Visit:
    """Open a page, wait until it has loaded and is quiet, and evaluate an expression in it."""
    with _running(browser, folder) as port:
        socket = create_connection(_new_page(port), timeout=START_SECONDS)
        try:
            return _Session(socket).visit(url, expression)
        finally:
            socket.close()


@contextmanager
def _running(browser: str, folder: Path) -> Iterator[int]:
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield _port(process)
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()


def _port(process: subprocess.Popen) -> int:
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"DevTools listening on ws://[^:]+:(\d+)/", line):
            return int(found[1])
    raise AssertionError(f"the browser did not start: {''.join(lines[-10:])}")


def _new_page(port: int) -> str:
    from urllib.request import ProxyHandler, Request, build_opener

    request = Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    with build_opener(ProxyHandler({})).open(request, timeout=START_SECONDS) as answer:
        return json.load(answer)["webSocketDebuggerUrl"]


class _Session:
    def __init__(self, socket) -> None:
        self.socket, self.number, self.found, self.loaded = socket, 0, Visit(), False

    def visit(self, url: str, expression: str) -> Visit:
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        self.listen_until(lambda: self.loaded)
        self.listen_for(QUIET_SECONDS)
        self.found.answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        self.found.screenshot = base64.b64decode(data)
        return self.found

    def call(self, method: str, **params: Any) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self.take(message)

    def listen_until(self, done) -> None:
        end = time.monotonic() + START_SECONDS
        while not done():
            assert time.monotonic() < end, "the page did not load"
            self.take(json.loads(self.socket.recv()))

    def listen_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.call("Runtime.evaluate", expression="0")
            time.sleep(0.05)

    def take(self, message: dict) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.found.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.found.complaints.append(params["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.found.complaints.append(f"{params['type']}: {params['args']}")
        elif method == "Log.entryAdded":
            self.found.complaints.append(params["entry"]["text"])
