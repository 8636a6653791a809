"""Headless Chromium by its own driver, over the WebDriver protocol (W3C WebDriver)."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.interop.programs import need

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Browser:
    """One window."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self._http, self._at = http, f"/session/{session}"

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def fill(self, name: str, value: str) -> None:
        """As a paste does it: typing tens of thousands of keys would take long."""
        self.run("document.getElementById(arguments[0]).value = arguments[1]", name, value)

    def choose(self, name: str, file: Path) -> None:
        self._post(f"/element/{self._find('#' + name)}/value", {"text": str(file)})

    def click(self, selector: str) -> None:
        self._post(f"/element/{self._find(selector)}/click", {})

    def run(self, script: str, *arguments: object) -> Any:
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: object) -> Any:
        """Until the script calls its last argument; that is the result."""
        return self._post("/execute/async", {"script": script, "args": list(arguments)})

    def _find(self, selector: str) -> str:
        return str(self._post("/element", {"using": "css selector", "value": selector})[_ELEMENT])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.post(self._at + path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Skips, loudly, where Chromium or its driver is not installed."""
    chromium, driver = need("chromium"), need("chromedriver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        port = next(line.split()[-1].strip(".") for line in process.stdout if "started successfully on port" in line)
        options = {"binary": chromium, "args": [*_FLAGS, f"--user-data-dir={folder}"]}
        wanted = {"capabilities": {"alwaysMatch": {"acceptInsecureCerts": True, "goog:chromeOptions": options}}}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            made = http.post("/session", json=wanted)
            assert made.status_code == 200, made.text
            session = made.json()["value"]["sessionId"]
            try:
                yield Browser(http, session)
            finally:
                http.delete(f"/session/{session}")
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
