"""A headless Chromium, driven by its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult, Event
from gevent.os import nb_read, nb_write

#: Seconds for one step.
SOON = 20.0
#: Names of the program.
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
#: Keys that are pressed by name, with their codes.
KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32}


def find_chromium() -> str | None:
    """Return the path of an installed Chromium; None: there is none."""
    return next((found for each in PROGRAMS if (found := shutil.which(each))), None)


class PageError(Exception):
    """The browser refused a command, or an expression of a page raised."""


class Browser:
    """One browser, with a page at a time.

    Arguments:
        program: the path of Chromium.
        folder: for its profile.
    """

    def __init__(self, program: str, folder: Path) -> None:
        take, give = os.pipe(), os.pipe()

        def prepare() -> None:
            # The browser reads its descriptor 3 and writes its descriptor 4.
            reading, writing = (
                fcntl.fcntl(take[0], fcntl.F_DUPFD, 10),
                fcntl.fcntl(give[1], fcntl.F_DUPFD, 10),
            )
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--remote-debugging-pipe",
                "--no-sandbox",
                "--no-first-run",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                "--force-color-profile=srgb",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            preexec_fn=prepare,
            pass_fds=(3, 4, take[0], give[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(take[0])
        os.close(give[1])
        self._out, self._in = take[1], give[0]
        for each in (self._out, self._in):
            os.set_blocking(each, False)
        self._numbers = count(1)
        self._replies: dict[int, AsyncResult[Any]] = {}
        self._session: str | None = None
        self._loaded = Event()
        #: Texts of errors and refusals that the browser has logged.
        self.log: list[str] = []
        #: Dialogs that scripts have opened.
        self.dialogs: list[str] = []
        self._reader = gevent.spawn(self._read)
        self._new_page()

    def close(self) -> None:
        """End the browser.  May switch."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.kill()
        os.close(self._out)
        os.close(self._in)

    def _read(self) -> None:
        rest = b""
        while True:
            data = nb_read(self._in, 65536)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\0")
            for each in whole:
                self._take(json.loads(each))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            reply = self._replies.pop(message["id"], None)
            if reply is not None:
                reply.set(message)
            return
        method, given = message["method"], message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(given["message"])
            gevent.spawn(self.call, "Page.handleJavaScriptDialog", accept=True)
        elif method == "Log.entryAdded":
            self.log.append(given["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.log.append(str(given["exceptionDetails"].get("exception", given)))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result.  May switch.

        Raises:
            PageError: the browser refuses.
        """
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        reply = self._replies[number] = AsyncResult()
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[nb_write(self._out, data) :]
        found: Any = reply.get(timeout=SOON)
        if "error" in found:
            raise PageError(f"{method}: {found['error']}")
        result: dict[str, Any] = found["result"]
        return result

    def _new_page(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for each in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{each}.enable")

    # -- pages

    def open(self, url: str) -> None:
        """Open an address, and wait until it is loaded.  May switch."""
        self._loaded.clear()
        found = self.call("Page.navigate", url=url)
        assert not found.get("errorText"), found
        assert self._loaded.wait(SOON), f"{url} was not loaded"

    def run(self, expression: str) -> Any:
        """Return the value of an expression in the page.  May switch.

        Raises:
            PageError: it raises.
        """
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise PageError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait(self, expression: str, timeout: float = SOON) -> Any:
        """Wait until an expression is true in the page, also over a change of it.  May switch."""
        end = gevent.get_hub().loop.now() + timeout
        while True:
            with suppress(PageError):  # the page is just being replaced
                if value := self.run(expression):
                    return value
            gevent.get_hub().loop.update_now()
            assert gevent.get_hub().loop.now() < end, (
                f"{expression} is not true: {self.text()[:2000]}"
            )
            gevent.sleep(0.05)

    @property
    def url(self) -> str:
        """The address of the page."""
        return str(self.run("location.href"))

    def text(self) -> str:
        """Return the text of the page as it is seen."""
        return str(self.run("document.body.innerText"))

    def loading(self, act: Callable[[], object]) -> None:
        """Do something that loads another page, and wait for it.  May switch."""
        self._loaded.clear()
        act()
        assert self._loaded.wait(SOON), "no other page was loaded"

    def click(self, selector: str, text: str = "") -> None:
        """Click an element with the mouse, in its middle.  May switch.

        Arguments:
            text: its text, if several elements fit.
        """
        where: Any = self.wait(
            f"""(() => {{
              const found = [...document.querySelectorAll({json.dumps(selector)})].find(
                (each) => each.innerText.includes({json.dumps(text)}) && each.getClientRects().length);
              if (!found) return null;
              found.scrollIntoView({{block: "center"}});
              const box = found.getClientRects()[0];
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind, x=where[0], y=where[1], button="left", clickCount=1,
            )  # fmt: skip

    def type(self, text: str) -> None:
        """Type text where the focus is.  May switch."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, times: int = 1) -> None:
        """Press a key.  May switch."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.call(
                    "Input.dispatchKeyEvent",
                    type=kind, key=key, windowsVirtualKeyCode=code,
                    **({"text": text} if text and kind == "keyDown" else {}),
                )  # fmt: skip

    def focus(self, selector: str) -> None:
        """Press Tab until an element has the focus.  May switch."""
        for _ in range(200):
            if self.run(f"document.activeElement?.matches({json.dumps(selector)})"):
                return
            self.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    def set_script(self, is_enabled: bool) -> None:
        """Let pages run scripts, or not.  May switch."""
        self.call("Emulation.setScriptExecutionDisabled", value=not is_enabled)

    def set_screen(
        self, width: int, height: int, *, dark: bool = False, scale: float = 1.0
    ) -> None:
        """Set the size of the window and the colours that the user likes.  May switch."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a picture of the page.  May switch."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browsing() -> Iterator[Browser]:
    """Give a browser for the block.  May switch.

    Raises:
        FileNotFoundError: no Chromium is installed.
    """
    program = find_chromium()
    if program is None:
        raise FileNotFoundError("no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(
        prefix="greenconn-browser-", ignore_cleanup_errors=True
    ) as folder:
        browser = Browser(program, Path(folder))
        try:
            yield browser
        finally:
            browser.close()
