"""The console in a real browser: by mouse and by keyboard, with and without its script.

It takes a Chromium, and runs with ``--long``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

import greenconn
from greenconn import App, Connection, Queue
from greenconn.contrib.console import Console
from tests.brokers.packages import NoBroker, find_axe
from tests.browser import Browser, browsing, find_chromium
from tests.fix_wires import until

SOON = 30.0
#: Where pictures of the pages are written, if it is set.
PICTURES = os.environ.get("GREENCONN_TEST_PICTURES")
PAGES = ("", "dead", "handlers", "schedules", "connections", "jobs")
#: The rules of WCAG and of good practice that a page breaks, each with the elements.
VIOLATIONS = """
axe.run().then(found => found.violations.map(
  rule => [rule.id, rule.impact, rule.nodes.slice(0, 3).map(node => node.html.slice(0, 200))]))
"""


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser."""
    if not request.config.getoption("--long"):
        pytest.skip("runs only with --long")
    if find_chromium() is None:
        pytest.skip("no Chromium is installed")
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Browser]:
    """The browser, with its script, in a wide window; its log must be empty at the end."""
    browser.set_script(True)
    browser.set_screen(1280, 900)
    browser.log.clear()
    yield browser
    browser.set_script(True)
    browser.open("about:blank")  # its stream of live rows ends
    assert browser.dialogs == []
    assert [each for each in browser.log if "Content Security Policy" in each] == []


class Shop:
    """An application with a console that is served."""

    def __init__(self, url: str, unique: str) -> None:
        self.app = App(url)
        self.orders, self.dead = f"{unique}-orders", f"{unique}-orders.dead"
        self.is_mended = Event()
        self.paid: list[Any] = []
        self.console = Console(self.app, authorize=lambda environ, action: True)
        self.server = WSGIServer(("127.0.0.1", 0), self.console, log=None, spawn=Pool(100))
        self.server.start()
        self.home = f"http://127.0.0.1:{self.server.server_port}/"

        @self.app.consumer(self.orders, concurrency=10)
        def pay(body: Any, message: Any) -> None:
            if not self.is_mended.is_set():
                raise LookupError(f"no account {body['id']}")
            self.paid.append(body["id"])

        @self.app.every(3600, name="tidy-up")
        def tidy() -> None:
            self.paid.append("tidied")

        self.app.start()
        assert self.app.wait_ready(SOON)

    def fail(self, count: int) -> None:
        """Have messages given up."""
        bodies = ({"id": each} for each in range(count))
        greenconn.publish_many(self.orders, bodies, connection=self.app.connection)
        until(lambda: self.waiting() == count)

    def waiting(self) -> int:
        """Return the number of dead letters."""
        assert self.app.connection is not None
        with self.app.connection.channel() as channel:
            try:
                return int(channel.queue_declare(self.dead, passive=True).message_count)
            except greenconn.exceptions.NotFound:
                return 0


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of axe."""
    try:
        return find_axe(tmp_path_factory.mktemp("axe"))
    except NoBroker as exc:
        pytest.skip(str(exc))


@pytest.fixture(params=["amqp", "redis", "sqlite"])
def shop(request: pytest.FixtureRequest, unique: str, tmp_path: Path) -> Iterator[Shop]:
    """It, over each broker in turn."""
    url = f"sqlite:///{tmp_path}/shop.db"
    if request.param != "sqlite":
        url = request.getfixturevalue(f"{request.param}_url")
    shop = Shop(url, unique)
    yield shop
    shop.app.stop(SOON)
    shop.console.close()
    shop.server.stop(timeout=0.1)
    with Connection(url) as connection:
        for name in (shop.orders, shop.dead):
            connection.default_channel.queue_delete(name)
    assert shop.app.connection is not None
    shop.app.connection.close()


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_the_error_is_read_and_all_of_it_retried(shop: Shop, page: Browser, script: bool) -> None:
    shop.fail(12)
    page.set_script(script)
    page.open(f"{shop.home}dead")
    page.wait("document.body.innerText.includes('LookupError')")
    page.loading(lambda: page.click("a", "LookupError"))
    page.loading(lambda: page.click("tbody th a", "no account 3"))
    assert "raise LookupError" in page.text()
    assert '"id": 3' in page.text()
    page.loading(lambda: page.click("a", "All of"))
    shop.is_mended.set()
    page.loading(lambda: page.click("button", "Retry all of this error"))
    if script:
        page.wait("document.body.innerText.includes('retried 12 messages')")
    until(lambda: len(shop.paid) == 12)
    assert sorted(shop.paid) == list(range(12))


def test_a_thousand_are_retried_at_a_rate_and_watched(shop: Shop, page: Browser) -> None:
    shop.fail(1000)
    shop.is_mended.set()
    page.open(f"{shop.home}dead/letters?name={shop.dead}")
    page.click("input[name=rate]")
    page.type("200")
    page.loading(lambda: page.click("button", "Retry all of this error"))
    seen = page.wait("document.querySelector('progress')?.value > 100 && document.body.innerText")
    assert "of 1,000 messages" in seen
    page.wait("document.body.innerText.includes('retried 1,000 messages')")
    until(lambda: len(shop.paid) == 1000)
    assert len(set(shop.paid)) == 1000


def test_the_body_is_mended_by_keyboard(shop: Shop, page: Browser) -> None:
    shop.fail(1)
    shop.is_mended.set()
    page.open(f"{shop.home}dead/letters?name={shop.dead}")
    page.focus("tbody th a")
    page.loading(lambda: page.press("Enter"))
    page.focus("summary")
    while "Edit" not in page.run("document.activeElement.innerText"):
        page.press("Tab")
    page.press("Enter")
    page.focus("textarea[name=body]")
    page.run("document.activeElement.select()")
    page.type('{"id": 77}')
    page.focus("details[open] button")
    page.loading(lambda: page.press("Enter"))
    page.wait("document.body.innerText.includes('published the changed message')")
    until(lambda: shop.paid == [77])


def test_rows_change_by_themselves(shop: Shop, page: Browser) -> None:
    page.open(f"{shop.home}?q={shop.orders}")
    shop.fail(3)
    page.wait(
        f"[...document.querySelectorAll('tr')].some(r => r.innerText.includes('{shop.dead}'))"
    )
    page.wait("document.body.innerText.includes('3 ready')")


def test_a_consumer_is_paused_and_resumed(shop: Shop, page: Browser) -> None:
    shop.is_mended.set()
    page.open(f"{shop.home}queue?name={shop.orders}")
    page.loading(lambda: page.click("button", "Pause"))
    page.wait("document.body.innerText.includes('paused 1 of 1')")
    shop.app.publish(shop.orders, {"id": 1})

    def is_shown() -> bool:
        page.open(f"{shop.home}queue?name={shop.orders}")
        return '"id": 1' in page.text()

    until(is_shown)  # a look at messages is kept for some seconds
    page.loading(lambda: page.click("button", "Resume"))
    until(lambda: shop.paid == [1])


def test_a_schedule_is_run(shop: Shop, page: Browser) -> None:
    page.open(f"{shop.home}schedules")
    page.loading(lambda: page.click("button", "Run now"))
    until(lambda: shop.paid == ["tidied"])


def test_nothing_of_a_message_runs(shop: Shop, page: Browser) -> None:
    name = f"{shop.orders}<script>alert(1)</script>.dead"
    text = "\"'></code></pre><img src=x onerror=alert(1)><svg/onload=alert(1)><script>alert(1)"
    greenconn.publish(
        Queue(name),
        {text: text},
        headers={text: text, "x-greenconn-error": text},
        connection=shop.app.connection,
    )
    for address in ("", "dead", f"queue?name={name}", f"dead/letters?name={name}"):
        page.open(shop.home + address.replace("<", "%3C").replace(">", "%3E"))
        gevent.sleep(0.2)
        assert (
            page.run("document.querySelectorAll('img, svg[onload], script:not([src])').length") == 0
        )


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_fit_the_screen_and_are_accessible(
    shop: Shop, page: Browser, axe: Path, width: int, dark: bool
) -> None:
    shop.fail(5)
    page.set_screen(width, 844, dark=dark)
    addresses = (*PAGES, f"queue?name={shop.dead}", f"dead/letters?name={shop.dead}")
    for address in addresses:
        page.open(shop.home + address)
        assert page.run("document.documentElement.scrollWidth") <= width, address
        page.run(axe.read_text())
        assert page.run(VIOLATIONS) == [], address
        if PICTURES:
            name = (address.partition("?")[0] or "queues").replace("/", "-")
            page.picture(Path(PICTURES, f"{name}-{width}-{'dark' if dark else 'light'}.png"))
