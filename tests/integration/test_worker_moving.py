"""Waiting messages that are moved to another queue or broker, and looked at, on every transport."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

import greenconn
from greenconn.cli import main
from greenconn.connection import Connection
from greenconn.defaults import publishing_connection
from greenconn.exceptions import NotFound, OperationalError
from greenconn.message import Message
from greenconn.publishing.publisher import OutgoingMessage, PublishOptions
from greenconn.transport import memory
from greenconn.worker.failures import count_of, look, move, resent
from tests.fix_wires import until
from tests.integration.capabilities import connection_of_kind  # noqa: F401 - ``connection``


@pytest.fixture
def other(unique: str) -> Iterator[Connection]:
    """A broker of another kind."""
    with Connection(f"memory:///{unique}") as connection:
        yield connection
    memory.reset(unique)


def to(queue: str) -> Callable[[Message], OutgoingMessage]:
    """Return a route to *queue*, which is declared if it is not there."""

    def route(message: Message) -> OutgoingMessage:
        options = PublishOptions(queue, {"declare": True})
        return resent(message, options, dict(message.headers))

    return route


def moved(source: Connection, queue: str, target: Connection, route: Any, **options: Any) -> int:
    with source.channel() as channel:
        return move(channel, queue, publishing_connection(target), route, **options)


def bodies(connection: Connection, queue: str) -> list[Any]:
    """Take and return what waits in *queue*, in its order."""
    found = []
    with connection.channel() as channel:
        while count_of(channel, queue):
            message = channel.basic_get(queue, no_ack=True)
            if message is not None:
                found.append(message.payload)
    return found


def waiting(connection: Connection, queue: str) -> int:
    with connection.channel() as channel:
        return count_of(channel, queue)


@pytest.mark.parametrize("rate", [None, 1000.0])
def test_all_are_moved_in_their_order(
    connection: Connection, other: Connection, unique: str, rate: float | None
) -> None:
    sent = list(range(250 if rate is None else 5))
    greenconn.publish_many(
        unique, sent, connection=connection, declare=True, headers={"a": 1}, message_id="m"
    )
    until(lambda: waiting(connection, unique) == len(sent))
    steps: list[int] = []
    assert moved(connection, unique, other, to("t"), rate=rate, on_moved=steps.append) == len(sent)
    assert steps == sorted(steps)
    assert steps[-1] == len(sent)
    with other.channel() as channel:
        (first,) = look(channel, "t", 1)
        assert (first.headers["a"], first.properties["message_id"]) == (1, "m")
    there = bodies(other, "t")
    if connection.transport.driver_type == "sqs":  # which keeps no order
        there.sort()
    assert there == sent
    assert waiting(connection, unique) == 0


def test_some_are_moved_and_the_others_stay(connection: Connection, unique: str) -> None:
    greenconn.publish_many(unique, list(range(6)), connection=connection, declare=True)
    until(lambda: waiting(connection, unique) == 6)
    target = f"{unique}-t"

    def even(message: Message) -> OutgoingMessage | None:
        return None if message.payload % 2 else to(target)(message)

    assert moved(connection, unique, connection, even, limit=2) == 2
    until(lambda: waiting(connection, unique) == 4)
    assert moved(connection, unique, connection, even) == 1
    until(lambda: waiting(connection, unique) == 3)
    assert sorted(bodies(connection, unique)) == [1, 3, 5]
    assert sorted(bodies(connection, target)) == [0, 2, 4]


def test_what_cannot_be_published_stays(
    connection: Connection, other: Connection, unique: str
) -> None:
    greenconn.publish_many(unique, list(range(6)), connection=connection, declare=True)
    until(lambda: waiting(connection, unique) == 6)

    def route(message: Message) -> OutgoingMessage:
        if message.payload == 3:
            return resent(message, PublishOptions("nosuch", {}), {})
        return to("t")(message)

    with pytest.raises(OperationalError, match="nosuch"):
        moved(connection, unique, other, route)
    there = bodies(other, "t")
    until(lambda: waiting(connection, unique) == 6 - len(there))
    assert sorted(there + bodies(connection, unique)) == list(range(6))
    if connection.transport.driver_type != "sqs":  # which keeps no order
        assert there == [0, 1, 2]


def test_a_move_that_is_killed_loses_nothing(
    connection: Connection, other: Connection, unique: str
) -> None:
    greenconn.publish_many(unique, list(range(30)), connection=connection, declare=True)
    until(lambda: waiting(connection, unique) == 30)
    routed: list[int] = []

    def route(message: Message) -> OutgoingMessage:
        routed.append(message.payload)
        return to("t")(message)

    moving = gevent.spawn(moved, connection, unique, other, route, rate=500.0)
    until(lambda: len(routed) > 5)
    moving.kill()
    there: set[int] = set()

    def are_all_there() -> bool:
        # Some brokers have what was put back a moment later.
        moved(connection, unique, other, to("t"))
        there.update(bodies(other, "t"))
        return there == set(range(30))

    until(are_all_there)


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 1.5}, {"rate": 0}, {"rate": "x"}])
def test_wrong_arguments(other: Connection, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be"):
        moved(other, "q", other, to("t"), **options)


def test_a_queue_that_is_not_there(other: Connection) -> None:
    with pytest.raises(NotFound, match="nosuch"):
        moved(other, "nosuch", other, to("t"))


def test_commands(
    capfd: pytest.CaptureFixture[str], other: Connection, unique: str, redis_url: str
) -> None:
    url = f"memory:///{unique}"
    for name in ("a", "b"):
        greenconn.publish(
            unique, {"name": name}, connection=other, declare=True, headers={"kind": name}
        )

    def command(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(arguments)
        return (code, *capfd.readouterr())

    for _ in range(2):
        code, output, errors = command("peek", unique, "-u", url)
        assert (code, errors) == (0, f"{unique}: 2 of 2 messages\n")
        assert "#1  application/json\n" in output
        assert "  header kind   a\n" in output
        assert '  {\n    "name": "a"\n  }\n' in output
    code, output, _ = command("peek", unique, "-u", url, "--json", "-n", "1")
    assert json.loads(output)["body"] == {"name": "a"}
    code, _, errors = command("move", unique, f"{unique}-t", "-u", url, "--declare", "-H", "kind=b")
    assert (code, errors) == (0, f"moved 1 message from {unique} to {unique}-t\n")
    code, _, errors = command("move", unique, unique, "-u", url, "--to", redis_url, "--declare")
    assert (code, errors) == (0, f"moved 1 message from {unique} to {unique}\n")
    with Connection(redis_url) as redis:
        assert bodies(redis, unique) == [{"name": "a"}]
        redis.default_channel.queue_delete(unique)
    code, output, errors = command("peek", unique, "-u", url)
    assert (code, output, errors) == (0, "", f"{unique}: no message waits\n")
    code, _, errors = command("move", f"{unique}-t", "t", "-u", url, "--contains", "nothing")
    assert (code, errors) == (0, f"moved 0 messages from {unique}-t to t\n")
    code, _, errors = command("move", "nosuch", "t", "-u", url)
    assert code == 1
    assert "nosuch" in errors
    code, _, errors = command("move", unique, unique, "-u", url)
    assert code == 2
    assert "must not be SOURCE itself" in errors
