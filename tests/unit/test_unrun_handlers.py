"""Functions of which a call runs nothing are refused wherever a handler is given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial, wraps
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import Connection, Consumer, Queue, rpc
from greenconn.checks import check_runs
from greenconn.compat import Consumer as OldConsumer
from greenconn.compat.carrot.connection import BrokerConnection
from greenconn.compat.carrot.messaging import Consumer as CarrotConsumer
from greenconn.compat.carrot.messaging import ConsumerSet
from greenconn.exceptions import RemoteError
from greenconn.mixins import ConsumerMixin
from greenconn.pidbox import Mailbox
from greenconn.testing import MemoryBroker

SAYS = "which would never run: greenconn calls plain functions"


async def coroutine(*args: Any) -> None:
    raise AssertionError("it runs")


def generator(*args: Any) -> Iterator[int]:
    yield 1


async def stream(*args: Any) -> AsyncIterator[int]:
    yield 1


class Handlers:
    """Methods, and an object that is called."""

    async def method(self, *args: Any) -> None: ...

    @classmethod
    async def of_class(cls, *args: Any) -> None: ...

    @staticmethod
    async def without(*args: Any) -> None: ...

    async def __call__(self, *args: Any) -> None: ...


REFUSED = {
    "coroutine": coroutine,
    "generator": generator,
    "stream": stream,
    "method": Handlers().method,
    "of_class": Handlers.of_class,
    "without": Handlers.without,
    "object": Handlers(),
    "partial": partial(partial(coroutine, 1), 2),
    "partial of a method": partial(Handlers().method),
    "partial of an object": partial(Handlers()),
}
#: What gives such a thing only when it is called.
HIDDEN: dict[str, Callable[..., Any]] = {
    "coroutine": lambda *args: coroutine(*args),
    "generator": lambda *args: generator(*args),
    "stream": lambda *args: stream(*args),
}


@wraps(coroutine)
def driven(*args: Any) -> None:
    """Runs the coroutine that it wraps."""
    with pytest.raises(StopIteration):
        raise StopIteration


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_run_is_refused(name: str, broker: MemoryBroker) -> None:
    handler: Any = REFUSED[name]
    refused = pytest.raises(TypeError, match=SAYS)
    for option in ("on_error", "on_decode_error"):
        with refused:
            greenconn.spawn_consumer("q", print, **{option: handler})
    with refused:
        greenconn.spawn_consumer("q", handler)
    with refused:
        rpc.spawn_server("q", handler)
    with broker.connection() as connection:
        for option in ("on_message", "on_decode_error"):
            with refused:
                Consumer(connection, Queue("q"), **{option: handler})
        with refused:
            connection.Consumer(Queue("q"), callbacks=[print, handler])
        consumer = Consumer(connection, Queue("q"))
        with refused:
            consumer.register_callback(handler)
        assert consumer.callbacks == []
        consumer.callbacks.append(handler)
        with refused:
            consumer.consume()
        with refused:
            OldConsumer(connection, "q", "x").register_callback(handler)
        with refused:
            Mailbox("box")(connection).Node("here").handler(handler)
    broker.messages("q")


def test_carrots_consumers_refuse_too(broker: MemoryBroker) -> None:
    name = broker.url.rpartition("/")[2]
    connection = BrokerConnection(backend_cls="memory", virtual_host=name)
    refused = pytest.raises(TypeError, match=SAYS)
    consumer = CarrotConsumer(connection, "q", exchange="x", routing_key="k")
    with refused:
        consumer.register_callback(coroutine)
    consumer.callbacks.append(coroutine)
    with refused:
        consumer.consume()
    greenconn.publish("q", 1)
    with refused:
        consumer.fetch(enable_callbacks=True, auto_ack=True)
    with refused:
        ConsumerSet(connection, consumers=[consumer]).consume()
    assert broker.bodies("q") == [1]
    connection.close()


def test_a_mixin_refuses(broker: MemoryBroker) -> None:
    class Worker(ConsumerMixin):
        def __init__(self, connection: Connection) -> None:
            self.connection = connection

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer(queues=[Queue("q")], callbacks=[self.on_task])]

        async def on_task(self, body: Any, message: Any) -> None: ...

    with broker.connection() as connection, pytest.raises(TypeError, match=SAYS):
        Worker(connection).run()


def test_a_consumer_whose_receive_is_async_is_refused(broker: MemoryBroker) -> None:
    class Waiting(Consumer):
        async def receive(self, body: Any, message: Any) -> None: ...  # type: ignore[override]

    with broker.connection() as connection, pytest.raises(TypeError, match="receive=.*" + SAYS):
        Waiting(connection, Queue("q"))


@pytest.mark.parametrize("name", HIDDEN)
def test_what_turns_out_not_to_have_run_is_no_success(
    name: str, broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    failed = Event()
    errors: list[BaseException] = []

    def on_error(message: Any, exc: BaseException) -> None:
        errors.append(exc)
        message.requeue()
        consumer.stop()
        failed.set()

    greenconn.publish("q", 1)
    consumer = greenconn.spawn_consumer("q", HIDDEN[name], on_error=on_error)
    assert failed.wait(30)
    assert consumer.get(timeout=30)["handled"] == 0
    assert broker.bodies("q") == [1]
    assert "which never runs: greenconn calls plain functions" in str(errors[0])


@pytest.mark.parametrize("name", HIDDEN)
def test_who_drains_learns_of_a_callback_that_did_not_run(name: str, broker: MemoryBroker) -> None:
    for option in ("callbacks", "on_message"):
        given: Any = [HIDDEN[name]] if option == "callbacks" else HIDDEN[name]
        greenconn.publish("q", 1)
        with broker.connection() as connection:
            consumer = connection.Consumer(Queue("q"), **{option: given})
            consumer.consume()
            with pytest.raises(TypeError, match="which never runs"):
                connection.drain_events(timeout=10)
        assert broker.bodies("q") == [1]
        Queue("q")(broker.connection().default_channel).purge()


def test_a_caller_learns_that_its_function_did_not_run(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    rpc.spawn_server("q", lambda body: coroutine(body))
    with pytest.raises(RemoteError, match="TypeError: the function returned the coroutine"):
        rpc.call("q", 1, timeout=10)


def test_what_runs_is_taken(broker: MemoryBroker) -> None:
    functions: list[object] = [print, driven, Mock(), MagicMock(), partial(print, 1), list]
    for function in functions:
        check_runs("handler", function)
    with pytest.raises(TypeError):
        check_runs("handler", AsyncMock())
    done = Event()
    start: Any = lambda body, message: gevent.spawn(done.set)  # noqa: E731 - checkers refuse it
    greenconn.spawn_consumer("q", start)
    greenconn.publish("q", 1)
    assert done.wait(30)
