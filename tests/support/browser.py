"""A headless Chromium that a test drives, over the pipe of the DevTools protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

BROWSER = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
PATIENCE = 60.0  # seconds for what a page is waited for

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)


class Browser:
    """One page of a browser with a profile of its own, as a context.

    Attributes:
        complaints: what the page wrote to its console, and errors of its scripts.
    """

    def __init__(self, profile: Path, width: int) -> None:
        self.complaints: list[Any] = []
        self.last = 0
        self.rest = b""
        ours, theirs = os.pipe(), os.pipe()
        ends = (theirs[0], ours[1])
        command = ["chromium", *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
        # the shell gives the browser the two numbers on which it looks for its pipes
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", *command],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pipes = ours[0], theirs[1]
        for end in ends:
            os.close(end)
        try:
            self._show_page(width)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _show_page(self, width: int) -> None:
        self.session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for end in self.pipes:
            os.close(end)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.pipes[1], json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(answer["params"])
            if answer.get("id") == self.last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.pipes[0], 1 << 16)
            assert part, "the browser is gone"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, address: str) -> None:
        self.ask("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """Of an expression in the page, None where the page is just being replaced."""
        return self.ask("Runtime.evaluate", expression=expression)["result"].get("value")

    def wait(self, holds: Callable[[Any], bool], expression: str) -> Any:
        """The value of an expression as soon as it is as wanted."""
        end = time.monotonic() + PATIENCE
        while not holds(value := self.value(expression)):
            assert time.monotonic() < end, f"{expression} is {value!r}"
            time.sleep(0.02)
        return value

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")
