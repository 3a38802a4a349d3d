"""A headless Chromium driven through its own protocol: as little as the tests need."""

# ruff: noqa: E501
from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One process, any number of tabs."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="browser-")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        # The page must not need the network: every other host is unknown.
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        command = [str(PROGRAM), *flags, rules, f"--user-data-dir={self.folder}", "--window-size=1400,900", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = Path(self.folder, "DevToolsActivePort")
        wait_for(lambda: port.exists() and "\n" in port.read_text(), 60)
        self.port = int(port.read_text().splitlines()[0])

    def tab(self, url: str) -> Tab:
        """Open a page."""
        request = Request(f"http://127.0.0.1:{self.port}/json/new?{url}", method="PUT")
        with urlopen(request) as answer:
            return Tab(json.load(answer)["webSocketDebuggerUrl"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Tab:
    """One page."""

    def __init__(self, url: str) -> None:
        from websockets.sync.client import connect

        self.connection = connect(url, max_size=None)
        self.socket = self.connection.__enter__()
        self.number = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def value(self, script: str) -> Any:
        """What a script evaluates to."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait for a script to become true."""
        wait_for(lambda: self.value(f"Boolean({script})"), seconds, script)

    def click(self, selector: str, text: str = "") -> None:
        """Press the mouse in the middle of an element, if given the one whose text this is."""
        found = (
            f"Array.from(document.querySelectorAll({json.dumps(selector)}))"
            f".find(e=>!{json.dumps(text)}||e.textContent==={json.dumps(text)})"
        )
        self.until(found)
        script = f"(()=>{{const e={found};e.scrollIntoView({{block:'center'}});const r=e.getBoundingClientRect();return [r.x+r.width/2,r.y+r.height/2]}})()"
        x, y = self.value(script)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.connection.__exit__(None, None, None)


def wait_for(condition, seconds: float, what: object = "") -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, f"waited {seconds} s for {what}"
        time.sleep(0.05)
