"""Headless Chromium, driven through chromedriver's HTTP interface (W3C WebDriver), to test what a reader sees.

Needs Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1400,1000",
)  # fmt: skip
_PATIENCE = 60  # seconds: other tests may keep every core busy
# The driver is on this machine: ignore the environment's proxy.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def missing() -> str:
    """Return what prevents a browser from starting here; '' if nothing does."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"{' and '.join(absent)} not found: apt-get install chromium chromium-driver" if absent else ""


class Browser:
    """A browser that runs during a `with` block.

    Raises:
        RuntimeError: from any call, with chromedriver's message.
    """

    def __enter__(self) -> Browser:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._profile = tempfile.TemporaryDirectory()
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._root = f"http://127.0.0.1:{port}"
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                if self._ask("GET", "/status")["ready"]:
                    break
            except OSError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.1)
        options: dict[str, Any] = {"args": [*_FLAGS, f"--user-data-dir={self._profile.name}"]}
        options |= {"binary": shutil.which("chromium")}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._root += f"/session/{self._ask('POST', '/session', {'capabilities': wanted})['sessionId']}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError, OSError):  # a browser that crashed has no session to end
            self._ask("DELETE", "")
        self._driver.terminate()
        self._driver.wait(30)
        self._profile.cleanup()

    def open(self, path: Path) -> None:
        """Show a file."""
        self._ask("POST", "/url", {"url": path.resolve().as_uri()})

    def click(self, xpath: str) -> None:
        """Click on the first element that `xpath` finds; wait until it exists and is clickable."""
        self._patiently(lambda: self._ask("POST", f"/element/{self._element(xpath)}/click", {}))

    def see(self, xpath: str) -> str:
        """Wait for the first element that `xpath` finds; return its visible text."""
        return str(self._patiently(lambda: self._ask("GET", f"/element/{self._element(xpath)}/text")))

    def wait(self, script: str) -> None:
        """Wait until a script in the page returns true.

        Raises:
            RuntimeError: it does not.
        """

        def holds() -> None:
            if not self.run(script):
                raise RuntimeError(f"does not come true: {script}")

        self._patiently(holds)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; return its result."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def resize(self, width: int) -> None:
        """Show pages as a screen of this width would, pixels: a window cannot be as narrow as a phone."""
        screen = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": screen})

    def errors(self) -> list[str]:
        """Return the page's console messages since the last call."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """Write a screenshot as PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def _element(self, xpath: str) -> str:
        found = self._ask("POST", "/element", {"using": "xpath", "value": xpath})
        return str(next(iter(found.values())))

    def _patiently(self, what: Callable[[], Any]) -> Any:
        """Retry until it works: while the page loads, it redraws itself and removes elements that were just found."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return what()
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _ask(self, verb: str, path: str, content: dict[str, Any] | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=verb)
        try:
            with _DIRECT.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None
