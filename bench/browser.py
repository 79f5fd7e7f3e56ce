"""Headless Chromium, driven through chromedriver's HTTP interface (W3C WebDriver): what a reader sees of a page.

From Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1400,1000",
)  # fmt: skip


def missing() -> str:
    """What keeps a browser from starting here; '' if nothing does."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"{' and '.join(absent)} not found: apt-get install chromium chromium-driver" if absent else ""


class Browser:
    """A browser for as long as a block lasts.

    Raises:
        RuntimeError: from any call, what chromedriver says is wrong.
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
        end = time.monotonic() + 30
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
        self._ask("DELETE", "")
        self._driver.terminate()
        self._driver.wait(30)
        self._profile.cleanup()

    def open(self, path: Path) -> None:
        """Show a file."""
        self._ask("POST", "/url", {"url": path.resolve().as_uri()})

    def click(self, xpath: str) -> None:
        """Click on the first element that `xpath` finds, waiting for it up to ten seconds."""
        self._ask("POST", f"/element/{self._element(xpath)}/click", {})

    def see(self, xpath: str) -> str:
        """The visible text of the first element that `xpath` finds, waiting for it up to ten seconds."""
        return str(self._ask("GET", f"/element/{self._element(xpath)}/text"))

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns that runs in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def errors(self) -> list[str]:
        """What the page has complained of in the console since the last call."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def _element(self, xpath: str) -> str:
        end = time.monotonic() + 10
        while True:
            try:
                found = self._ask("POST", "/element", {"using": "xpath", "value": xpath})
                return str(next(iter(found.values())))
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _ask(self, verb: str, path: str, content: dict[str, Any] | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None
