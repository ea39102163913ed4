"""Chromium without a window, told what to do over its pipe for debuggers: JSON, a zero behind each message."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_READ, _WRITE = 3, 4  # the files that --remote-debugging-pipe uses


def find_chromium() -> str:
    """Its path. Without it the test is skipped, and fails in CI, which installs it."""
    path = shutil.which("chromium")
    if path is None and not os.environ.get("CI"):
        pytest.skip("needs chromium")
    assert path is not None, "CI has no chromium"
    return path


class Page:
    """A page that is open in a browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._read = b""
        self._count = 0
        self._session: str | None = None

    def open(self, address: str) -> None:
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.tell("Page.navigate", url=address)

    def tell(self, method: str, **params: Any) -> Any:
        """Send a command of the DevTools protocol, and wait for its result."""
        self._count += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = json.dumps({"id": self._count, "method": method, "params": params, **session})
        os.write(self._commands, message.encode() + b"\0")
        while (said := self._next()).get("id") != self._count:
            pass  # an event
        assert "error" not in said, said
        return said["result"]

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression."""
        done = self.tell("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 90) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.value(expression)):
            assert time.monotonic() < deadline, f"{expression} stays {value!r}: {self.value('document.body.innerText')}"
            time.sleep(0.2)
        return value

    def type(self, text: str) -> None:
        """Text into what has the focus, and Enter."""
        self.tell("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.tell(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    def _next(self) -> Any:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], 90)
            assert ready, "the browser says nothing"
            part = os.read(self._answers, 1 << 16)
            assert part, "the browser has ended"
            self._read += part
        message, self._read = self._read.split(b"\0", 1)
        return json.loads(message)


@contextmanager
def opened(address: str, profile: Path) -> Iterator[Page]:
    """A page in a browser of its own. profile: a folder for what the browser writes."""
    ours, theirs = os.pipe(), os.pipe()
    to_browser, from_browser = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1]))

    def connect() -> None:
        os.dup2(to_browser, _READ)
        os.dup2(from_browser, _WRITE)

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    command = [find_chromium(), *flags, "--window-size=1000,640", "about:blank"]
    browser = subprocess.Popen(
        command, preexec_fn=connect, pass_fds=(_READ, _WRITE), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for end in (ours[0], theirs[1], to_browser, from_browser):
        os.close(end)
    try:
        page = Page(ours[1], theirs[0])
        page.open(address)
        yield page
    finally:
        browser.terminate()
        browser.wait(30)
        os.close(ours[1])
        os.close(theirs[0])
