"""What becomes of messages whose consumer dies, on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import pytest
from redis.exceptions import ResponseError

from greenconn.broker.consuming import FeedState
from greenconn.green.deadline import Deadline
from greenconn.transport.redis import Channel, Transport, maintenance, pipeline
from greenconn.transport.redis.claiming import Watch
from greenconn.transport.redis.link import RedisLink
from greenconn.transport.redis.pipeline import Pipeline
from greenconn.wire.resp import RespParser, pack
from tests.fix_wires import until
from tests.integration.contract import Store
from tests.tiny_client import TinyClient

pytestmark = pytest.mark.halved

#: Seconds: short, so that the tests are.
LEASE = 1.0


@pytest.fixture
def opened(redis_url: str, unique: str) -> Iterator[Callable[..., RedisLink]]:
    """Opens links whose keys are the test's own; they are closed, and the keys deleted."""
    links: list[RedisLink] = []

    def open_link(**options: Any) -> RedisLink:
        options = {"global_keyprefix": f"{unique}:", "lease": LEASE, **options}
        link = Transport(TinyClient(redis_url, **options)).establish_connection()
        links.append(link)
        return link

    yield open_link
    for link in links:
        link.close()
    cleaner = Transport(TinyClient(redis_url)).establish_connection()
    keys = cleaner.commands.call(pack("KEYS", f"{unique}*"))
    for key in keys:
        cleaner.commands.call(pack("DEL", key))
    cleaner.close()


def socket_of(link: RedisLink) -> Pipeline:
    """The socket of a link to one server."""
    pipeline = link.commands.pipeline
    assert isinstance(pipeline, Pipeline)
    return pipeline


def filled(link: RedisLink, count: int, queue: str = "q") -> Any:
    """A channel, and a queue with so many messages."""
    channel = Channel(link)
    channel.queue_declare(queue)
    for number in range(count):
        channel.basic_publish(channel.prepare_message(str(number)), "", queue)
    return channel


def test_messages_of_a_dead_consumer_come_back_in_order(opened: Callable[..., RedisLink]) -> None:
    dead, alive = opened(), opened()
    channel = filled(dead, 5)
    store = Store()
    channel.basic_qos(0, 3, False)
    channel.basic_consume("q", sink=store)
    until(lambda: len(store) == 3)
    socket_of(dead).stream.close()  # as if it had been killed
    dead.collect()
    taken = Store()
    other = Channel(alive)
    other.basic_consume("q", sink=taken)
    until(lambda: len(taken) == 5, 10 * LEASE)
    assert [each.body for each in taken] == ["3", "4", "0", "1", "2"]
    assert [each.redelivered for each in taken] == [False, False, True, True, True]
    assert [each.headers.get("x-delivery-count") for each in taken][2:] == [1, 1, 1]
    until(lambda: alive.placement.partition("").sweeper.requeued == 3)


@pytest.mark.full
def test_messages_of_a_dead_consumer_come_back_to_one_that_is_never_idle(
    opened: Callable[..., RedisLink],
) -> None:
    dead, alive = opened(), opened()
    channel = filled(dead, 1)
    store = Store()
    channel.basic_consume("q", sink=store)
    until(lambda: store)
    socket_of(dead).stream.close()  # as if it had been killed
    dead.collect()
    busy = Channel(alive)
    seen: set[str] = set()

    def go_on(message: Any) -> None:
        seen.add(message.body)
        message.ack()
        if message.body == "next":
            busy.basic_publish(busy.prepare_message("next"), "", "q")

    busy.basic_consume("q", callback=go_on)
    busy.basic_publish(busy.prepare_message("next"), "", "q")
    with gevent.Timeout(30 * LEASE):
        while "0" not in seen:
            alive.drain(Deadline())
    assert seen == {"next", "0"}
    busy.close()


def test_slow_handler_keeps_its_message(opened: Callable[..., RedisLink]) -> None:
    slow, other = opened(), opened()
    channel = filled(slow, 1)
    store, thief = Store(), Store()
    channel.basic_consume("q", sink=store)
    until(lambda: store)
    Channel(other).basic_consume("q", sink=thief)
    gevent.sleep(3 * LEASE)
    assert not thief
    store[0].ack()
    gevent.sleep(0.1)
    assert slow.leases.lost == 0


def test_late_ack_changes_nothing_and_is_reported(
    opened: Callable[..., RedisLink], caplog: pytest.LogCaptureFixture
) -> None:
    late, other = opened(), opened()
    channel = filled(late, 1)
    notified: list[int] = []
    channel.events["lease_lost"].add(notified.append)
    message = channel.basic_get("q")
    late.leases.stop()  # as if its hub were blocked
    taken = Store()
    Channel(other).basic_consume("q", sink=taken)
    until(lambda: taken, 10 * LEASE)
    message.ack()
    until(lambda: notified)
    assert notified == [1]
    assert late.leases.lost == 1
    assert "lease_lost" in caplog.text
    taken[0].ack()
    gevent.sleep(0.1)
    assert other.leases.lost == 0
    assert channel.queue_declare("q", passive=True).message_count == 0


def test_clean_stop_requeues_at_once(opened: Callable[..., RedisLink]) -> None:
    first, second = opened(lease=60.0), opened(lease=60.0)
    channel = filled(first, 3)
    store = Store()
    channel.basic_consume("q", sink=store)
    until(lambda: len(store) == 3)
    first.close()
    other = Channel(second)
    found = [other.basic_get("q") for _ in range(3)]
    assert [each and each.body for each in found] == ["0", "1", "2"]


def test_clean_stop_requeues_what_a_claim_takes_meanwhile(opened: Callable[..., RedisLink]) -> None:
    first, second = opened(lease=60.0), opened(lease=60.0)
    channel = filled(first, 0)
    store = Store()
    channel.basic_consume("q", sink=store)
    feed = first.feeds["q"]
    until(lambda: feed.watching is Watch.ARMED)
    other = Channel(second)
    first.placement.partition("").invalidations.stop()  # nothing is told of what comes now
    for number in range(3):
        other.basic_publish(other.prepare_message(str(number)), "", "q")
    feed.wake()
    socket_of(first).writer.flush()  # the claim leaves when the turn ends
    assert feed.state is FeedState.CLAIMING
    first.close()
    found = [other.basic_get("q") for _ in range(3)]
    assert [each and each.body for each in found] == ["0", "1", "2"]


def test_next_life_requeues_at_once(opened: Callable[..., RedisLink]) -> None:
    link = opened(lease=60.0)
    channel = filled(link, 3)
    done, late, lost = (channel.basic_get("q") for _ in range(3))
    done.ack()  # not sent: the turn has not ended
    link.end(ConnectionError("cut by the test"))
    late.ack()
    assert lost.body == "2"
    again = link.transport.establish_connection()
    assert again.commands.call(pack("ZSCORE", again.commands.keys.owners, link.owner)) is None
    other = Channel(again)
    found = other.basic_get("q", no_ack=True)
    assert found is not None
    assert (found.body, found.redelivered) == ("2", True)
    assert other.basic_get("q") is None
    again.close()


@pytest.mark.full
def test_next_life_requeues_more_than_one_reply_may_have(
    opened: Callable[..., RedisLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "RespParser", partial(RespParser, reply_limit=100_000))
    link = opened(lease=60.0)
    channel = filled(link, 0)
    for number in range(5):
        channel.basic_publish(channel.prepare_message(f"{number}" * 30_000), routing_key="q")
    held = [channel.basic_get("q") for _ in range(5)]
    link.end(ConnectionError("cut by the test"))
    again = link.transport.establish_connection()
    other = Channel(again)
    found = [other.basic_get("q", no_ack=True) for _ in range(5)]
    assert [each and each.body for each in found] == [each.body for each in held]
    again.close()


def test_a_queue_that_is_no_list_holds_up_no_other(
    opened: Callable[..., RedisLink], caplog: pytest.LogCaptureFixture
) -> None:
    dead, alive = opened(), opened()
    channels = [filled(dead, 2, queue) for queue in ("spoiled", "sound")]
    store = Store()
    for channel, queue in zip(channels, ("spoiled", "sound"), strict=True):
        channel.basic_consume(queue, sink=store)
    until(lambda: len(store) == 4)
    dead.leases.stop()  # as if its process were killed
    dead.commands.pipeline.close()
    dead.placement.partition("").sweeper.stop()
    alive.commands.call(pack("SET", alive.commands.keys.plain("spoiled"), "something else"))
    found = Store()
    Channel(alive).basic_consume("sound", sink=found)
    until(lambda: len(found) == 2, 30 * LEASE)
    until(lambda: caplog.text.count("which stays where it is") == 2, 30 * LEASE)
    alive.commands.call(pack("DEL", alive.commands.keys.plain("spoiled")))
    until(
        lambda: alive.commands.call(pack("LLEN", alive.commands.keys.plain("spoiled"))) == 2,
        30 * LEASE,
    )


def test_who_was_slower_to_declare_takes_no_queue_along(opened: Callable[..., RedisLink]) -> None:
    """Its note that the queue is its own is the last one, but the declaration is another's."""
    slower, owner, alive = opened(), opened(), opened()
    slower.keep_alive()
    Channel(owner).queue_declare("own", exclusive=True)
    slower.commands.call(pack("HSET", slower.commands.keys.exclusive, "own", slower.owner))
    slower.collect()
    named = pack("HGET", alive.commands.keys.exclusive, "own")
    filled(alive, 0).basic_consume("q", sink=Store())
    until(lambda: alive.commands.call(named) == owner.owner.encode(), 10 * LEASE)
    assert Channel(owner).queue_declare("own", passive=True).queue == "own"


def test_what_tries_the_permissions_is_no_message(opened: Callable[..., RedisLink]) -> None:
    """A connection may be lost, or a process killed, while it is in the hash."""
    link = opened()
    unacked, index = link.commands.keys.unacked, link.commands.keys.unacked_index
    fields = [f"{link.commands.prefix}0", "gc.killed.0"]
    for field in fields:
        link.commands.call(pack("HSET", unacked, field, b'[{}, "", ""]'))
        link.commands.call(pack("ZADD", index, 1, field))
    link.placement.partition("").claims.is_trying = True
    link.end(ConnectionError("cut by the test"))
    again = link.transport.establish_connection()
    try:
        assert again.commands.call(pack("HKEYS", unacked)) == [b"gc.killed.0"]
        again.placement.partition("").sweeper.sweep()
        assert (
            again.commands.call(pack("HLEN", unacked))
            == again.commands.call(pack("ZCARD", index))
            == 0
        )
        assert again.commands.call(pack("EXISTS", *again.commands.keys.lists(""))) == 0
    finally:
        again.close()


@pytest.mark.full
@pytest.mark.parametrize("what", ["queue", "consumer"])
def test_what_a_killed_process_owned_alone_is_free_at_once(
    opened: Callable[..., RedisLink], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its lease goes on for a minute, but the server knows that the connection is gone."""
    killed, alive = opened(lease=60.0), opened(lease=60.0)
    monkeypatch.setattr(maintenance, "is_lost", lambda owner: False)  # as in another process
    theirs, ours = (Channel(link) for link in (killed, alive))
    ours.queue_declare("shared")
    if what == "queue":
        theirs.queue_declare("own", exclusive=True)
    else:
        theirs.basic_consume("shared", exclusive=True, sink=Store())
    assert alive.placement.partition("").owners.is_alive(killed.owner)
    killed.collect()
    client_id = killed.owner.rpartition("-")[2]
    until(lambda: not alive.commands.call(pack("CLIENT", "LIST", "ID", client_id)))
    if what == "queue":
        assert ours.queue_declare("own", exclusive=True).queue == "own"
    else:
        ours.basic_consume("shared", exclusive=True, sink=Store())


@pytest.mark.full
def test_the_lease_alone_decides_where_clients_may_not_be_listed(
    opened: Callable[..., RedisLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, alive = opened(lease=60.0), opened(lease=60.0)
    monkeypatch.setattr(maintenance, "is_lost", lambda owner: False)
    killed.keep_alive()
    killed.commands.call(pack("PING"))
    killed.collect()
    call = alive.commands.call

    def refusing(command: bytes, *args: Any, **kwargs: Any) -> Any:
        if b"LIST" in command:
            raise ResponseError("NOPERM this user has no permissions to run 'client|list'")
        return call(command, *args, **kwargs)

    monkeypatch.setattr(alive.commands, "call", refusing)
    assert alive.placement.partition("").owners.is_alive(killed.owner)
