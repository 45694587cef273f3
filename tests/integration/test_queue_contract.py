"""The rules that queues keep on every transport."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from datetime import datetime, timezone
from functools import partial
from random import Random
from typing import Any

import gevent
import pytest

from greenconn.exceptions import AccessRefused, NotFound, PreconditionFailed, PublishNacked
from greenconn.message import Message
from greenconn.transport.redis import ClusterTransport
from tests.fix_wires import until
from tests.integration.capabilities import Can, needs
from tests.integration.contract import SOON, Side, Store
from tests.integration.refusing import FULL, refusing


def dead_lettered(
    side: Side, channel: Any, key: str | None = None, **arguments: Any
) -> tuple[str, str]:
    """A queue whose dead letters go to another: both names."""
    dead = side.queue(channel)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": key or dead} | {
        name.replace("_", "-"): value for name, value in arguments.items()
    }
    return side.queue(channel, arguments=arguments), dead


def letters(side: Side, channel: Any, queue: str, count: int) -> list[Message]:
    """Consume so many messages, which may have to come first."""
    got: list[Message] = []
    tag = channel.basic_consume(queue, no_ack=True, callback=got.append)
    side.drain(channel.connection, lambda: len(got) == count)
    channel.basic_cancel(tag)
    return got


def dead_letter_of(side: Side, channel: Any, queue: str) -> Message:
    """Consume one message, which may have to come first."""
    return letters(side, channel, queue, 1)[0]


def test_rejected_message_becomes_a_dead_letter(side: Side) -> None:
    channel = side.channel()
    queue, dead = dead_lettered(side, channel)
    side.send(channel, "x", "", queue, headers={"mine": 1}, expiration="60000")
    channel.basic_get(queue).reject()
    letter = dead_letter_of(side, channel, dead)
    (death,) = letter.headers["x-death"]
    assert (letter.body, letter.headers["mine"]) == ("x", 1)
    assert (death["queue"], death["reason"], death["count"]) == (queue, "rejected", 1)
    assert (death["exchange"], death["routing-keys"]) == ("", [queue])
    assert death["original-expiration"] == "60000"
    assert abs((as_utc(death["time"]) - datetime.now(timezone.utc)).total_seconds()) < 60
    assert letter.headers["x-first-death-queue"] == queue
    assert letter.headers["x-first-death-reason"] == "rejected"
    assert letter.headers["x-first-death-exchange"] == ""
    assert "expiration" not in letter.properties
    assert letter.delivery_info["routing_key"] == dead


def as_utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def test_dead_letter_keeps_its_key_by_default(side: Side) -> None:
    channel, exchange = side.open_exchange("topic")
    dead = side.queue(channel)
    channel.queue_bind(dead, exchange, "#")
    queue = side.queue(channel, arguments={"x-dead-letter-exchange": exchange})
    side.send(channel, "x", "", queue)
    channel.basic_get(queue).reject()
    letter = dead_letter_of(side, channel, dead)
    assert letter.delivery_info["exchange"] == exchange
    assert letter.delivery_info["routing_key"] == queue


def test_who_is_killed_while_he_rejects_leaves_nothing_half_done(side: Side) -> None:
    """The connection of whoever rejects does not know yet where dead letters go."""
    channel, exchange = side.open_exchange("topic")
    dead = side.queue(channel)
    channel.queue_bind(dead, exchange, "#")
    queue = side.queue(channel, arguments={"x-dead-letter-exchange": exchange})
    side.send(channel, "x", "", queue)
    rejecting = gevent.spawn(side.channel().basic_get(queue).reject)
    gevent.sleep(0)  # it has begun
    rejecting.kill()
    assert dead_letter_of(side, channel, dead).body == "x"


def test_deaths_are_counted(side: Side) -> None:
    channel = side.channel()
    queue, dead = dead_lettered(side, channel)
    side.send(channel, "x", "", queue)
    channel.basic_get(queue).reject()
    letter = dead_letter_of(side, channel, dead)
    again = channel.prepare_message(letter.body, headers=letter.headers)
    channel.basic_publish_confirm(again, "", queue)
    channel.basic_get(queue).reject()
    (death,) = dead_letter_of(side, channel, dead).headers["x-death"]
    # RabbitMQ 4 ignores what a publisher says of earlier deaths.
    assert death["count"] == (1 if side.is_rabbitmq(4) else 2)


@needs(Can.EXPIRY)
def test_message_that_dies_in_a_circle_is_dropped(side: Side) -> None:
    channel = side.channel()
    queue = side.name("circle")
    side.queue(
        channel,
        queue,
        arguments={
            "x-message-ttl": 10,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": queue,
        },
    )
    side.send(channel, "x", "", queue)
    until(lambda: channel.queue_declare(queue, passive=True).message_count == 0)


@needs(Can.EXPIRY)
def test_retry_by_expiry_goes_round(side: Side) -> None:
    """Rejections in the circle keep it going: the usual way to retry later."""
    channel = side.channel()
    work, wait = side.name("work"), side.name("wait")
    side.queue(
        channel, work, arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": wait}
    )
    side.queue(
        channel,
        wait,
        arguments={
            "x-message-ttl": 5,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": work,
        },
    )
    got: list[int] = []

    def handle(message: Message) -> None:
        deaths = message.headers.get("x-death", [])
        got.append(sum(each["count"] for each in deaths if each["queue"] == work))
        if len(got) < 4:
            message.reject()
        else:
            message.ack()

    channel.basic_consume(work, callback=handle)
    side.send(channel, "x", "", work)
    # Nothing else happens in this process meanwhile: it is a timer that goes on.
    side.drain(channel.connection, lambda: len(got) == 4)
    assert got == [0, 1, 2, 3]


@needs(Can.EXPIRY)
def test_old_messages_expire(side: Side) -> None:
    channel = side.channel()
    queue, dead = dead_lettered(side, channel, x_message_ttl=20)
    side.send(channel, "x", "", queue)
    letter = dead_letter_of(side, channel, dead)
    assert letter.headers["x-death"][0]["reason"] == "expired"
    assert channel.basic_get(queue) is None


@needs(Can.EXPIRY, Can.EXPIRATION)
def test_message_may_expire_by_itself(side: Side) -> None:
    channel = side.channel()
    queue, dead = dead_lettered(side, channel)
    side.send(channel, "stays", "", queue)
    side.send(channel, "goes", "", queue, expiration="1")
    side.drain_all(channel.connection, 0.1)
    if side.kind in ("memory", "amqp"):
        # Only heads are looked at.
        assert channel.basic_get(dead) is None
    message = channel.basic_get(queue, no_ack=True)
    assert message.body == "stays"
    assert dead_letter_of(side, channel, dead).body == "goes"
    for wrong in ("soon", "-1", "1.5"):
        channel = side.channel()
        with pytest.raises(PreconditionFailed):
            side.send(channel, "x", "", queue, expiration=wrong)


@needs(Can.IMMEDIATE)
def test_message_without_time_needs_a_free_consumer(side: Side) -> None:
    channel, queue = side.open_queue(arguments={"x-message-ttl": 0})
    side.send(channel, "dropped", "", queue)
    store = Store()
    channel.basic_consume(queue, sink=store)
    side.send(channel, "taken", "", queue)
    until(lambda: len(store) == 1)
    assert [each.body for each in store] == ["taken"]


@needs(Can.QUEUE_EXPIRY)
@pytest.mark.sampled(3)
def test_unused_queue_expires(side: Side) -> None:
    channel, queue = side.open_queue(arguments={"x-expires": 1000})
    tag = channel.basic_consume(queue, callback=print)
    gevent.sleep(1.3)
    channel.queue_declare(queue, passive=True)
    channel.basic_cancel(tag)
    for _ in range(10):
        gevent.sleep(1.5)  # to look is to use it
        try:
            late = side.channel(channel.connection)
            tag = late.basic_consume(queue, callback=print)
        except NotFound:
            return
        late.basic_cancel(tag)
    pytest.fail("it did not expire")


@needs(Can.BOUNDS)
def test_full_queue_drops_its_head(side: Side) -> None:
    channel = side.channel()
    queue, dead = dead_lettered(side, channel, x_max_length=2)
    for n in range(4):
        side.send(channel, str(n), "", queue)
    assert side.bodies(channel, queue) == ["2", "3"]
    assert [each.body for each in letters(side, channel, dead, 2)] == ["0", "1"]


@needs(Can.BOUNDS)
def test_bytes_count_too(side: Side) -> None:
    channel, queue = side.open_queue(arguments={"x-max-length-bytes": 10})
    for body in ("aaaa", "bbbb", "cccc", "\u00e9\u00e9"):
        side.send(channel, body, "", queue)
    assert side.bodies(channel, queue) == ["cccc", "\u00e9\u00e9"]


@needs(Can.BOUNDS)
def test_full_queue_may_refuse(side: Side) -> None:
    channel = side.channel()
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = side.queue(channel, arguments=arguments)
    side.send(channel, "0", "", queue)
    with pytest.raises(PublishNacked):
        side.send(channel, "1", "", queue)
    assert channel.is_open
    assert side.bodies(channel, queue) == ["0"]
    side.send(channel, "2", "", queue)


@needs(Can.BOUNDS)
def test_what_a_full_queue_refuses_may_become_a_dead_letter(side: Side) -> None:
    channel = side.channel()
    queue, dead = dead_lettered(side, channel, x_max_length=1, x_overflow="reject-publish-dlx")
    side.send(channel, "0", "", queue)
    with pytest.raises(PublishNacked):
        side.send(channel, "1", "", queue)
    letter = dead_letter_of(side, channel, dead)
    assert (letter.body, letter.headers["x-death"][0]["reason"]) == ("1", "maxlen")
    assert side.bodies(channel, queue) == ["0"]


@needs(Can.BOUNDS)
def test_a_full_queue_knows_what_waits_in_it(
    side: Side, request: pytest.FixtureRequest, long: bool
) -> None:
    """Whatever brings messages into it, or takes them out, over any connection."""
    chance = Random(request.config.getoption("randomly_seed", 0))
    channels = side.channel(side.link()), side.channel(side.link())
    arguments = {"x-max-length": 6, "x-max-length-bytes": 30, "x-overflow": "reject-publish"}
    queue = side.queue(channels[0], arguments=arguments)
    waiting: list[str] = []
    held: list[Message] = []
    for number in range(400 if long else 60):
        channel = chance.choice(channels)
        what = chance.choice(["publish"] * 5 + ["get"] * 2 + ["ack", "requeue", "reject", "purge"])
        if what == "publish":
            body = f"{number:03}" * chance.randint(1, 4)
            fits = len(waiting) < 6 and sum(map(len, [*waiting, body])) <= 30
            with nullcontext() if fits else pytest.raises(PublishNacked):
                side.send(channel, body, "", queue)
            waiting += [body] if fits else []
        elif what == "get":
            message = channel.basic_get(queue)
            assert (message is None) == (not waiting)
            if message is not None:
                waiting.remove(message.body)
                held.append(message)
        elif what == "purge":
            if chance.random() < 0.3:
                assert channel.queue_purge(queue) == len(waiting)
                waiting = []
        elif held:
            message = held.pop(chance.randrange(len(held)))
            getattr(message, what)()
            waiting += [message.body] if what == "requeue" else []
        until(partial(_waits, channels[0], queue, len(waiting)), SOON)


def _waits(channel: Any, queue: str, count: int) -> bool:
    return bool(channel.queue_declare(queue, passive=True).message_count == count)


@needs(Can.PRIORITIES)
def test_higher_priorities_come_first(side: Side) -> None:
    channel, queue = side.open_queue(arguments={"x-max-priority": 5})
    for n, priority in enumerate([0, 5, 3, 9, 0, 3]):
        side.send(channel, str(n), "", queue, priority=priority)
    assert side.bodies(channel, queue) == ["1", "3", "2", "5", "0", "4"]


@needs(Can.SINGLE_ACTIVE)
def test_single_active_consumer(side: Side) -> None:
    link = side.link()
    channel = side.channel(link)
    queue = side.queue(channel, arguments={"x-single-active-consumer": True})
    first, second = Store(), Store()
    channel.basic_qos(0, 10, False)
    channel.basic_consume(queue, "first", sink=first)
    channel.basic_consume(queue, "second", sink=second)
    for n in range(3):
        side.send(channel, str(n), "", queue)
    until(lambda: len(first) + len(second) == 3)
    assert ([each.body for each in first], len(second)) == (["0", "1", "2"], 0)
    channel.basic_cancel("first")
    side.send(channel, "3", "", queue)
    until(lambda: len(second) == 1)
    assert [each.body for each in second] == ["3"]


@needs(Can.SINGLE_ACTIVE)
def test_no_consumer_of_a_queue_with_a_single_active_one_is_exclusive(side: Side) -> None:
    channel, queue = side.open_queue(arguments={"x-single-active-consumer": True})
    with pytest.raises(AccessRefused):
        channel.basic_consume(queue, exclusive=True, callback=print)


@needs(Can.SINGLE_ACTIVE)
def test_next_active_consumer_begins_with_what_the_former_one_held(side: Side) -> None:
    """More than one call to a store puts back."""
    channel, other = side.channel(side.link()), side.channel(side.link())
    queue = side.queue(channel, arguments={"x-single-active-consumer": True})
    held, sent = 1050, 1100
    for n in range(sent):
        side.send(other, str(n), "", queue)
    first, second = Store(), Store()
    channel.basic_qos(0, held, False)
    channel.basic_consume(queue, sink=first)
    until(lambda: len(first) == held)
    other.basic_qos(0, 20, False)
    other.basic_consume(queue, sink=second)
    channel.close()
    until(lambda: len(second) == 20)
    assert [each.body for each in second] == [str(n) for n in range(20)]


def test_links_share_what_comes_one_by_one(side: Side) -> None:
    """None takes all, although one of them would be fast enough for that."""
    queue = side.queue(side.channel())
    stores = [Store() for _ in range(3)]
    for store in stores:
        channel = side.channel()
        channel.basic_qos(0, 10, False)
        channel.basic_consume(queue, sink=store)
    sender, shares = side.channel(), [0] * len(stores)
    while min(shares) < 4:
        assert sum(shares) < 1000, shares
        side.send(sender, "x", "", queue)
        until(lambda: any(stores))
        (place,) = (place for place, store in enumerate(stores) if store)
        stores[place].take().ack()
        shares[place] += 1


def test_idle_drain_is_woken_by_a_publish_elsewhere(side: Side) -> None:
    channel, queue = side.open_queue()
    got: list[Message] = []
    channel.basic_consume(queue, callback=got.append)
    waiter = gevent.spawn(side.transport.drain_events, channel.connection)
    side.send(side.channel(), "x", "", queue)
    waiter.get(timeout=SOON)
    assert [each.body for each in got] == ["x"]


def test_messages_go_with_a_queue_that_deletes_itself(side: Side) -> None:
    channel, queue = side.open_queue(auto_delete=True)
    got: list[Message] = []
    channel.basic_qos(0, 2, False)
    tag = channel.basic_consume(queue, callback=got.append)
    for number in range(3):
        side.send(channel, str(number), "", queue)
    side.drain(channel.connection, lambda: len(got) == 1)
    channel.basic_cancel(tag)  # with one that nobody has seen
    got[0].requeue()
    with pytest.raises(NotFound):
        channel.queue_declare(queue, passive=True)


# -- dead letters that cannot be stored


@pytest.mark.sampled(3)
def test_dead_letter_that_cannot_be_stored_leaves_the_original(
    side: Side, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Between a message and its copy there is never nothing, and the log says what happened."""
    if side.kind == "amqp":
        pytest.skip("RabbitMQ does it")
    if side.kind != "memory":
        side.transport.client.transport_options["lease"] = 1.0
    channel = side.channel()
    supported = channel.supported_arguments.queue
    bounded = "x-overflow" in supported and side.kind != "redis"
    dead = side.queue(channel, arguments=FULL if bounded else {})
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    queue = side.queue(channel, arguments=arguments)
    side.send(channel, "x", "", queue)
    with refusing(side, channel, dead, monkeypatch):
        message = channel.basic_get(queue)
        message.reject()
        # Redis keeps the answer, and says again what was refused.
        words = "1 acks or rejects are sent again later" if side.kind == "redis" else dead
        until(lambda: any(words in each for each in errors_of(caplog)))
    if side.kind == "memory":
        return  # as RabbitMQ, it drops what a full queue refuses; but not without a word
    # It comes again after its lease, and is rejected again.
    channel.basic_consume(queue, callback=lambda message: message.reject())
    letter = dead_letter_of(side, channel, dead)
    assert (letter.body, letter.headers["x-death"][0]["reason"]) == ("x", "rejected")


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning or worse."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# -- arguments that are not implemented


def warnings_of(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    """The warnings of arguments that name *what*."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.name == "greenconn.transport.arguments" and what in each.getMessage()
    ]


#: Values that each broker takes together.
ARGUMENTS: dict[str, Any] = {
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": "gone",
    "x-delivery-limit": 5,
    "x-expires": 600_000,
    "x-max-length": 100,
    "x-max-length-bytes": 1_000_000,
    "x-max-priority": 5,
    "x-message-ttl": 600_000,
    "x-overflow": "drop-head",
    "x-single-active-consumer": True,
}


def test_arguments_without_effect_are_named_in_the_log(
    side: Side, caplog: pytest.LogCaptureFixture
) -> None:
    """What a transport would ignore without a word it names, once for each queue."""
    if side.kind == "amqp":
        pytest.skip("RabbitMQ implements them, or refuses")
    channel = side.channel()
    missing = [each for each in ARGUMENTS if each not in channel.supported_arguments.queue]
    queue = side.queue(channel, arguments=ARGUMENTS)
    side.queue(side.channel(), queue, arguments=ARGUMENTS)  # another connection, another life
    found = warnings_of(caplog, f"queue {queue!r}")
    assert len(found) == bool(missing)
    for name in ARGUMENTS:
        assert any(f"{name}=" in each for each in found) == (name in missing)


def test_properties_without_effect_are_named_in_the_log(
    side: Side, caplog: pytest.LogCaptureFixture
) -> None:
    if side.kind == "amqp":
        pytest.skip("RabbitMQ implements them")
    channel = side.channel()
    supported = channel.supported_arguments
    queue = side.queue(channel)
    for _ in range(2):
        side.send(channel, "x", "", queue, headers={"x-delay": 0}, priority=3, expiration="60000")
    found = warnings_of(caplog, f"messages to {queue!r}")
    missing = {"x-delay", "priority", "expiration"} - supported.message
    assert len(found) == bool(missing)
    for name in missing:
        assert f"{name}=" in found[0]


#: Transports that list their queues, but for Redis Cluster.  RabbitMQ does it by its management API.
LISTING = {"memory", "sqlite", "redis", "couchdb", "mongodb", "postgresql"}


def test_queues_are_listed(side: Side) -> None:
    channel = side.channel()
    if side.kind not in LISTING or isinstance(side.transport, ClusterTransport):
        with pytest.raises(NotImplementedError, match="cannot list queues"):
            channel.list_queues()
        return
    empty, full, gone = side.queue(channel), side.queue(channel), side.queue(channel)
    for priority in (0, 9):
        side.send(channel, "x", "", full, priority=priority)
    channel.queue_delete(gone)
    listed = side.channel().list_queues()
    assert listed == sorted(set(listed))
    assert {empty, full} <= set(listed)
    assert gone not in listed


def test_queues_are_counted_together(side: Side) -> None:
    channel = side.channel()
    empty, full, gone = side.queue(channel), side.queue(channel), side.queue(channel)
    consumed, mine = side.queue(channel), side.queue(channel, exclusive=True)
    for _ in range(2):
        side.send(channel, "x", "", full)
    for queue in (consumed, mine):
        channel.basic_consume(queue, callback=lambda message: None)
    channel.queue_delete(gone)
    wanted = {empty: (0, 0), full: (2, 0), consumed: (0, 1), mine: (0, 1)}
    if side.kind != "amqp":  # RabbitMQ closes a channel that asks for one that has ended
        wanted[gone] = (0, 0)
    until(lambda: channel.count_queues(list(wanted)) == wanted)
