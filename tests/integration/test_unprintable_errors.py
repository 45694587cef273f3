"""Errors that have no text, and messages that come back at once: nothing is lost, nothing loops hot."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from time import monotonic
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import rpc
from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import RemoteError
from greenconn.message import Message
from greenconn.options import Retry
from greenconn.worker.handling import FIRST_PAUSE
from tests.fix_wires import until
from tests.integration.capabilities import connection_of_kind  # noqa: F401 - ``connection``
from tests.integration.test_worker_failures import got
from tests.receiving import consuming

pytestmark = pytest.mark.halved

SOON = 60.0
TEXT = "x-greenconn-error-text"
#: Handlings of a message that comes back.
TIMES = 6


class WithoutTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class SurrogateError(Exception):
    def __str__(self) -> str:
        return "\ud800"

    __repr__ = __str__


class EndlessError(Exception):
    def __str__(self) -> str:
        return "x" * 10_000


ERRORS = {
    "no text": (WithoutTextError, "str() of WithoutTextError raised RuntimeError"),
    "surrogate": (SurrogateError, "\\ud800"),
    "endless": (EndlessError, "x" * 1000),
}
errors = pytest.mark.parametrize(("error", "text"), ERRORS.values(), ids=ERRORS)
Error = Callable[[], Exception]


@errors
@pytest.mark.parametrize(
    "options", [{}, {"retry": Retry(tries=2, delay=0.01)}, {"batch_size": 1}], ids=str
)
def test_a_dead_letter_has_the_text_of_any_error(
    connection: Connection, unique: str, error: Error, text: str, options: dict[str, Any]
) -> None:
    calls: list[Any] = []

    def fail(body: Any, message: Any) -> None:
        calls.append(body)
        raise error()

    consumer = consuming(unique, fail, connection=connection, **options)
    greenconn.publish(unique, "kept", connection=connection)
    letter = got(connection, f"{unique}.dead")
    assert letter.payload == "kept"
    assert letter.headers[TEXT] == text
    until(lambda: consumer.stats()["rejected"] == 1, SOON)
    assert len(calls) == (2 if "retry" in options else 1)
    assert consumer.stop(SOON)


@errors
def test_a_caller_gets_the_text_of_any_error(
    connection: Connection, unique: str, error: Error, text: str
) -> None:
    def answer(body: str) -> str:
        if body == "fail":
            raise error()
        return "\ud800"  # no reply can hold it

    server = rpc.spawn_server(unique, answer, connection=connection)
    assert server.wait_ready(SOON)
    with pytest.raises(RemoteError) as raised:
        rpc.call(unique, "fail", connection=connection, timeout=SOON)
    assert raised.value.args[0].endswith(f"Error: {text}")
    with pytest.raises(RemoteError) as raised:
        rpc.call(unique, "answer", connection=connection, timeout=SOON)
    assert raised.value.remote_type.endswith("EncodeError")
    assert server.stop(SOON)


def put_back(body: Any, message: Message) -> None:
    message.requeue()


def put_back_and_fail(body: Any, message: Message) -> None:
    message.requeue()
    raise ValueError


def fail(body: Any, message: Any) -> None:
    raise ValueError


def die(body: Any, message: Any) -> None:
    raise gevent.GreenletExit


def put_back_all(bodies: Any, messages: list[Message]) -> None:
    for each in messages:
        each.requeue()


WAYS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "requeue": (fail, {"on_error": "requeue"}),
    "batch": (fail, {"on_error": "requeue", "batch_size": 1}),
    "on_error": (fail, {"on_error": lambda message, exc: message.requeue()}),
    "handler": (put_back, {}),
    "batch handler": (put_back_all, {"batch_size": 1}),
    "failing handler": (put_back_and_fail, {}),
    "kill": (die, {}),
    "batch kill": (die, {"batch_size": 1}),
}


@pytest.mark.parametrize(("handler", "options"), WAYS.values(), ids=WAYS)
@pytest.mark.sampled(20)
def test_a_message_that_comes_back_at_once_waits(
    connection: Connection, unique: str, handler: Callable[..., None], options: dict[str, Any]
) -> None:
    times: list[float] = []

    def handle(body: Any, message: Any) -> None:
        times.append(monotonic())
        if len(times) < TIMES:
            handler(body, message)

    consumer = consuming(unique, handle, connection=connection, **options)
    greenconn.publish(unique, "again", connection=connection)
    until(lambda: consumer.stats()["handled"] >= 1 and len(times) == TIMES, SOON)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(pause > 0.9 * FIRST_PAUSE * 2**n for n, pause in enumerate(pauses)), pauses
    assert consumer.stop(SOON)


def test_a_dead_letter_that_cannot_be_stored_waits(connection: Connection, unique: str) -> None:
    """In a batch, too."""
    calls: list[Any] = []

    def fail(bodies: Any, messages: Any) -> None:
        calls.append(bodies)
        raise ValueError

    elsewhere = Queue(unique)
    consumer = consuming(
        elsewhere, fail, connection=connection, dead_letter="d" * 300, batch_size=1
    )
    greenconn.publish(elsewhere, "kept", connection=connection)
    until(lambda: consumer.stats()["retried"] == 1, SOON)
    assert consumer.stats()["requeued"] == 0
    assert calls == [["kept"]]
    consumer.kill()
    assert got(connection, unique).payload == "kept"


def test_a_message_that_its_dead_letter_exchange_brings_back_waits(
    connection: Connection, unique: str
) -> None:
    times: list[float] = []

    def reject(body: Any, message: Message) -> None:
        times.append(monotonic())
        if len(times) < TIMES:
            raise ValueError

    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": unique}
    queue = Queue(unique, queue_arguments=arguments)
    consumer = consuming(queue, reject, connection=connection, on_error="reject")
    greenconn.publish(queue, "again", connection=connection)
    until(lambda: len(times) == TIMES, SOON)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(pause > 0.9 * FIRST_PAUSE * 2**n for n, pause in enumerate(pauses)), pauses
    assert consumer.stop(SOON)
