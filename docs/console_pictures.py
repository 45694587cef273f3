"""Pictures of the console for the documentation: ``python docs/console_pictures.py``, with a Chromium.

A small shop runs in this process on a SQLite file, with queues that fill up, handlers that run and dead
letters of three kinds.  The pictures become files in ``docs/static/screens``.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import gevent
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from greenconn import App, DeadLetter
from greenconn.contrib.console import Console
from tests.browser import Browser, browsing

TARGET: Final = HERE / "static" / "screens"
#: Name of a picture -> the path of its page, and the height of the window.
PAGES: Final = {
    "console-queues": ("", 620),
    "console-dead": ("dead", 520),
    "console-handlers": ("handlers", 560),
}


def shop(url: str) -> App:
    """Return the application, with something to see."""
    app = App(url)

    @app.consumer("orders", concurrency=4)
    def pay(body: Any, message: Any) -> None:
        gevent.sleep(0.4)
        if body["id"] % 40 == 0:
            raise TimeoutError("the bank did not answer within 5 s")
        if body["id"] % 55 == 0:
            raise DeadLetter("the card is expired")

    @app.consumer("mail", concurrency=8)
    def send(body: Any, message: Any) -> None:
        gevent.sleep(0.02)
        if body["id"] % 90 == 0:
            raise LookupError("no address of customer 4711")

    @app.consumer("invoices")
    def write(body: Any, message: Any) -> None:
        gevent.sleep(30)

    @app.every(3600, name="close-carts")
    def close_carts() -> None:
        """Close the carts of yesterday."""

    return app


def fill(app: App) -> None:
    """Publish for ever."""
    number = 0
    while True:
        number += 1
        app.publish("orders", {"id": number, "total": 40 + number % 17}, declare=True)
        for each in range(3):
            app.publish("mail", {"id": 3 * number + each, "kind": "order"}, declare=True)
        if number % 20 == 0:
            app.publish("invoices", {"id": number}, declare=True)
            app.publish("exports", {"day": number // 20}, declare=True)
        gevent.sleep(0.06)


def take(browser: Browser, home: str) -> None:
    """Take all pictures."""
    for name, (path, height) in PAGES.items():
        for dark in (False, True):
            browser.set_screen(1100, height, dark=dark)
            browser.open(home + path)
            gevent.sleep(6)  # for live rows
            browser.picture(TARGET / f"{name}-{'dark' if dark else 'light'}.png")


def main() -> None:
    """Make all pictures."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, browsing() as browser:
        app = shop(f"sqlite:///{folder}/shop.db")
        server = WSGIServer(
            ("127.0.0.1", 0),
            Console(app, authorize=lambda environ, action: True),
            log=None,
            spawn=Pool(50),
        )
        server.start()
        app.start()
        app.wait_ready(10)
        filling = gevent.spawn(fill, app)
        browser.set_screen(1100, 620)
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        gevent.sleep(25)  # for rates and trends
        take(browser, f"http://127.0.0.1:{server.server_port}/")
        filling.kill()
        browser.open("about:blank")
        server.stop()
        app.stop(1)


if __name__ == "__main__":
    main()
