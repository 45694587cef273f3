"""Time, length and death, by a clock that the test moves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from greenconn.broker.queues import QueuePolicy
from greenconn.exceptions import PreconditionFailed, PublishNacked
from greenconn.testing import ManualClock
from greenconn.transport.memory import Channel
from greenconn.transport.memory.broker import EXPIRED_A_TURN, Broker
from tests.integration.contract import Store


def declare(channel: Channel, queue: str = "q", **arguments: Any) -> str:
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return str(channel.queue_declare(queue, arguments=named).queue)


def send(channel: Channel, body: Any, queue: str = "q", **properties: Any) -> None:
    message = channel.prepare_message(str(body), properties=properties)
    channel.basic_publish_confirm(message, "", queue)


def bodies(broker: Broker, queue: str = "q") -> list[Any]:
    """What waits in a queue; numbers as numbers."""
    found = [each.envelope["body"] for each in broker.queues[queue].store]
    return [int(each) if each.isdigit() else each for each in found]


def test_no_timer_without_need(broker: Broker, channel: Channel, clock: ManualClock) -> None:
    declare(channel)
    declare(channel, "ttl", x_message_ttl=1000)
    declare(channel, "full", x_max_length=3)
    for n in range(5):
        send(channel, n, "q")
        send(channel, n, "full")
    assert clock.armed == 0
    send(channel, "x", "ttl")
    assert clock.armed == 1
    assert channel.basic_get("ttl", no_ack=True) is not None
    assert clock.armed == 0
    send(channel, "x", "ttl")
    channel.basic_consume("ttl", no_ack=True, sink=Store())
    assert clock.armed == 0
    send(channel, "taken at once", "ttl")
    assert clock.armed == 0
    channel.basic_qos(0, 1, False)
    send(channel, "x", "q", expiration="1000")
    assert clock.armed == 0  # it is not at the head


def test_messages_expire_one_after_the_other(
    broker: Broker, channel: Channel, clock: ManualClock
) -> None:
    declare(channel, x_message_ttl=1000)
    for n in range(3):
        send(channel, n)
        clock.move(0.3)
    assert bodies(broker) == [0, 1, 2]
    clock.move(0.2)
    assert bodies(broker) == [1, 2]
    clock.move(0.3)
    assert bodies(broker) == [2]
    clock.move(10)
    assert bodies(broker) == []
    assert clock.armed == 0


def test_the_shorter_time_counts(broker: Broker, channel: Channel, clock: ManualClock) -> None:
    declare(channel, x_message_ttl=1000)
    send(channel, "own", expiration="500")
    send(channel, "queue", expiration="5000")
    clock.move(0.6)
    assert bodies(broker) == ["queue"]
    clock.move(0.6)
    assert bodies(broker) == []


def test_time_goes_on_while_a_message_is_delivered(
    broker: Broker, channel: Channel, clock: ManualClock
) -> None:
    declare(channel, x_message_ttl=1000)
    send(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    clock.move(2)
    message.requeue()
    assert bodies(broker) == []
    send(channel, "y")
    message = channel.basic_get("q")
    assert message is not None
    clock.move(0.5)
    message.requeue()
    assert bodies(broker) == ["y"]
    clock.move(0.6)
    assert bodies(broker) == []


def test_many_expire_in_several_turns(broker: Broker, channel: Channel, clock: ManualClock) -> None:
    declare(channel, x_message_ttl=10)
    for n in range(EXPIRED_A_TURN + 5):
        send(channel, n)
    lengths = []
    timer_of = clock.call_later

    def watched(delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        lengths.append(len(broker.queues["q"]))
        return timer_of(delay, function)

    clock.call_later = watched  # type: ignore[method-assign]
    clock.move(1)
    assert lengths == [5]
    assert bodies(broker) == []


def test_expired_are_never_delivered(broker: Broker, channel: Channel, clock: ManualClock) -> None:
    declare(channel, x_message_ttl=1000)
    send(channel, "old")
    clock._now += 5  # the timer is late
    store = Store()
    assert channel.basic_get("q") is None
    send(channel, "old")
    clock._now += 5
    channel.basic_consume("q", sink=store)
    assert not store


def test_unused_queue_expires(
    broker: Broker, open_channel: Callable[..., Channel], clock: ManualClock
) -> None:
    channel = open_channel()
    declare(channel, x_expires=1000)
    for use in (
        lambda: channel.basic_get("q"),
        lambda: declare(channel, x_expires=1000),
        lambda: channel.queue_declare("q", passive=True),
        lambda: channel.basic_cancel(channel.basic_consume("q", sink=Store())),
    ):
        clock.move(0.9)
        use()
    clock.move(0.9)
    send(channel, "publishing is no use")
    clock.move(0.2)
    assert broker.queues == {}
    assert clock.armed == 0


def test_used_queue_does_not_expire(
    broker: Broker, open_channel: Callable[..., Channel], clock: ManualClock
) -> None:
    channel = open_channel()
    declare(channel, x_expires=1000)
    consumer = open_channel()
    consumer.basic_consume("q", sink=Store())
    assert clock.armed == 0
    clock.move(5)
    assert "q" in broker.queues
    consumer.close()
    clock.move(1.1)
    assert broker.queues == {}


def test_consumers_that_ack_are_given_the_next_in_turn(channel: Channel) -> None:
    declare(channel)
    channel.basic_qos(0, 2, False)
    first, second = Store(), Store()
    for sink in (first, second):
        channel.basic_consume("q", sink=sink)
    for n in range(8):
        send(channel, n)
    assert [[each.body for each in sink] for sink in (first, second)] == [["0", "2"], ["1", "3"]]
    second[0].ack()
    first[1].ack()
    first[0].ack()
    assert [[each.body for each in sink] for sink in (first, second)] == [
        ["0", "2", "5", "6"],
        ["1", "3", "4"],
    ]
    for message in (first[2], first[3], second[1], second[2]):
        message.ack()
    send(channel, 8)
    send(channel, 9)
    assert [first[-2].body, first[-1].body, second[-1].body] == ["7", "8", "9"]


def test_length_counts_only_what_waits(broker: Broker, channel: Channel) -> None:
    declare(channel, x_max_length=1)
    channel.basic_qos(0, 2, False)
    store = Store()
    channel.basic_consume("q", sink=store)
    for n in range(4):
        send(channel, n)
    assert [each.body for each in store] == ["0", "1"]
    assert bodies(broker) == [3]
    # What comes back is the oldest, and the first to go when there is no room (as in RabbitMQ).
    store.popleft().requeue()
    assert [each.body for each in store] == ["1", "3"]
    assert bodies(broker) == []


def test_no_room_at_all(broker: Broker, channel: Channel) -> None:
    declare(channel, x_max_length=0)
    send(channel, "dropped")
    store = Store()
    channel.basic_consume("q", sink=store)
    send(channel, "taken")
    assert ([each.body for each in store], bodies(broker)) == (["taken"], [])


def test_refusal_is_one_for_all_queues(broker: Broker, channel: Channel) -> None:
    declare(channel, "full", x_max_length=0, x_overflow="reject-publish")
    declare(channel, "open")
    for queue in ("full", "open"):
        channel.queue_bind(queue, "amq.fanout")
    message = channel.prepare_message("x")
    with pytest.raises(PublishNacked):
        channel.basic_publish_confirm(message, "amq.fanout")
    assert bodies(broker, "open") == ["x"]
    channel.basic_publish(message, "amq.fanout")


def test_a_long_line_of_dead_letter_queues_does_not_nest(broker: Broker, channel: Channel) -> None:
    count = sys.getrecursionlimit() + 100
    for n in range(count):
        declare(
            channel,
            f"q{n}",
            x_max_length=0,
            x_dead_letter_exchange="",
            x_dead_letter_routing_key=f"q{n + 1}",
        )
    declare(channel, f"q{count}")
    send(channel, "x", "q0")
    (letter,) = broker.queues[f"q{count}"].store
    assert len(letter.envelope["headers"]["x-death"]) == count


def test_circle_of_full_queues_ends(broker: Broker, channel: Channel) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        declare(
            channel,
            name,
            x_max_length=0,
            x_dead_letter_exchange="",
            x_dead_letter_routing_key=other,
        )
    send(channel, "x", "a")
    assert bodies(broker, "a") == bodies(broker, "b") == []


def test_dead_letter_exchange_may_be_absent(broker: Broker, channel: Channel) -> None:
    declare(channel, x_dead_letter_exchange="absent")
    send(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    message.reject()
    assert channel.is_open


@pytest.mark.parametrize("deaths", ["text", 5, [5], [{"queue": "q"}], [{"count": "x"}]])
def test_deaths_that_cannot_be_are_none(broker: Broker, channel: Channel, deaths: Any) -> None:
    declare(channel, "dead")
    declare(channel, x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    message = channel.prepare_message("x", headers={"x-death": deaths})
    channel.basic_publish(message, "", "q")
    found = channel.basic_get("q")
    assert found is not None
    found.reject()
    (letter,) = broker.queues["dead"].store
    (death,) = letter.envelope["headers"]["x-death"]
    assert (death["queue"], death["reason"], death["count"]) == ("q", "rejected", 1)
    assert "delivery_info" not in letter.envelope["properties"]


def test_priority_is_lowered_to_the_highest(broker: Broker, channel: Channel) -> None:
    declare(channel, x_max_priority=2)
    for n, priority in enumerate([None, 200, -3, 1, "high"]):
        send(channel, n, priority=priority)
    assert bodies(broker) == [1, 3, 0, 2, 4]


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-message-ttl": "5"},
        {"x-message-ttl": True},
        {"x-expires": 0},
        {"x-max-length": -1},
        {"x-max-priority": 256},
        {"x-overflow": "explode"},
        {"x-queue-type": "stream"},
        {"x-dead-letter-routing-key": "k"},
    ],
)
def test_arguments_that_cannot_be(channel: Channel, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        QueuePolicy.of(arguments)
    with pytest.raises(PreconditionFailed):
        channel.queue_declare("q", arguments=arguments)


def test_policy_reads_milliseconds() -> None:
    policy = QueuePolicy.of({"x-message-ttl": 1500, "x-expires": 20, "x-queue-type": "classic"})
    assert (policy.message_ttl, policy.expires) == (1.5, 0.02)
    assert not policy.is_bounded
