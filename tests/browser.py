"""Chromium without a window, so that a test sees a page as its reader does.

The browser is driven over two pipes by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol):
JSON messages, each closed by a zero byte, to the browser's file descriptor 3 and from its 4.
"""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="needs the program chromium (Debian's package chromium)")
SECONDS = 60  # that an answer may take on a machine that is busy
SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # root, as in a container, has none; the pages are our own
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
)


class Browser:
    """One tab. `errors` holds what the console and uncaught exceptions said since the page was opened."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM
        theirs, self._to = os.pipe()
        self._from, answers = os.pipe()
        words = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{answers}', "bash", PROGRAM, *OPTIONS]
        self._process = subprocess.Popen([*words, f"--user-data-dir={profile}"], pass_fds=(theirs, answers), **SILENT)
        os.close(theirs)
        os.close(answers)
        self._read, self._number, self._session = b"", 0, ""
        self.errors: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, page: Path, width: int, height: int) -> None:
        """Load a file in a window of so many CSS pixels; one narrower than 600 is a phone's. Returns when all of the
        page is there."""
        self.errors.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=page.as_uri())
        self.value("new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))")

    def value(self, script: str) -> Any:
        """What a JavaScript expression gives on the page, or the promise that it gives."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Click with the mouse on the middle of the first element that the CSS selector names."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{element}.scrollIntoView({{block: 'center', inline: 'center'}})")
        x, y = self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def close(self) -> None:
        os.close(self._to)  # the browser then ends
        self._process.wait(SECONDS)
        os.close(self._from)

    def _next(self) -> dict[str, Any]:
        """The next message. What the page complains about is kept."""
        until = time.monotonic() + SECONDS
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._from], [], [], max(until - time.monotonic(), 0))
            piece = os.read(self._from, 1 << 16) if ready else b""
            assert piece, f"{PROGRAM}: no answer; it {'is silent' if ready == [] else 'has ended'}"
            self._read += piece
        text, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        said = message.get("params", {})
        kind = message.get("method")
        if kind == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif kind == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(part.get("value")) for part in said["args"]))
        elif kind == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"]["text"])
        return message
