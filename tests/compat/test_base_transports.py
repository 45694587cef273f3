"""Transports that are written to kombu's base contract, on either library."""

from __future__ import annotations

import importlib
from collections import deque
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("kombu")

LIBRARIES = ["kombu", "greenconn"]


class Lost(Exception):
    """The connection was lost."""


class Post:
    """A broker: queues, and what the transport noted."""

    def __init__(self, lib: str) -> None:
        self.base: Any = importlib.import_module(f"{lib}.transport.base")
        self.lib: Any = importlib.import_module(lib)
        self.queues: dict[str, deque[Any]] = {}
        self.closed: list[int] = []
        self.numbers = count(1)
        self.failures = 0


class Channel:
    """A channel, which the base class of either library is mixed into."""

    def __init__(self, connection: Any, post: Post) -> None:
        self.connection = connection
        self.post = post
        self.consumers: dict[str, tuple[str, Any]] = {}
        self.events: dict[str, set[Any]] = {"basic_return": set()}
        connection.channels.append(self)

    def queue_declare(self, queue: str = "", **kwargs: Any) -> Any:
        self.post.queues.setdefault(queue, deque())
        return SimpleNamespace(queue=queue, message_count=0, consumer_count=0)

    def exchange_declare(self, *args: Any, **kwargs: Any) -> None: ...

    def queue_bind(self, *args: Any, **kwargs: Any) -> None: ...

    def prepare_message(self, body: Any, priority: Any = 0, *args: Any, **kwargs: Any) -> Any:
        names = ("content_type", "content_encoding", "headers", "properties")
        return {"body": body, **dict(zip(names, args, strict=False)), **kwargs}

    def basic_publish(self, message: Any, exchange: str, routing_key: str, **kwargs: Any) -> None:
        if self.post.failures:
            self.post.failures -= 1
            raise Lost("while publishing")
        self.post.queues.setdefault(routing_key, deque()).append(message)

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any
    ) -> None:
        self.consumers[consumer_tag] = queue, callback

    def basic_cancel(self, consumer_tag: str) -> None:
        self.consumers.pop(consumer_tag, None)

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None: ...

    def basic_qos(self, *args: Any, **kwargs: Any) -> None: ...

    def message_to_python(self, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        info = {"exchange": "", "routing_key": ""}
        return self.post.base.Message(
            channel=self, delivery_tag=next(self.post.numbers), delivery_info=info, **message
        )

    def close(self) -> None: ...


def transport_of(post: Post) -> Any:
    class TheChannel(Channel, post.base.StdChannel):  # type: ignore[misc, name-defined]
        pass

    class Transport(post.base.Transport):  # type: ignore[misc, name-defined]
        connection_errors = (Lost,)
        channel_errors = ()

        def establish_connection(self) -> Any:
            # Any object: what it is, nobody else knows.
            return SimpleNamespace(client=self.client, number=next(post.numbers), channels=[])

        def create_channel(self, connection: Any) -> Any:
            return TheChannel(connection, post)

        def drain_events(self, connection: Any, timeout: float | None = None) -> None:
            if post.failures:
                post.failures -= 1
                raise Lost("while draining")
            for channel in connection.channels:
                for queue, callback in list(channel.consumers.values()):
                    if post.queues[queue]:
                        callback(channel.message_to_python(post.queues[queue].popleft()))
                        return
            raise TimeoutError("timed out")

        def close_connection(self, connection: Any) -> None:
            post.closed.append(connection.number)

        def verify_connection(self, connection: Any) -> bool:
            return connection.number not in post.closed

        def register_with_event_loop(self, connection: Any, loop: Any) -> None:
            loop.append(connection.number)

        def heartbeat_check(self, connection: Any, rate: int = 2) -> None:
            if post.failures:
                raise Lost("no heartbeat")

    return Transport


@pytest.fixture(params=LIBRARIES)
def post(request: pytest.FixtureRequest) -> Post:
    """A broker for transports of one library."""
    return Post(request.param)


def test_messages_come_and_go(post: Post) -> None:
    connection = post.lib.Connection(transport=transport_of(post))
    got: list[Any] = []
    queue = post.lib.Queue("q")

    def receive(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    with connection, connection.Consumer(queue, callbacks=[receive]):
        assert connection.connected
        connection.Producer().publish({"a": 1}, routing_key="q")
        connection.drain_events(timeout=30)
        assert got == [{"a": 1}]
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.01)
        number = connection.connection.number
    assert post.closed == [number]
    assert not connection.connected


def test_conveniences_work(post: Post) -> None:
    common = importlib.import_module(f"{post.lib.__name__}.common")
    with post.lib.Connection(transport=transport_of(post)) as connection:
        with connection.SimpleQueue("simple") as simple:
            simple.put("x")
            assert simple.get(timeout=30).payload == "x"
        connection.Producer().publish("y", routing_key="q", declare=[post.lib.Queue("q")])
        messages = common.itermessages(
            connection, connection.channel(), post.lib.Queue("q"), timeout=1
        )
        assert [body for body, _ in messages] == ["y"]
        pool = connection.Pool(2)
        with pool.acquire() as pooled:
            assert pooled.default_channel.queue_declare("pooled").queue == "pooled"
        pool.force_close_all()


def test_what_a_loss_interrupted_is_done_again(post: Post) -> None:
    connection = post.lib.Connection(transport=transport_of(post))
    with connection:
        producer = connection.Producer()
        producer.publish("x", routing_key="q")
        first = connection.connection.number
        post.failures = 1
        producer.publish("y", routing_key="q", retry=True, retry_policy={"max_retries": 2})
        assert connection.connection.number != first
        assert first in post.closed
        assert [each["body"] for each in post.queues["q"]] == [b"x", b"y"]


def test_an_error_that_stays_is_raised(post: Post) -> None:
    """Such a transport does not know which errors pass."""
    with post.lib.Connection(transport=transport_of(post)) as connection:
        post.failures = 1000
        publish = connection.ensure(connection.Producer(), connection.Producer().publish)
        with pytest.raises(post.lib.exceptions.OperationalError):
            publish("x", routing_key="q")
        assert post.failures > 900
        assert connection.recoverable_connection_errors == (Lost,)


def test_a_lost_connection_is_noticed_where_it_is_drained() -> None:
    post = Post("greenconn")
    connection = post.lib.Connection(transport=transport_of(post))
    with connection:
        former = connection.connection.number
        connection.heartbeat_check()
        post.failures = 1
        with pytest.raises(Lost):
            connection.heartbeat_check()
        post.failures = 0
        assert not connection.connected
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.01)
        assert connection.connection.number != former
        post.failures = 1
        with pytest.raises(Lost):
            connection.drain_events(timeout=0.01)
        assert not connection.connected


def test_errors_are_reported_although_the_transport_cannot_be_made(post: Post) -> None:
    class Broken(transport_of(post)):  # type: ignore[misc]
        def __init__(self, client: Any, **kwargs: Any) -> None:
            raise ImportError("its library is missing")

    connection = post.lib.Connection(transport=Broken)
    assert connection.connection_errors == (Lost,)
    assert connection.channel_errors == ()


def test_the_transport_registers_with_an_event_loop(post: Post) -> None:
    loop: list[int] = []
    with post.lib.Connection(transport=transport_of(post)) as connection:
        connection.register_with_event_loop(loop)
        assert loop == [connection.connection.number]
