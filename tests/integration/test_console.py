"""The console over real brokers: what an operator does, from page to page, without a script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import App, Connection, Queue
from greenconn.contrib.console import Console
from greenconn.exceptions import NotFound
from tests.brokers.ports import free_ports
from tests.console_client import Answer, Client
from tests.fix_wires import until
from tests.integration.gunicorn import serving
from tests.integration.processes import run

pytestmark = pytest.mark.halved

SOON = 30.0
BROKERS = ("memory", "amqp", "redis", "sqlite", "postgresql")


@pytest.fixture(params=BROKERS)
def url(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> str:
    """The address of each broker in turn."""
    kind = request.param
    if kind == "memory":
        return f"memory:///{unique}"
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/console.db"
    name = {"postgresql": "postgresql_database"}.get(kind, f"{kind}_url")
    return str(request.getfixturevalue(name))


@pytest.fixture
def app(url: str, unique: str) -> Iterator[App]:
    """An application that is stopped, whose queues are deleted."""
    app = App(url)
    yield app
    app.stop(SOON)
    with Connection(url) as connection, connection.channel() as channel:
        for name in ("orders", "orders.dead", "other"):
            channel.queue_delete(f"{unique}-{name}")
    assert app.connection is not None
    app.connection.close()


@pytest.fixture
def client(app: App) -> Iterator[Client]:
    """A browser of a console of that application."""
    console = Console(app, authorize=lambda environ, action: True)
    yield Client(console, REMOTE_USER="ada")
    console.close()


def counted(app: App, queue: str) -> int:
    """Return the number of ready messages; 0 if there is no such queue yet."""
    assert app.connection is not None
    try:
        with app.connection.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)
    except NotFound:
        return 0


def finished(client: Client, answer: Answer) -> Answer:
    """Return the page of an action when it has ended."""
    found = re.search(r'href="/(job\?[^"]*)"', answer.text)
    while "running" in answer.shown and found:
        gevent.sleep(0.05)
        answer = client.request("GET", "/" + found[1].replace("&amp;", "&"))
    return answer


def link(answer: Answer, page: str) -> str:
    """Return the first link of a page to another."""
    links = [attrs["href"] for tag, attrs in answer.elements if tag == "a"]
    return next(str(each) for each in links if str(each).startswith(f"/{page}?"))


def test_a_failing_handler_is_found_and_its_message_mended(
    app: App, client: Client, unique: str
) -> None:
    orders, dead = f"{unique}-orders", f"{unique}-orders.dead"
    paid: list[Any] = []

    @app.consumer(orders)
    def pay(body: Any, message: Any) -> None:
        paid.append((body["amount"] + 1, message.headers.get("shop")))

    app.start()
    assert app.wait_ready(SOON)
    app.publish(orders, {"amount": "seven"}, headers={"shop": "Berlin"})
    app.publish(orders, {"amount": "eight"}, headers={"shop": "Berlin"})
    until(lambda: counted(app, dead) == 2)
    # On the page of all dead letters they are grouped by their error.
    until(lambda: "TypeError" in client.get("dead", q=unique).shown)
    group = client.get("dead", q=unique)
    assert "can only concatenate str" in group.shown
    assert orders in group.shown
    letters = client.request("GET", link(group, "dead/letters"))
    letter = client.request("GET", link(letters, "dead/letter"))
    assert "test_console.py" in letter.shown
    assert "in pay" in letter.shown
    assert '"amount": "seven"' in letter.shown
    key = re.search(r"key=(\w+)", link(letters, "dead/letter"))
    assert key is not None
    edited = client.post(
        "edit",
        name=dead,
        key=key[1],
        target=orders,
        body='{"amount": 7}',
        headers='{"shop": "Rome"}',
    )
    assert "published the changed message" in finished(client, edited).shown
    until(lambda: paid == [(8, "Rome")])
    until(lambda: counted(app, dead) == 1)


def test_letters_are_retried_at_a_rate_and_deleted(app: App, client: Client, unique: str) -> None:
    orders, dead = f"{unique}-orders", f"{unique}-orders.dead"
    is_mended = Event()
    paid: list[int] = []

    @app.consumer(orders, concurrency=10)
    def pay(body: Any, message: Any) -> None:
        if not is_mended.is_set():
            raise LookupError(f"no account {body}")
        paid.append(body)

    app.start()
    assert app.wait_ready(SOON)
    greenconn.publish_many(orders, range(30), connection=app.connection)
    until(lambda: counted(app, dead) == 30)
    is_mended.set()
    page = client.get("dead/letters", name=dead)
    group = {"name": dead, "queue": orders, "error": "builtins.LookupError", "reason": "failed"}
    keys = [attrs["value"] for tag, attrs in page.elements if attrs.get("name") == "key"]
    assert len(keys) == 30
    chosen = client.post("retry", **group, key=keys[:3])
    assert "retried 3 messages" in finished(client, chosen).shown
    until(lambda: len(paid) == 3)
    slow = client.post("retry", **group, all="1", rate="20", limit="12")
    shown = finished(client, slow).shown
    assert "retried 12 messages" in shown
    until(lambda: len(paid) == 15)
    rest = client.post("delete", **group, all="1", sure="1")
    assert "deleted 15 messages" in finished(client, rest).shown
    assert counted(app, dead) == 0
    assert len(set(paid)) == 15
    assert "retried 12 messages" not in client.get("jobs").shown  # that is on the page of each
    assert f"retry all with builtins.LookupError of {dead}" in client.get("jobs").shown


@pytest.mark.sampled(2)
def test_a_queue_is_looked_at_moved_and_purged(app: App, client: Client, unique: str) -> None:
    orders, other = f"{unique}-orders", f"{unique}-other"
    for name in (orders, other):
        greenconn.publish(Queue(name), {"id": 0, "password": "s3cret"}, connection=app.connection)
    for number in range(1, 5):
        sent = client.post(
            "publish",
            queue=orders,
            body=f'{{"id": {number}}}',
            content_type="application/json",
            headers='{"by": "hand"}',
        )
        assert f"published 1 message to {orders}" in finished(client, sent).shown
    until(lambda: "5" in client.get("", q=orders).shown)
    page = client.get("queue", name=orders, look="1")
    assert '"id": 4' in page.shown
    assert "header by" in page.shown
    assert "s3cret" not in page.text
    moved = client.post("move", queue=orders, target=other, limit="2")
    assert f"moved 2 messages from {orders} to {other}" in finished(client, moved).shown
    assert (counted(app, orders), counted(app, other)) == (3, 3)
    purged = client.post("purge", queue=orders, sure="1")
    assert "purged 3 messages" in finished(client, purged).shown
    assert counted(app, orders) == 0
    assert (
        "no queue" in finished(client, client.post("purge", queue=f"{unique}-no", sure="1")).shown
    )


@pytest.mark.sampled(2)
def test_consumers_are_paused_and_a_handler_interrupted(
    app: App, client: Client, unique: str
) -> None:
    orders = f"{unique}-orders"
    begun: list[int] = []
    goes_on = Event()

    @app.consumer(orders)
    def wait(body: Any, message: Any) -> None:
        begun.append(body)
        goes_on.wait()

    app.start()
    assert app.wait_ready(SOON)
    app.publish(orders, 1)
    until(lambda: begun == [1])
    page = client.get("handlers")
    assert "wait" in page.shown
    assert "goes_on.wait()" in page.shown or "test_console.py" in page.shown
    assert "Interrupt" in page.shown
    key = next(
        str(attrs["data-key"])
        for tag, attrs in page.elements
        if tag == "tr" and "data-key" in attrs
    )
    done = finished(client, client.post("interrupt", key=key))
    assert f"of {orders}" in done.shown
    until(lambda: counted(app, f"{orders}.dead") == 1)
    goes_on.set()
    paused = finished(client, client.post("pause", queue=orders))
    assert "paused 1 of 1 consumers" in paused.shown
    app.publish(orders, 2)
    assert "paused" in client.get("queue", name=orders).shown
    resumed = finished(client, client.post("resume", queue=orders))
    assert "resumed 1 consumers" in resumed.shown
    until(lambda: begun[-1] == 2)


def test_a_schedule_is_called_now(app: App, client: Client) -> None:
    made: list[int] = []

    @app.every(3600, name="tidy-up")
    def tidy() -> None:
        made.append(1)

    app.start()
    assert app.wait_ready(SOON)
    until(lambda: "leader" in client.get("schedules").shown)
    assert "every" in client.get("schedules").shown.lower()
    done = finished(client, client.post("run", name="tidy-up"))
    assert "asked the leader of tidy-up to call it now" in done.shown
    until(lambda: made == [1])


# -- mounted

FLASK = """
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from greenconn.contrib.console import Console

console = Console("memory:///console")
app = Flask(__name__)
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/ops/queues": console})
for path, text in (("", "Queues"), ("/", "Queues"), ("/dead", "given up")):
    path = "/ops/queues" + path
    answer = app.test_client().get(path, follow_redirects=True)
    assert answer.status_code == 200 and text in answer.text, (path, answer.text)
    assert 'href="/ops/queues/static/console.css' in answer.text
console.close()
"""
DJANGO = """
import django
from django.conf import settings
from django.urls import re_path
from greenconn import Connection, Queue, publish
from greenconn.contrib.console import Console

settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x",
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
)
django.setup()
seen = []


def authorize(environ, action):
    seen.append(environ["django.request"].path)
    return True


connection = Connection("memory:///console")
publish(Queue("mail"), {"to": "ada"}, connection=connection)
console = Console(connection, authorize)
urlpatterns = [re_path(r"^queues(?P<path>/.*)?$", console.django_view)]
from django.test import Client

client = Client(enforce_csrf_checks=True)
page = client.get("/queues/")
assert page.status_code == 200 and b"mail" in page.content, page.content
assert b'href="/queues/static/console.css' in page.content
assert client.get("/queues").status_code == 301
assert client.get("/queues/nosuch").status_code == 404
kind = "application/x-www-form-urlencoded"
refused = client.post("/queues/do/purge", "queue=mail&sure=1", content_type=kind)
assert refused.status_code == 403
own = {"sec-fetch-site": "same-origin"}
done = client.post("/queues/do/purge", "queue=mail&sure=1", content_type=kind, headers=own)
assert done.status_code == 303 and done["Location"].startswith("/queues/job?"), done
assert b"purged 1 message" in client.get(done["Location"]).content
assert "/queues/" in seen
live = client.get("/queues/live?page=queues")
assert next(iter(live.streaming_content)).startswith(b"retry"), live
live.close()
console.close()
"""


@pytest.mark.programs
@pytest.mark.parametrize("program", [FLASK, DJANGO], ids=["flask", "django"])
def test_it_is_mounted(program: str) -> None:
    done = run("-W", "ignore", "-c", program)
    assert done.code == 0, done.errors


@pytest.mark.programs
def test_it_runs_under_gunicorn(redis_url: str, unique: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import os, greenconn\n"
        "from greenconn.contrib.console import Console\n"
        f"app = greenconn.App({redis_url!r})\n"
        "console = Console(app, authorize=lambda environ, action: True)\n"
    )
    with Connection(redis_url) as connection:
        greenconn.publish(Queue(unique), {"to": "ada"}, connection=connection)
        with serving("shop:console", env={}, cwd=tmp_path) as server:
            server.wait_ready("/")
            for _ in range(6):  # of either worker
                page = server.request(f"/queue?name={unique}")
                assert (page.status, b"ada" in page.body) == (200, True)
        connection.default_channel.queue_delete(unique)


@pytest.mark.programs
def test_it_is_served_alone(redis_url: str) -> None:
    (port,) = free_ports(1)
    done = run("-m", "greenconn", "console", "-u", redis_url, "--bind", f"0.0.0.0:{port}")
    assert done.code == 2
    assert "--authorize must be given to listen on 0.0.0.0" in done.errors
    done = run("-m", "greenconn", "console", "--actions", "--authorize", "json:dumps")
    assert (done.code, "must not be given together" in done.errors) == (2, True)
    done = run("-m", "greenconn", "console", "--authorize", "json:nosuch")
    assert (done.code, "must be a function as module:name" in done.errors) == (2, True)
    program = (
        "import gevent, sys, urllib.request\n"
        "from gevent import monkey; monkey.patch_all()\n"
        "from greenconn.cli import main\n"
        f"gevent.spawn(main, ['console', '-u', {redis_url!r}, '--bind', '{port}'])\n"
        "def get():\n"
        "    for _ in range(200):\n"
        "        try:\n"
        f"            return urllib.request.urlopen('http://127.0.0.1:{port}/').read()\n"
        "        except OSError:\n"
        "            gevent.sleep(0.05)\n"
        "assert b'read-only' in get()\n"
    )
    done = run("-c", program)
    assert done.code == 0, done.errors
    assert f"http://127.0.0.1:{port}/ shows {redis_url}, read-only" in done.output
