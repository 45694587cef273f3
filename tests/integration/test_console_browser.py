"""The console in a real browser: by mouse and by keyboard, with and without its script.

It takes a Chromium, and runs with ``--long``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
from tests.brokers.ports import free_ports
from tests.browser import Browser, browsing, find_chromium
from tests.fix_wires import until
from tests.integration.gunicorn import serving
from tests.integration.processes import start

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
        self.other = f"{unique}-other"
        self.queues = [self.orders, self.dead, self.other]
        self.is_listed = not url.startswith("amqp")  # RabbitMQ has no plugin here
        self.is_mended = Event()
        #: A handler hangs until it is set.
        self.hangs = Event()
        self.hangs.set()
        #: What the operator may do; None: everything.
        self.rights: set[str] | None = None
        self.paid: list[Any] = []
        self.console = Console(self.app, authorize=self.authorize)
        self.server = WSGIServer(("127.0.0.1", 0), self.console, log=None, spawn=Pool(100))
        self.server.start()
        self.home = f"http://127.0.0.1:{self.server.server_port}/"
        self.letters = f"{self.home}dead/letters?name={self.dead}"

        @self.app.consumer(self.orders, concurrency=10)
        def pay(body: Any, message: Any) -> None:
            self.hangs.wait()
            if not self.is_mended.is_set():
                raise LookupError(f"no account {body['id']}")
            self.paid.append(body["id"])

        @self.app.every(3600, name="tidy-up")
        def tidy() -> None:
            self.paid.append("tidied")

        self.app.start()
        assert self.app.wait_ready(SOON)

    def end(self, url: str) -> None:
        """Stop everything and delete the queues."""
        self.app.stop(SOON)
        self.console.close()
        self.server.stop(timeout=0.1)
        with Connection(url) as connection:
            for name in self.queues:
                connection.default_channel.queue_delete(name)
        self.connection.close()

    def fail(self, count: int) -> None:
        """Have messages given up."""
        expected = self.waiting() + count
        bodies = ({"id": each} for each in range(count))
        greenconn.publish_many(self.orders, bodies, connection=self.connection)
        until(lambda: self.waiting() == expected)

    def authorize(self, environ: dict[str, Any], action: str) -> bool:
        """Return whether the operator may do it."""
        return self.rights is None or action in self.rights

    @property
    def connection(self) -> Connection:
        """That of the application."""
        assert self.app.connection is not None
        return self.app.connection

    def waiting(self, queue: str = "") -> int:
        """Return the number of ready messages: dead letters, if no queue is named."""
        with self.connection.channel() as channel:
            try:
                name = queue or self.dead
                return int(channel.queue_declare(name, passive=True).message_count)
            except greenconn.exceptions.NotFound:
                return 0


@contextmanager
def opened(url: str, unique: str) -> Iterator[Shop]:
    """Give a shop for the block."""
    shop = Shop(url, unique)
    try:
        yield shop
    finally:
        shop.end(url)


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
    with opened(url, unique) as shop:
        yield shop


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
    page.open(shop.letters)
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
    page.open(shop.letters)
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
        connection=shop.connection,
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


# -- the chosen ones


def test_three_are_chosen_and_retried(shop: Shop, page: Browser) -> None:
    shop.fail(10)
    shop.is_mended.set()
    page.open(shop.letters)
    for number in (2, 5, 7):
        page.click(f"tbody tr:nth-child({number + 1}) input[name=key]")
    page.loading(lambda: page.click("button", "Retry chosen"))
    page.wait("document.body.innerText.includes('retried 3 messages')")
    until(lambda: sorted(shop.paid) == [2, 5, 7])
    assert shop.waiting() == 7


def test_the_first_two_are_chosen_by_keyboard_without_a_script(shop: Shop, page: Browser) -> None:
    shop.fail(4)
    shop.is_mended.set()
    page.open(shop.letters)
    page.focus("tbody tr:nth-child(1) input[name=key]")
    page.press(" ")
    page.focus("tbody tr:nth-child(2) input[name=key]")
    page.press(" ")
    page.focus("fieldset:not(.danger) button:not(.every)")
    # The form was reached with Tab, which a script found; it is sent without one.
    page.set_script(False)
    page.loading(lambda: page.press("Enter"))
    until(lambda: sorted(shop.paid) == [0, 1])
    assert shop.waiting() == 2


def test_all_are_chosen_by_one_box_and_sent_to_another_queue(shop: Shop, page: Browser) -> None:
    shop.fail(6)
    with shop.connection.channel() as channel:
        Queue(shop.other)(channel).declare()
    page.open(shop.letters)
    page.click("thead input.every")
    page.click("input[name=target]")
    page.type(shop.other)
    page.loading(lambda: page.click("button", "Retry chosen"))
    page.wait("document.body.innerText.includes('retried 6 messages')")
    assert (shop.waiting(), shop.waiting(shop.other)) == (0, 6)


def test_nothing_is_deleted_before_the_operator_is_sure(shop: Shop, page: Browser) -> None:
    shop.fail(3)
    page.open(shop.letters)
    page.loading(lambda: page.click("button", "Delete all of this error"))
    assert "nothing was deleted" in page.text()
    assert "read-only" not in page.text()
    assert shop.waiting() == 3
    page.open(shop.letters)
    page.click("fieldset.danger input[name=sure]")
    page.loading(lambda: page.click("button", "Delete all of this error"))
    page.wait("document.body.innerText.includes('deleted 3 messages')")
    assert shop.waiting() == 0


def test_one_letter_is_deleted(shop: Shop, page: Browser) -> None:
    shop.fail(2)
    page.open(shop.letters)
    page.loading(lambda: page.click("tbody th a", "no account 1"))
    page.click("summary", "Delete")
    page.click("details[open] input[name=sure]")
    page.loading(lambda: page.click("details[open] button"))
    page.wait("document.body.innerText.includes('deleted 1 message')")
    page.loading(lambda: page.click("a", "Back"))
    page.wait("document.body.innerText.includes('no account 0')")
    assert "no account 1" not in page.text()
    assert shop.waiting() == 1


def test_a_slow_retry_is_stopped(shop: Shop, page: Browser) -> None:
    shop.fail(50)
    shop.is_mended.set()
    page.open(shop.letters)
    page.click("input[name=rate]")
    page.type("5")
    page.loading(lambda: page.click("button", "Retry all of this error"))
    page.wait("document.querySelector('progress')?.value >= 2")
    page.loading(lambda: page.click("button", "Stop"))
    page.wait("document.body.innerText.includes('stopped')")
    until(lambda: len(shop.paid) + shop.waiting() == 50)  # none is lost
    assert 2 <= len(shop.paid) < 50


# -- queues


def test_a_queue_is_found_from_the_keyboard(shop: Shop, page: Browser) -> None:
    shop.fail(1)
    page.open(shop.home)
    page.press("/")
    page.type(f"{shop.orders}*")
    page.loading(lambda: page.press("Enter"))
    assert shop.dead in page.text()
    assert "2 queues" in page.text()
    there = page.url  # can be sent to a colleague
    page.open("about:blank")
    page.open(there)
    page.focus("tbody tr:nth-child(1) th a")
    page.loading(lambda: page.press("Enter"))
    assert shop.orders in page.text()


def test_a_queue_without_consumers_is_called_stuck(shop: Shop, page: Browser) -> None:
    shop.is_mended.set()
    page.open(f"{shop.home}queue?name={shop.orders}")
    page.loading(lambda: page.click("button", "Pause"))
    bodies = ({"id": each} for each in range(9))
    greenconn.publish_many(shop.orders, bodies, connection=shop.connection)
    page.open(f"{shop.home}?q={shop.orders}")
    page.wait(
        "[...document.querySelectorAll('tbody tr')].some("
        f"r => r.innerText.includes('{shop.orders}') && r.innerText.includes('stuck'))"
    )
    page.open(f"{shop.home}queue?name={shop.orders}")
    page.loading(lambda: page.click("button", "Resume"))
    until(lambda: sorted(shop.paid) == list(range(9)))


def test_messages_are_moved_and_the_rest_purged(shop: Shop, page: Browser) -> None:
    greenconn.publish_many(
        Queue(shop.other), ({"id": each} for each in range(5)), connection=shop.connection
    )
    shop.is_mended.set()
    page.open(f"{shop.home}queue?name={shop.other}")
    assert '"id": 4' in page.text()
    page.click("summary", "Move")
    page.click("details[open] input[name=target]")
    page.type(shop.orders)
    page.click("details[open] input[name=limit]")
    page.type("2")
    page.loading(lambda: page.click("details[open] button"))
    page.wait("document.body.innerText.includes('moved 2 messages')")
    until(lambda: sorted(shop.paid) == [0, 1])
    page.open(f"{shop.home}queue?name={shop.other}")
    page.click("summary", "Purge")
    page.click("details[open] button")  # the browser asks for the box
    assert shop.waiting(shop.other) == 3
    page.click("details[open] input[name=sure]")
    page.loading(lambda: page.click("details[open] button"))
    page.wait("document.body.innerText.includes('purged 3 messages')")
    assert shop.waiting(shop.other) == 0


def test_a_message_is_published_and_nonsense_refused(shop: Shop, page: Browser) -> None:
    shop.is_mended.set()
    page.open(f"{shop.home}queue?name={shop.orders}")
    page.click("summary", "Publish")
    page.click("details[open] textarea[name=body]")
    page.type('{"id": ')
    page.loading(lambda: page.click("details[open] button"))
    assert "JSON" in page.text()
    assert shop.paid == []
    page.open(f"{shop.home}queue?name={shop.orders}")
    page.click("summary", "Publish")
    page.click("details[open] textarea[name=body]")
    page.type('{"id": "by hand"}')
    page.loading(lambda: page.click("details[open] button"))
    page.wait("document.body.innerText.includes('published 1 message')")
    until(lambda: shop.paid == ["by hand"])


def test_a_hundred_queues_are_turned_over(shop: Shop, page: Browser) -> None:
    names = [f"{shop.orders}-{each:03}" for each in range(120)]
    shop.queues += names
    with shop.connection.channel() as channel:
        for name in names:
            Queue(name)(channel).declare()
    if shop.is_listed:
        page.open(f"{shop.home}?q={shop.orders}-&sort=name")
        page.wait("document.body.innerText.includes('120 queues')")
        assert names[0] in page.text()
        for _ in range(2):
            page.loading(lambda: page.click("a[rel=next]"))
        page.wait(f"document.body.innerText.includes({names[-1]!r})")
        assert names[0] not in page.text()
        assert f"q={shop.orders}-" in page.url
    else:  # a broker that does not list its queues shows one by its name
        page.open(f"{shop.home}queue?name={names[-1]}")
        assert names[-1] in page.text()


# -- handlers


def test_a_handler_that_hangs_is_found_and_interrupted(shop: Shop, page: Browser) -> None:
    page.open(f"{shop.home}handlers")
    shop.hangs.clear()
    shop.app.publish(shop.orders, {"id": "hangs"})
    page.wait("document.querySelector('#running')?.innerText.includes('pay')")  # by itself
    assert "test_console_browser.py" in page.text()  # the line where it waits
    page.loading(lambda: page.click("button", "Interrupt"))
    until(lambda: shop.waiting() == 1)
    page.open(shop.letters)
    assert "Interrupted" in page.text()


# -- rights


def test_who_may_only_look_has_no_buttons(shop: Shop, page: Browser) -> None:
    shop.fail(2)
    shop.rights = {"view"}
    letters = f"dead/letters?name={shop.dead}"
    for address in ("", "dead", "handlers", "schedules", f"queue?name={shop.orders}", letters):
        page.open(shop.home + address)
        assert page.run("document.querySelectorAll('form[method=post] button').length") == 0, (
            address
        )
    # Nor does a form that is made by hand.
    page.run(
        f"fetch('/do/delete', {{method: 'POST', body: new URLSearchParams({{name: '{shop.dead}', "
        "all: '1', sure: '1'})}).then(answer => { document.title = String(answer.status) })"
    )
    page.wait("document.title === '403'")
    assert shop.waiting() == 2


def test_who_may_retry_has_that_button_alone(shop: Shop, page: Browser) -> None:
    shop.fail(2)
    shop.is_mended.set()
    shop.rights = {"view", "retry"}
    page.open(shop.letters)
    assert "Delete" not in page.text()
    page.loading(lambda: page.click("button", "Retry all of this error"))
    until(lambda: len(shop.paid) == 2)


def test_the_form_of_another_site_is_refused(shop: Shop, page: Browser) -> None:
    shop.fail(2)

    def other(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html")])
        form = (
            f'<form method="post" action="{shop.home}do/delete"><input name="name" '
            f'value="{shop.dead}"><input name="all" value="1"><input name="sure" value="1">'
            "<button>Win a phone</button></form>"
        )
        return [form.encode()]

    site = WSGIServer(("127.0.0.1", 0), other, log=None, spawn=Pool(10))
    site.start()
    # Another name of this machine is another site for the browser.
    page.open(f"http://localhost:{site.server_port}/")
    page.loading(lambda: page.click("button", "Win a phone"))
    assert "not sent from a page of this console" in page.text()
    assert shop.waiting() == 2
    page.open("about:blank")
    site.stop(timeout=0.1)


# -- mounted, over Redis

FLASK = """
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from greenconn.contrib.console import Console

application = Flask(__name__)
application.wsgi_app = DispatcherMiddleware(
    application.wsgi_app, {"/ops/queues": Console(URL, authorize=lambda environ, action: True)}
)
"""
DJANGO = """
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import re_path
from greenconn.contrib.console import Console

settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x",
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
)
console = Console(URL, authorize=lambda environ, action: action in ("view", "retry"))
urlpatterns = [re_path(r"^ops/queues(?P<path>/.*)?$", console.django_view)]
application = get_wsgi_application()
"""


@contextmanager
def mounted(kind: str, url: str, folder: Path) -> Iterator[str]:
    """Serve a console in other processes; give its address."""
    if kind == "alone":
        (port,) = free_ports(1)
        command = ("-m", "greenconn", "console", "-u", url, "--actions", "--bind", str(port))
        alone = start(*command)
        try:
            assert "Ctrl-C ends it" in alone.line()
            yield f"http://127.0.0.1:{port}/"
        finally:
            alone.end()
        return
    program = {"flask": FLASK, "django": DJANGO}[kind]
    (folder / "site_of_console.py").write_text(f"URL = {url!r}\n{program}")
    with serving("site_of_console:application", env={}, cwd=folder) as server:
        server.wait_ready("/ops/queues/")
        yield f"http://127.0.0.1:{server.port}/ops/queues/"


@pytest.mark.programs
@pytest.mark.parametrize("kind", ["flask", "django", "alone"])
def test_all_is_retried_where_it_is_mounted(
    kind: str, redis_url: str, unique: str, page: Browser, tmp_path: Path
) -> None:
    with opened(redis_url, unique) as shop, mounted(kind, redis_url, tmp_path) as home:
        shop.fail(3)
        page.open(f"{home}?q={unique}")
        shop.fail(2)  # by itself, also under a prefix
        page.wait("document.body.innerText.includes('5 ready')")
        shop.is_mended.set()
        page.loading(lambda: page.click("tbody a", shop.dead))
        page.loading(lambda: page.click("button", "Retry all of this error"))
        assert page.url.startswith(f"{home}job?")
        until(lambda: len(shop.paid) == 5)
        page.open("about:blank")
