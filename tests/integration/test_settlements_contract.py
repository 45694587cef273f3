"""What every channel does alike with answers and confirms, also those over kombu's hooks."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest

from greenconn import Connection
from greenconn.exceptions import AMQPNotImplementedError, PreconditionFailed, PublishTimeout
from tests.integration.capabilities import KINDS, Kind
from tests.integration.contract import SOON, Side

#: Seconds: what a call may take that would take ten times as long if it did not obey.
LONG = 30.0


def held(side: Side, channel: Any, count: int) -> tuple[str, list[Any]]:
    """A queue, and so many messages of it that are not answered."""
    queue = side.queue(channel)
    for number in range(count):
        side.send(channel, str(number), "", queue)
    got: list[Any] = []
    channel.basic_consume(queue, callback=got.append)
    side.drain(channel.connection, lambda: len(got) == count)
    return queue, got


def left(side: Side, channel: Any, queue: str) -> list[str]:
    """What comes back to *queue* when *channel* is closed, in the order of its bodies."""
    link = channel.connection
    channel.close()
    gevent.sleep(0)
    other = side.channel(link)
    bodies: list[str] = []

    def take() -> bool:
        bodies.extend(side.bodies(other, queue))
        return True

    # Who gives back in the background has done so when a message that is sent now is there.
    side.send(other, "last", "", queue)
    end = monotonic() + SOON
    while "last" not in bodies and monotonic() < end:
        take()
        gevent.sleep(0.01)
    assert "last" in bodies
    if side.kind == "amqp":
        gevent.sleep(0.05)  # see Side.get
        take()
    bodies.remove("last")
    return sorted(bodies)


def test_recover_with_its_default_ends_nothing(side: Side) -> None:
    link = side.link()
    channel, other = side.channel(link), side.channel(link)
    with pytest.raises(AMQPNotImplementedError, match="requeue=True"):
        channel.basic_recover()
    assert link.is_open
    queue = side.queue(other)
    side.send(other, "x", "", queue)
    assert side.get(channel, queue).body == "x"


def test_recover_of_what_was_got(side: Side) -> None:
    channel, queue = side.open_queue()
    side.send(channel, "x", "", queue)
    assert channel.basic_get(queue).body == "x"
    channel.basic_recover(requeue=True)
    assert side.get(channel, queue).body == "x"


def test_ack_of_all(side: Side) -> None:
    channel = side.channel()
    queue, _ = held(side, channel, 3)
    channel.basic_ack(0, multiple=True)
    channel.basic_ack(0, multiple=True)  # of nothing
    assert left(side, channel, queue) == []


def test_ack_of_those_up_to_one(side: Side) -> None:
    channel = side.channel()
    queue, got = held(side, channel, 4)
    channel.basic_ack(got[1].delivery_tag, multiple=True)
    assert left(side, channel, queue) == ["2", "3"]


def test_ack_up_to_an_unknown_one_is_refused(side: Side) -> None:
    channel = side.channel()
    queue, _ = held(side, channel, 2)
    with pytest.raises(PreconditionFailed, match="4711"):
        channel.basic_ack(4711, multiple=True)
    assert left(side, channel, queue) == ["0", "1"]


@pytest.mark.parametrize("method", ["basic_ack", "basic_reject"])
def test_unknown_and_repeated_settlements_are_refused(side: Side, method: str) -> None:
    link = side.link()
    channel = side.channel(link)
    with pytest.raises(PreconditionFailed, match="4711"):
        getattr(channel, method)(4711)
    channel = side.channel(link)
    queue = side.queue(channel)
    side.send(channel, "x", "", queue)
    message = channel.basic_get(queue)
    getattr(channel, method)(message.delivery_tag)
    with pytest.raises(PreconditionFailed, match="unknown delivery tag"):
        getattr(channel, method)(message.delivery_tag)
    assert link.is_open
    assert side.bodies(side.channel(link), queue) == []


def test_settlements_over_a_lost_link_do_nothing(side: Side) -> None:
    channel, keeper = side.channel(), side.channel()
    queue = side.queue(keeper)
    side.send(keeper, "x", "", queue)
    message = channel.basic_get(queue)
    channel.connection.collect()
    message.ack()


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.server])
def test_confirm_timeout(
    request: pytest.FixtureRequest, name: str, patched: bool, long: bool, unique: str
) -> None:
    kind: Kind = KINDS[name]
    if (kind.is_slow or name == "amqp") and not long:
        pytest.skip("it takes its time to start: with --long")
    assert kind.server is not None
    server: Any = request.getfixturevalue(kind.server)
    options = {**kind.options, "lease": LONG} if name != "amqp" else {}
    with (
        Connection(server.url, transport_options=options) as connection,
        Connection(server.url, transport_options={**options, "confirm_timeout": 0.1}) as hasty,
    ):
        channel, other = connection.channel(), hasty.channel()
        channel.queue_declare(unique)
        message = channel.prepare_message("x")
        channel.basic_publish_confirm(message, "", unique)
        other.basic_publish_confirm(message, "", unique, timeout=LONG)
        server.pause()
        began = monotonic()
        try:
            # basic_publish of AMQP waits for nothing.
            waiting = ["basic_publish_confirm", *([] if name == "amqp" else ["basic_publish"])]
            for publish in (getattr(channel, each) for each in waiting):
                with pytest.raises(PublishTimeout):
                    publish(message, "", unique, timeout=LONG, confirm_timeout=0.1)
            with pytest.raises(PublishTimeout):
                other.basic_publish_confirm(message, "", unique)
        finally:
            took = monotonic() - began
            server.resume()
        assert took < LONG / 3
        channel.queue_delete(unique)
