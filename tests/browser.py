"""A headless Chromium that tests drive: through a pipe, by its DevTools protocol."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"
)
_PATIENCE = 60.0  # seconds


class Tab:
    """A page that is open.

    Attributes:
      errors: what the page complained of, from uncaught exceptions to refused requests.
    """

    def __init__(self, commands: int, replies: int):
        self._commands, self._replies = commands, replies
        self._number, self._session, self._received = 0, None, b""
        self.errors: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            reply = self._receive()
            if reply.get("id") == self._number:
                assert "error" not in reply, reply["error"]
                return reply["result"]

    def open(self, uri: str, width: int = 1200, height: int = 900) -> None:
        """Shows an address in a window of so many pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.navigate", url=uri)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(uri)}")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def ask(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self.ask(expression):
            assert time.monotonic() < end, f"never became true: {expression}"
            time.sleep(0.05)

    def click(self, selector: str, number: int = 0) -> None:
        """A mouse click at the middle of an element, as a person's."""
        element = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        self.ask(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.ask(f"{element}.getBoundingClientRect().toJSON()")
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for type in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=type, button="left", clickCount=1, **place)

    def press(self, key: str) -> None:
        """A key, by the name that JavaScript has for it."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._replies], [], [], _PATIENCE)
            assert ready, "the browser is silent"
            data = os.read(self._replies, 1 << 16)
            assert data, "the browser has ended"
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        reply = json.loads(message)
        if reply.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(reply["params"]["exceptionDetails"]))
        elif reply.get("method") == "Log.entryAdded":
            self.errors.append(json.dumps(reply["params"]["entry"]))
        elif reply.get("method") == "Runtime.consoleAPICalled":
            self.errors.append(json.dumps(reply["params"]["args"]))
        return reply


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab without network, silent, and free to play. profile: an empty folder."""
    ours, theirs = [], []
    for reads in (True, False):  # the browser: first its commands, then its replies
        read, write = os.pipe()
        ours.append(write if reads else read)
        theirs.append(fcntl.fcntl(read if reads else write, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(read if reads else write)
    flags = (
        "--headless --no-sandbox --disable-gpu --hide-scrollbars --mute-audio --no-first-run "
        "--proxy-server=127.0.0.1:9 --autoplay-policy=no-user-gesture-required "
        "--remote-debugging-pipe"
    )
    # The browser expects its pipes at the descriptors 3 and 4; the shell puts them there.
    script = f'exec "$0" {flags} "--user-data-dir=$1" 3<&{theirs[0]} 4>&{theirs[1]}'
    process = subprocess.Popen(
        ["bash", "-c", script, str(CHROMIUM), str(profile)],
        pass_fds=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in theirs:
        os.close(end)
    try:
        yield Tab(*ours)
    finally:
        process.terminate()
        process.wait(timeout=_PATIENCE)
        for end in ours:
            os.close(end)
