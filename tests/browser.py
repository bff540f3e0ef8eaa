"""Headless Chromium over its DevTools pipe: what a page shows, what it asked the network for, and pictures of it."""

from __future__ import annotations

import base64
import fcntl
import itertools
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

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DEADLINE_S = 180.0
_READ_FD, _WRITE_FD = 3, 4
"""Where Chromium expects the two ends of its pipe."""

# Pages made of web components keep their text in shadow trees, which `innerText` does not enter.
_DEEP = """
function* walk(root) {
  for (const node of root.querySelectorAll('*')) {
    yield node;
    if (node.shadowRoot) yield* walk(node.shadowRoot);
  }
}
function texts() {
  const found = [];
  for (const node of walk(document))
    if (!['STYLE', 'SCRIPT'].includes(node.tagName))
      for (const child of node.childNodes) if (child.nodeType === 3) found.push(child.data);
  return found.join(' ');
}
function pictures() {
  return [...walk(document)].filter(node => node.tagName === 'IMG' && node.complete && node.naturalWidth > 1);
}
"""


def find_chromium() -> str | None:
    """Path of a Chromium: `CHROMIUM` of the environment, else the first on PATH."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def open(self, url: str) -> None:
        """Begin to load; `wait_for` what is to be seen."""
        self._call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, which may use `walk`, `texts` and `pictures` of `_DEEP`."""
        answer = self._call("Runtime.evaluate", expression=f"{{{_DEEP}; {expression}}}", returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Return when the expression is true."""
        until = time.monotonic() + DEADLINE_S
        while not self.evaluate(expression):
            assert time.monotonic() < until, f"{expression} never became true; the page shows: {self.text()[:2000]}"
            time.sleep(0.2)

    def wait_for_text(self, *parts: str) -> None:
        """Return when the page shows all of these."""
        self.wait_for(f"{json.dumps(parts)}.every(part => texts().includes(part))")

    def text(self) -> str:
        """Everything written on the page, with its shadow trees."""
        return str(self.evaluate("texts()"))

    def photograph(self, path: Path, *, whole: bool = False) -> Path:
        """Write a PNG of what is in view, or of the whole page."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def requests(self) -> list[str]:
        """Addresses that the page asked for, `data:` left out."""
        sent = (event["request"]["url"] for event in self._events("Network.requestWillBeSent"))
        return [url for url in sent if not url.startswith("data:")]

    def errors(self) -> list[str]:
        """Exceptions that nothing on the page caught."""
        return [event["exceptionDetails"]["text"] for event in self._events("Runtime.exceptionThrown")]

    def _events(self, method: str) -> list[Any]:
        return [
            event["params"]
            for event in self._browser.events
            if event["method"] == method and event.get("sessionId") == self._session
        ]

    def _call(self, method: str, **params: Any) -> Any:
        return self._browser.call(method, session=self._session, **params)


class Browser:
    """A running Chromium."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        """Args: file descriptors that commands are written to, and answers and events are read from."""
        self._to, self._from = to_browser, from_browser
        self._ids = itertools.count(1)
        self._unread = b""
        self.events: list[dict[str, Any]] = []

    def page(self, width: int, height: int, *, offline: bool = False) -> Page:
        """A new tab of that size in pixels, without a network if asked for."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", session=session, **size)
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable", session=session)
        if offline:
            cut = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            self.call("Network.emulateNetworkConditions", session=session, **cut)
        return Page(self, session)

    def call(self, method: str, *, session: str | None = None, **params: Any) -> Any:
        """Send a command and return its result; events that arrive before it are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)
        raise AssertionError(f"Chromium ended before it answered {method}")

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Messages as they arrive, until one is asked for and Chromium has ended."""
        while True:
            while b"\0" in self._unread:
                message, _, self._unread = self._unread.partition(b"\0")
                yield json.loads(message)
            assert select.select([self._from], [], [], DEADLINE_S)[0], f"Chromium was silent for {DEADLINE_S:g} s"
            if not (more := os.read(self._from, 1 << 20)):
                return
            self._unread += more


@contextmanager
def open_browser(executable: str, profile: Path) -> Iterator[Browser]:
    """Start Chromium, and end it.

    Args:
        executable: its program.
        profile: folder for what it keeps.
    """
    (read_here, write_there), (read_there, write_here) = os.pipe(), os.pipe()
    # Away from the two numbers that they shall get, so that neither overwrites the other.
    far = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (read_there, write_there)]

    def hand_over() -> None:
        os.dup2(far[0], _READ_FD)
        os.dup2(far[1], _WRITE_FD)

    command = [executable, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    # Our own pages alone; its sandbox does not start for root or in containers.
    command += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "about:blank"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=hand_over,
        close_fds=False,
        start_new_session=True,
    )
    for fd in (read_there, write_there, *far):
        os.close(fd)
    try:
        yield Browser(write_here, read_here)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(write_here)
        os.close(read_here)
