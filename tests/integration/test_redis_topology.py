"""Bindings of queues that are gone, on a real Redis: nothing goes there, and nothing stays behind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.broker.consuming import FeedState
from greenconn.broker.exchanges import Row
from greenconn.green.deadline import Deadline
from greenconn.transport.redis import Channel, Transport
from greenconn.transport.redis.claiming import Watch
from greenconn.transport.redis.link import RedisLink
from greenconn.transport.redis.pipeline import Pipeline
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON, Store
from tests.integration.processes import start
from tests.integration.redis_clients import Control, control
from tests.tiny_client import TinyClient

pytestmark = pytest.mark.halved

Open = Callable[..., RedisLink]

#: Without types.
kombu: Any = pytest.importorskip("kombu")

#: Seconds.
LEASE = 0.5

#: Consumes from a queue of its own that is bound to an exchange, until it is killed.
SUBSCRIBER = f"""
import sys
import greenconn
from greenconn import Exchange, Queue

connection = greenconn.Connection(sys.argv[1], transport_options={{"lease": {LEASE}}})
options = {{sys.argv[2]: 0.5 if sys.argv[2] == "expires" else True}}
queue = Queue("", Exchange("news", "topic"), routing_key="#", **options)
consumer = greenconn.spawn_consumer(queue, print, connection=connection)
consumer.wait_ready(30)
print("ready", flush=True)
consumer.join()
"""


@pytest.fixture
def opened(own_redis: RedisServer, at_server: Control) -> Iterator[Open]:
    """Opens links, which are closed after the test."""
    links: list[RedisLink] = []

    def open_link(**options: Any) -> RedisLink:
        client = TinyClient(own_redis.url, **{"lease": LEASE, **options})
        links.append(Transport(client).establish_connection())
        return links[-1]

    yield open_link
    for link in links:
        link.close()


def channel_of(link: RedisLink) -> Any:
    """A channel with an exchange."""
    channel = Channel(link)
    channel.exchange_declare("news", "topic")
    return channel


def subscribed(link: RedisLink, name: str = "", **options: Any) -> str:
    """The name of a queue that is bound, and consumed from."""
    channel = channel_of(link)
    queue: str = channel.queue_declare(name, **options).queue
    channel.queue_bind(queue, "news", "#")
    channel.basic_consume(queue, sink=Store())
    return queue


def killed(link: RedisLink) -> None:
    """End a link as if its process had been killed: nobody learns of it."""
    link.leases.stop()
    link.commands.pipeline.close()
    link.collect()


def send(link: RedisLink) -> list[Any]:
    """Publish to the exchange with ``mandatory``; what came back."""
    channel = channel_of(link)
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *args: returned.append(args))
    message = channel.prepare_message("x")
    channel.basic_publish(message, "news", "a.b", mandatory=True)
    while link.events:
        link.drain(Deadline(SOON))
    return returned


def rows(at_server: Control) -> list[bytes]:
    """The keys of the server, but for what is known of the exchange and of the leases."""
    found = at_server("KEYS", "*")
    # And those that have just ended.
    known = {b"greenconn.exchange.news", b"greenconn.owners", b"greenconn.ended"}
    return sorted(set(found) - known)


KINDS: list[dict[str, Any]] = [
    {"exclusive": True},
    {"auto_delete": True},
    {"arguments": {"x-expires": 1500}},
]


@pytest.mark.full
@pytest.mark.parametrize("options", KINDS)
def test_queues_of_the_killed_end(
    opened: Open, at_server: Control, options: dict[str, Any]
) -> None:
    sender = opened()
    dead = [opened() for _ in range(3)]
    queues = [subscribed(each, **options) for each in dead]
    assert not send(sender)
    for each in dead:
        killed(each)
    # Nobody consumes any more; who publishes finds it out by itself.
    until(lambda: send(sender), 60 * LEASE)
    lists = [sender.commands.keys.plain(each) for each in queues]
    assert sender.commands.call(pack("EXISTS", *lists)) == 0 or "arguments" in options
    other = opened()
    subscribed(other, "steady")
    left = {b"greenconn.queue.steady", b"greenconn.consumers.steady", b"greenconn.bound.steady"}
    left |= {b"_kombu.binding.news", b"_kombu.binding_permanent.news"}

    def is_clean() -> bool:
        return not {
            each for each in rows(at_server) if each not in left and not each.startswith(b"_kombu")
        } - {b"unacked", b"unacked_index", *lists}

    until(is_clean, 60 * LEASE)
    assert len(at_server("SMEMBERS", "_kombu.binding.news")) == 1


def test_a_queue_that_ends_just_before_a_publish_gets_nothing(
    opened: Open, at_server: Control
) -> None:
    sender, other = opened(), opened()
    queue = subscribed(other, auto_delete=True)
    assert not send(sender)  # so it knows for a while that the queue is there
    other.channels.clear()
    # As the script that ends a queue, but for the binding: who has just read that publishes now.
    assert at_server("DEL", sender.commands.keys.queue(queue), *sender.commands.keys.lists(queue))
    assert len(send(sender)) == 1
    assert not at_server("EXISTS", *sender.commands.keys.lists(queue))


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_a_mandatory_message_comes_back_only_if_no_queue_has_it(
    opened: Open, at_server: Control, size: int
) -> None:
    link = opened()
    channel = channel_of(link)
    channel.queue_declare("there")
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *args: returned.append(args))
    for queue in ("there", "nowhere"):
        channel.basic_publish(channel.prepare_message("x" * size), "", queue, mandatory=True)
    while link.events:
        link.drain(Deadline(SOON))
    assert [routing_key for _, _, routing_key, _ in returned] == ["nowhere"]
    assert at_server("LLEN", "there") == 1
    assert not at_server("EXISTS", "nowhere")


def test_what_came_to_a_queue_after_its_end_expires(opened: Open, at_server: Control) -> None:
    link = opened()
    queue = subscribed(link, auto_delete=True)
    other = opened()
    subscribed(other, "steady")
    link.close()
    until(lambda: at_server("ZSCORE", "greenconn.ended", queue) is not None)
    at_server("LPUSH", queue, "late")
    until(lambda: not at_server("EXISTS", "greenconn.ended"), 120)
    assert 0 < at_server("PTTL", queue) <= 60_000


@pytest.mark.full
def test_processes_that_are_killed_leave_nothing(
    own_redis: RedisServer, at_server: Control
) -> None:
    kinds = ("exclusive", "auto_delete", "expires")
    running = [start("-c", SUBSCRIBER, own_redis.url, each) for each in kinds]
    try:
        assert [each.line() for each in running] == ["ready"] * 3
        assert len(at_server("SMEMBERS", "_kombu.binding.news")) == 3
        for each in running:
            each.signal(signal.SIGKILL)
        with Connection(own_redis.url, transport_options={"lease": LEASE}) as connection:
            consumer = greenconn.spawn_consumer("q", print, connection=connection)
            assert consumer.wait_ready(SOON)
            until(lambda: not at_server("EXISTS", "_kombu.binding.news"), 60 * LEASE)
            assert consumer.stop(SOON)
    finally:
        for each in running:
            each.end()


def test_a_queue_that_has_ended_is_not_bound(opened: Open, at_server: Control) -> None:
    link = opened()
    channel = channel_of(link)
    channel.queue_declare("q", arguments={"x-expires": 600_000})
    assert at_server("DEL", "greenconn.queue.q")
    with pytest.raises(greenconn.exceptions.NotFound):
        link.topology.add("news", Row("a", "", "q"))
    assert not at_server("EXISTS", "_kombu.binding.news")


def test_who_deletes_need_not_have_bound(opened: Open, at_server: Control) -> None:
    binder, deleter = opened(), opened()
    channel = channel_of(binder)
    channel.exchange_declare("own", "direct", auto_delete=True)
    channel.queue_declare("q")
    for key in ("a", "b"):
        channel.queue_bind("q", "news", key)
        channel.queue_bind("q", "own", key)
    channel_of(deleter).queue_delete("q")
    assert rows(at_server) == []
    assert len(send(binder)) == 1


def test_an_auto_delete_queue_takes_all_its_bindings_along(
    opened: Open, at_server: Control
) -> None:
    binder, consumer = opened(), opened()
    channel = channel_of(binder)
    channel.queue_declare("q", auto_delete=True)
    channel.queue_bind("q", "news", "#")
    other = channel_of(consumer)
    tag = other.basic_consume("q", sink=Store())
    other.basic_cancel(tag)
    other.queue_declare("next")
    assert at_server("SMEMBERS", "_kombu.binding.news") in ([], set())
    assert len(send(binder)) == 1


def test_an_exchange_that_others_use_stays(opened: Open) -> None:
    first, second = opened(), opened()
    for link, queue in ((first, "one"), (second, "two")):
        channel = Channel(link)
        channel.exchange_declare("shared", "topic", auto_delete=True)
        channel.queue_declare(queue)
        channel.queue_bind(queue, "shared", "#")
    channel = Channel(first)
    channel.queue_delete("one")
    channel.basic_publish(channel.prepare_message("x"), "shared", "a")
    found = channel.basic_get("two", no_ack=True)
    assert found is not None
    assert found.body == "x"
    channel.queue_delete("two")
    with pytest.raises(greenconn.exceptions.NotFound):
        channel.exchange_declare("shared", "topic", passive=True)


def test_publishing_is_no_use_of_a_queue_that_expires(opened: Open, at_server: Control) -> None:
    sender, other = opened(), opened()
    channel = channel_of(other)
    channel.queue_declare("q", arguments={"x-expires": 1500})
    channel.queue_bind("q", "news", "#")
    until(lambda: send(sender))
    assert not at_server("EXISTS", "greenconn.queue.q")


def test_consumed_queues_are_renewed_beside_many_others(
    opened: Open, at_server: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenconn.transport.redis.queues.MOST_KNOWN", 4)
    link = opened()
    queue = subscribed(link, arguments={"x-expires": 1500})
    others = [f"other-{number}" for number in range(20)]
    for name in others:
        channel_of(link).queue_declare(name, arguments={"x-expires": 600_000})
    assert len(link.queues.expiring) < 10
    key = f"greenconn.queue.{queue}"
    for _ in range(2):  # it gets older, and is renewed
        until(lambda: at_server("PTTL", key) < 1420)
        until(lambda: at_server("PTTL", key) > 1420)


@pytest.mark.parametrize("options", KINDS[:2])
def test_messages_in_hand_end_with_the_queue_of_a_link_that_closes(
    opened: Open, at_server: Control, options: dict[str, Any]
) -> None:
    sender, link = opened(), opened()
    queue = subscribed(link, **options)
    assert not send(sender)
    until(lambda: at_server("HLEN", "unacked") == 1)
    link.close()
    assert not at_server("EXISTS", sender.commands.keys.plain(queue), "unacked")
    assert send(sender)


@pytest.mark.parametrize("options", KINDS[:2])
def test_what_a_claim_takes_ends_with_the_queue_of_a_link_that_closes(
    opened: Open, at_server: Control, options: dict[str, Any]
) -> None:
    sender, link = opened(), opened()
    queue = subscribed(link, **options)
    feed = link.feeds[queue]
    until(lambda: feed.watching is Watch.ARMED)
    link.placement.partition("").invalidations.stop()  # nothing is told of what comes now
    assert not send(sender)
    feed.wake()
    pipeline = link.commands.pipeline
    assert isinstance(pipeline, Pipeline)
    pipeline.writer.flush()  # the claim leaves when the turn ends
    assert feed.state is FeedState.CLAIMING
    link.close()
    assert not at_server("EXISTS", sender.commands.keys.plain(queue), "unacked")


def test_a_message_in_hand_ends_with_the_queue_whose_last_consumer_leaves(
    opened: Open, at_server: Control
) -> None:
    sender, link = opened(), opened()
    channel = channel_of(link)
    queue = channel.queue_declare("", auto_delete=True).queue
    channel.queue_bind(queue, "news", "#")
    store = Store()
    tag = channel.basic_consume(queue, sink=store)
    assert not send(sender)
    until(lambda: store)
    channel.basic_cancel(tag)
    until(lambda: send(sender))
    store[0].requeue()
    until(lambda: not at_server("EXISTS", "unacked"))
    assert not at_server("EXISTS", queue)


@pytest.mark.parametrize("options", KINDS[:2])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_messages_of_the_killed_end_with_their_queues(
    opened: Open,
    at_server: Control,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    when: str,
) -> None:
    """Whether a queue ends before they are requeued, or while they are."""
    sender, dead = opened(), opened()
    queue = subscribed(dead, "own", **options)
    assert not send(sender)
    until(lambda: at_server("HLEN", "unacked") == 1)
    sender.close()  # so that nobody else looks
    killed(dead)
    link = opened()
    alive = link.placement.partition("")
    until(lambda: alive.sweeper.advance() and alive.owners.dead([dead.owner]), 60 * LEASE)
    execute = alive.requeuer.execute

    def end() -> None:
        assert not link.queues.existing({queue: ()})

    def end_and_execute(*args: Any) -> int:
        end()
        return execute(*args)

    if when == "before":
        end()
    else:
        monkeypatch.setattr(alive.requeuer, "execute", end_and_execute)
    alive.sweeper.sweep()
    assert not at_server("EXISTS", queue, "unacked")


def test_what_kombu_sends_to_the_name_of_an_ended_queue_can_be_requeued(
    own_redis: RedisServer, opened: Open, at_server: Control
) -> None:
    first, link = opened(), opened()
    subscribed(first, "q", auto_delete=True)
    first.close()
    assert at_server("ZSCORE", "greenconn.ended", "q") is not None
    with kombu.Connection(own_redis.url) as theirs:
        theirs.Producer().publish("x", routing_key="q")
    store = Store()
    Channel(link).basic_consume("q", sink=store)
    until(lambda: store)
    store.popleft().requeue()
    until(lambda: store)
    assert store[0].redelivered


@pytest.mark.full
def test_nothing_stays_of_many_clients(opened: Open, at_server: Control, long: bool) -> None:
    count, lease = (2000, 3.0) if long else (60, LEASE)
    steady = opened(lease=lease)
    subscribed(steady, "steady")
    before = rows(at_server)
    for number in range(count):
        link = opened(lease=lease)
        subscribed(link, **KINDS[number % 3])
        if not number % 10:
            send(steady)  # which those hold who are killed then
        if number % 2:
            killed(link)
        else:
            link.close()
    assert not send(steady)
    known = {*before, b"unacked", b"unacked_index", b"_kombu.binding_deadlines"}
    until(lambda: set(rows(at_server)) <= known, 120)
    until(lambda: not at_server("EXISTS", "greenconn.ended"), 120)
    assert len(at_server("SMEMBERS", "_kombu.binding.news")) == 1
    until(lambda: at_server("ZCARD", "greenconn.owners") <= 2)


@pytest.mark.full
def test_queues_of_programs_of_kombu_get_their_messages(
    own_redis: RedisServer, opened: Open, at_server: Control
) -> None:
    """Kombu keeps nothing of an empty queue but its bindings."""
    sender = opened()
    with kombu.Connection(own_redis.url) as theirs:
        exchange = kombu.Exchange("news", "topic", durable=False)
        queue = kombu.Queue("theirs", exchange, "a.*", durable=False)(theirs.channel())
        queue.declare()
        assert send(sender) == []
        assert queue.get(no_ack=True).payload == "x"
        # What they bound first stays theirs, though one of ours used it, too, and is gone.
        ours = opened()
        channel = channel_of(ours)
        channel.queue_declare("theirs", arguments={"x-expires": 2000})
        channel.queue_bind("theirs", "news", "a.*")
        until(lambda: not at_server("EXISTS", "greenconn.queue.theirs"))
        assert send(sender) == []
        assert queue.get(no_ack=True).payload == "x"
        # They get what ours bound, too.
        ours_first = channel_of(ours)
        ours_first.queue_declare("mixed")
        ours_first.queue_bind("mixed", "news", "a.*")
        mixed = kombu.Queue("mixed", exchange, "a.*", durable=False)(theirs.channel())
        mixed.declare()
        assert send(sender) == []
        assert mixed.get(no_ack=True).payload == "x"
        mixed.delete()
        assert len(at_server("SMEMBERS", "_kombu.binding.news")) == 1


@pytest.mark.full
def test_who_may_only_publish_publishes(redis_with: Callable[..., RedisServer]) -> None:
    """Without the rights to look which queues there are, all bindings count, as in kombu."""
    server = redis_with()
    with control(server.url) as at_server, Connection(server.url) as connection:
        queue = Queue("q", Exchange("news", "topic"), "#", auto_delete=True)
        queue(connection.default_channel).declare()
        rights = "+hello +auth +select +ping +role +client|setname +client|tracking +lpush +get"
        rights += " +exists +smembers +set +publish"
        at_server("ACL", "SETUSER", "sender", "on", ">x", "~*", "&*", "-@all", *rights.split())
        with Connection(server.url.replace("//", "//sender:x@")) as sender:
            producer = sender.Producer(exchange=Exchange("news", "topic"))
            with gevent.Timeout(SOON):
                for _ in range(3):
                    producer.publish("x", routing_key="a")
        assert at_server("LLEN", "q") == 3


def test_a_declaration_takes_few_round_trips(redis_url: str, unique: str) -> None:
    queue = Queue(unique, Exchange(unique, "direct"), unique)
    with Connection(redis_url) as connection:
        channel = connection.default_channel
        writer = connection.session.life.link.commands.pipeline.writer
        for most in (6, 3):
            sends = writer.sends
            queue(channel).declare()
            assert writer.sends - sends <= most
        queue(channel).delete()
