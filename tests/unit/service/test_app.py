"""Applications: what they declare, where they run, and what surrounds their handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flask
import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue as Inbox

import greenconn
from greenconn import App, Connection, Queue
from greenconn.exceptions import RemoteError
from greenconn.testing import MemoryBroker
from greenconn.transport import memory

SOON = 20.0


@pytest.fixture
def app() -> App:
    return App()


def test_consumers_and_servers_run_together(app: App) -> None:
    mailed: list[Any] = []

    @app.consumer("mail", concurrency=2)
    def send_mail(body: Any, message: Any) -> None:
        gevent.sleep(0)
        mailed.append(body)

    @app.rpc("add")
    def add(numbers: list[int]) -> int:
        return sum(numbers)

    with app.testing() as test:
        app.publish("mail", 1)
        assert app.publish_many("mail", range(2, 5)) == 3
        assert app.call("add", [1, 2, 3]) == 6
        test.run_until_idle()
        assert sorted(mailed) == [1, 2, 3, 4]
        names = [each.lifecycle.options.name for each in app.consumers]
        assert names == ["mail", "add"]
        assert [each.answers_calls for each in app.consumers] == [False, True]
    assert app.consumers == []
    assert add([4]) == 4  # it is still the function


@pytest.fixture
def unique_memory() -> Iterator[str]:
    with MemoryBroker() as broker:
        yield broker.url


@pytest.mark.parametrize(
    ("declare", "error", "text"),
    [
        (lambda app: app.consumer(print), TypeError, r"@app.consumer\('mail'\)"),
        (lambda app: app.consumer("mail")(3), TypeError, "function must be a callable, got 3"),
        (
            lambda app: app.consumer("mail", connection=Connection("memory://")),
            TypeError,
            r"connection must be given to App\(\), or be the URL of another broker, got Connection",
        ),
        (
            lambda app: app.consumer("mail", connection="elsewhere"),
            ValueError,
            "connection must be a URL such as 'amqp://elsewhere//'",
        ),
        (
            lambda app: app.rpc("add", connection="memory://"),
            TypeError,
            r"connection must be given to App\(\)",
        ),
        (
            lambda app: app.consumer("mail", concurency=3)(print),
            TypeError,
            r"App.consumer\(\) has no option 'concurency'; did you mean 'concurrency'",
        ),
        (lambda app: app.consumer("mail", concurrency=0)(print), ValueError, "concurrency must be"),
        (lambda app: app.consumer(3)(print), TypeError, "queue must be a name"),
        (
            lambda app: app.consumer("mail")(lambda body: None),
            TypeError,
            "handler must take two arguments",
        ),
        (
            lambda app: app.rpc("add", retry=3)(sum),
            TypeError,
            r"App.rpc\(\) has no option 'retry': each call has one reply",
        ),
        (
            lambda app: app.rpc("add", concurency=3)(sum),
            TypeError,
            r"App.rpc\(\) has no option 'concurency'; did you mean 'concurrency'",
        ),
        (
            lambda app: app.rpc("add", zzz=3)(sum),
            TypeError,
            r"App.rpc\(\) has no option 'zzz'; known: accept, (?!.*batch).*serializer",
        ),
        (lambda app: app.rpc("add", name=3)(sum), ValueError, "name must be of type str"),
        (lambda app: app.around_handle(3), TypeError, "context must be a callable, got 3"),
        (lambda app: app.start(), RuntimeError, "declares no consumer"),
        (lambda app: app.configure("nothing://"), KeyError, "nothing"),
    ],
)
def test_wrong_declarations(
    app: App, declare: Callable[[Any], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        declare(app)


def test_contexts_around_handlers_and_publishes(app: App) -> None:
    events: list[Any] = []

    @app.around_handle
    def first(message: Any) -> Iterator[None]:
        events.append(("first", message.headers["trace"]))
        try:
            yield
        finally:
            events.append("first left")

    @app.around_handle
    @contextmanager
    def second(message: Any) -> Iterator[None]:
        events.append("second")
        yield
        events.append("second left")

    @app.around_publish
    def trace(target: Any, body: Any, headers: dict[str, Any]) -> Iterator[None]:
        headers["trace"] = f"{target} {body}"
        yield
        events.append("published")

    @app.consumer("mail", on_error="reject")
    def handle(body: Any, message: Any) -> None:
        events.append(body)
        if body == "bad":
            raise ValueError(body)

    @app.rpc("double")
    def double(body: int) -> int:
        if body < 0:
            raise ValueError("negative")
        return 2 * body

    given = {"a": 1}
    with app.testing() as test:
        app.publish("mail", "good", headers=given)
        test.run_until_idle()
        around = [("first", "mail good"), "second", "good", "second left", "first left"]
        assert [each for each in events if each != "published"] == around
        assert given == {"a": 1}
        events.clear()
        app.publish("mail", "bad")
        test.run_until_idle()
        around = [("first", "mail bad"), "second", "bad", "first left"]
        assert [each for each in events if each != "published"] == around
        events.clear()
        assert app.call("double", 4) == 8
        around = [("first", "double 4"), "second", "second left", "first left"]
        assert [each for each in events if each != "published"] == around
        with pytest.raises(RemoteError, match="negative"):
            app.call("double", -1)


def test_a_context_that_fails_is_a_failure_of_the_handler(app: App) -> None:
    @app.around_handle
    def refuse(message: Any) -> Iterator[None]:
        if message.delivery_info["redelivered"]:
            yield
        else:
            raise ValueError("not yet")

    handled: list[Any] = []
    app.consumer("mail", on_error="requeue")(lambda body, message: handled.append(body))
    with app.testing() as test:
        app.publish("mail", 1)
        test.run_until_idle()
    assert handled == [1]


def test_what_is_left_is_named(app: App) -> None:
    release = Event()
    app.consumer("mail")(lambda body, message: release.wait())
    with app.testing() as test:
        app.publish_many("mail", range(12))
        with pytest.raises(
            TimeoutError,
            match=r"not idle within timeout=0.05 .*: consumer mail: 2 waiting, 10 in handlers",
        ):
            test.run_until_idle(timeout=0.05)
        release.set()
        test.run_until_idle()


def test_the_broker_of_the_application_is_back_after_a_test(unique_memory: str) -> None:
    app = App(unique_memory)
    app.consumer(Queue("mail"))(lambda body, message: None)
    before = app.connection
    with app.testing() as test:
        assert app.connection is None
        app.publish(Queue("mail"), 1)
        test.run_until_idle()
        assert test.url != unique_memory
    assert app.connection is before


def test_a_consumer_at_another_broker(app: App, unique_memory: str) -> None:
    inbox: Inbox[Any] = Inbox()
    other = f"{unique_memory}-other"

    @app.consumer("mail", connection=other)
    def take(body: Any, message: Any) -> None:
        inbox.put(body)

    app.start()
    assert app.wait_ready(SOON)
    greenconn.publish("mail", 1, connection=other)
    assert inbox.get(timeout=SOON) == 1
    app.publish("mail", "left here")
    assert app.stop(SOON)
    with app.testing() as test:
        app.publish("mail", 2)
        test.run_until_idle()
    assert inbox.get(timeout=SOON) == 2
    assert inbox.empty()
    memory.reset(other.rpartition("/")[2])


def test_messages_that_expire_in_a_test(app: App) -> None:
    app.consumer("mail")(lambda body, message: None)
    with app.testing() as test:
        app.publish("later", 1, expiration=60)
        assert test.count("later") == 1
        test.advance(61)
        assert test.count("later") == 0
        assert test.count("nothing") == 0


def test_handlers_run_within_the_context_of_flask(app: App) -> None:
    site = flask.Flask("site")
    site.config["GREETING"] = "hello"
    app.init_app(site)
    assert site.extensions == {"greenconn": app}
    greeted: list[str] = []

    @app.consumer("mail")
    def greet(body: str, message: Any) -> None:
        greeted.append(f"{flask.current_app.config['GREETING']} {body}")

    with app.testing() as test:
        app.publish("mail", "ada")
        test.run_until_idle()
    assert greeted == ["hello ada"]


def test_flask_names_the_broker(app: App) -> None:
    site = flask.Flask("site")
    site.config["GREENCONN_URL"] = "memory:///of_flask"
    app.init_app(site)
    assert app.connection is not None
    assert app.connection.virtual_host == "of_flask"
