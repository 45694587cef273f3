"""Brokers of the process: who shares them, and how they end."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import gevent
import pytest
from gevent import get_hub
from gevent.event import Event
from gevent.threadpool import ThreadPool
from greenlet import settrace

from greenconn.exceptions import (
    AMQPNotImplementedError,
    ConnectionForced,
    ContentTooLarge,
    PreconditionFailed,
    RecoverableConnectionError,
    ResourceError,
    WrongHub,
)
from greenconn.green.deadline import Deadline
from greenconn.transport import memory
from greenconn.transport.memory import Channel, MemoryLink
from greenconn.transport.memory.broker import Broker
from greenconn.transport.virtual import UndeliverableWarning
from tests.forked import holds_in_child
from tests.integration.contract import Store
from tests.tiny_client import TinyClient


def connect(vhost: str, **options: Any) -> MemoryLink:
    return memory.Transport(TinyClient(f"memory:///{vhost}", **options)).establish_connection()


def send(channel: Channel, body: Any, queue: str = "q", **properties: Any) -> None:
    channel.basic_publish(channel.prepare_message(str(body), properties=properties), "", queue)


def test_links_to_one_virtual_host_share_it(vhost: str) -> None:
    first, other = connect(vhost), connect(f"{vhost}-other")
    channel = Channel(first)
    channel.queue_declare("q")
    send(channel, "x")
    first.close()
    again = Channel(connect(vhost))
    message = again.basic_get("q")
    assert message is not None
    assert message.body == "x"
    assert "q" not in other.broker.queues
    other.close()
    memory.reset(f"{vhost}-other")


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"id": UUID(int=1)}, "header 'id': a value of type UUID cannot be sent in an AMQP header"),
        ({"a": {"b": [{1}]}}, "header 'a': a value of type dict, or in it, cannot be sent"),
        ({"a": "x", 1: 2}, "header 1: a value of type int cannot be sent in an AMQP header"),
        ({"a": 2**70}, "header 'a': a value of type int cannot be sent in an AMQP header"),
        ({"a": float("nan")}, "header 'a': a float must be finite"),
    ],
)
def test_headers_that_rabbitmq_could_not_be_sent_are_refused(
    vhost: str, headers: Any, said: str
) -> None:
    channel = Channel(connect(vhost))
    message = channel.prepare_message("x", headers=headers, properties={})
    with pytest.raises(ValueError, match=said):
        channel.basic_publish(message, "", "q")


def test_headers_that_rabbitmq_could_be_sent_are_kept(vhost: str) -> None:
    headers = {
        "text": "é",
        "number": 2**62,
        "real": 0.5,
        "none": None,
        "many": [1, {"a": b"x"}],
        "price": Decimal("1.10"),
        "at": datetime(2026, 1, 2),
    }
    channel = Channel(connect(vhost))
    channel.queue_declare("q")
    channel.basic_publish(channel.prepare_message("x", headers=headers, properties={}), "", "q")
    message = channel.basic_get("q")
    assert message is not None
    assert message.headers == headers


def test_reset_empties(vhost: str) -> None:
    link = connect(vhost)
    channel = Channel(link)
    channel.queue_declare("q")
    waiter = gevent.spawn(link.drain, Deadline(10))
    gevent.sleep(0)
    memory.reset(vhost)
    with pytest.raises(RecoverableConnectionError, match="reset"):
        waiter.get(timeout=5)
    assert not link.is_open
    assert not channel.is_open
    assert not memory.broker_of(vhost).queues
    memory.reset(vhost)
    memory.reset(vhost)


def test_reset_of_all(vhost: str) -> None:
    link = connect(vhost)
    memory.reset()
    assert not link.is_open


def test_restart_loses_links_and_keeps_what_is_durable(vhost: str) -> None:
    link = connect(vhost)
    lost = Event()
    link.on_lost = lambda exc: lost.set()
    channel = Channel(link)
    channel.queue_declare("durable", durable=True)
    channel.queue_declare("transient")
    channel.exchange_declare("lasting", "direct", durable=True)
    channel.exchange_declare("passing", "direct")
    channel.queue_bind("durable", "lasting", "k")
    for n, mode in enumerate([2, 1, 2]):
        send(channel, n, "durable", delivery_mode=mode)
    held = channel.basic_get("durable")
    assert held is not None
    memory.restart(vhost)
    assert lost.wait(30)
    assert isinstance(link.lost, ConnectionForced)
    broker = memory.broker_of(vhost)
    assert list(broker.queues) == ["durable"]
    assert "lasting" in broker.state.exchanges
    assert "passing" not in broker.state.exchanges
    assert [each.envelope["body"] for each in broker.queues["durable"].store] == ["0", "2"]
    held.ack()  # comes too late
    assert len(broker.queues["durable"]) == 2


def test_use_from_another_thread(vhost: str) -> None:
    link = connect(vhost)
    channel = Channel(link)
    channel.queue_declare("q")
    pool = ThreadPool(1)
    try:
        for function in (
            lambda: connect(vhost),
            lambda: Channel(link),
            lambda: send(channel, "x"),
            lambda: channel.queue_purge("q"),
            lambda: link.drain(Deadline(0)),
        ):
            caught = pool.spawn(raised, function).get()
            assert isinstance(caught, WrongHub), caught
        # Its own is another matter.
        assert pool.spawn(raised, lambda: connect(f"{vhost}-theirs").close()).get() is None
        with pytest.raises(WrongHub):
            connect(f"{vhost}-theirs")
        memory.restart(f"{vhost}-theirs")
        memory.reset(f"{vhost}-theirs")
        connect(f"{vhost}-theirs").close()
    finally:
        pool.kill()
        memory.reset(f"{vhost}-theirs")


def raised(function: Callable[[], Any]) -> BaseException | None:
    try:
        function()
    except Exception as exc:
        return exc
    return None


def test_options(vhost: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        link = connect(vhost, confirm_publish=True, max_retries=3, colour="red")
    assert "colour" in caplog.text
    assert "max_retries" not in caplog.text
    channel = Channel(link)
    channel.queue_declare("q", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    with pytest.raises(Exception, match="full"):
        send(channel, "x")
    with pytest.raises(ValueError, match="max_message_size"):
        connect(vhost, max_message_size=-1)


def test_too_large(vhost: str) -> None:
    channel = Channel(connect(vhost, max_message_size=10))
    channel.queue_declare("q")
    send(channel, "x" * 10)
    with pytest.raises(ContentTooLarge, match="11 bytes"):
        send(channel, "x" * 11)
    assert channel.is_open


def test_queue_of_last_resort(vhost: str) -> None:
    channel = Channel(connect(vhost, deadletter_queue="rest"))
    for _ in range(2):
        with pytest.warns(UndeliverableWarning):
            send(channel, "x", "nowhere")
    assert channel.queue_declare("rest", passive=True).message_count == 2


def test_channel_numbers(vhost: str) -> None:
    link = connect(vhost)
    link.channel_max = 3  # of this link only
    channels = [Channel(link) for _ in range(3)]
    assert [each.channel_id for each in channels] == [1, 2, 3]
    with pytest.raises(ResourceError):
        Channel(link)
    channels[1].close()
    assert Channel(link).channel_id == 2
    channels[2].close()
    with pytest.raises(Exception, match="open already"):
        Channel(link, 2)


def test_what_is_not_there(vhost: str) -> None:
    channel = Channel(connect(vhost))
    with pytest.raises(AMQPNotImplementedError):
        channel.basic_qos(1, 0, False)
    with pytest.raises(AMQPNotImplementedError):
        channel.basic_publish(channel.prepare_message("x"), "", "q", immediate=True)
    with pytest.raises(AMQPNotImplementedError):
        channel.basic_recover(requeue=False)
    assert channel.is_open


def test_transport_facts() -> None:
    transport = memory.Transport(TinyClient())
    assert transport.driver_type == transport.driver_name == "memory"
    assert transport.default_port is None
    assert transport.implements.exchange_type == {"direct", "topic", "fanout", "headers"}
    assert not transport.supports_ev
    assert not transport.supports_heartbeats
    assert transport.driver_version() == "N/A"
    assert not transport.qos_semantics_matches_spec(transport.establish_connection())


def test_bindings_can_be_listed(vhost: str) -> None:
    channel = Channel(connect(vhost))
    channel.queue_declare("q")
    channel.queue_bind("q", "amq.direct", "k")
    assert list(channel.list_bindings()) == [("q", "amq.direct", "k")]
    assert channel.get_bindings() == [
        {"destination": "q", "source": "amq.direct", "routing_key": "k"}
    ]


def test_broken_off_publishers_leave_nothing(vhost: str) -> None:
    """A loop that never waits lets others run, and can be killed there."""
    channel = Channel(connect(vhost))
    channel.queue_declare("q")
    published = 0

    def publish() -> None:
        nonlocal published
        while True:
            send(channel, published)
            published += 1

    publisher = gevent.spawn(publish)
    ticks = 0
    with gevent.Timeout(20):
        while ticks < 5:
            gevent.sleep(0.001)
            ticks += 1
    publisher.kill()
    assert len(memory.broker_of(vhost).queues["q"]) == published > 0


def test_child_of_a_fork_begins_empty(vhost: str) -> None:
    link = connect(vhost)
    channel = Channel(link)
    channel.queue_declare("q", arguments={"x-expires": 60_000})
    store = Store()
    channel.basic_consume("q", sink=store)
    send(channel, "x")

    def begins_empty() -> bool:
        is_empty = not memory.broker_of(vhost).queues and store.lost == []
        again = Channel(connect(vhost))
        again.queue_declare("q")
        return is_empty and not (link.is_open or channel.is_open or again.basic_get("q"))

    assert holds_in_child(begins_empty)
    assert link.is_open
    store[0].requeue()
    assert len(store) == 2


def test_idle_consumers_sleep(vhost: str) -> None:
    """A thousand idle consumers cost no turn of the hub and no switch."""
    links = [connect(vhost) for _ in range(10)]
    drainers = [gevent.spawn(raised, partial(link.drain, Deadline())) for link in links]
    for n in range(1000):
        channel = Channel(links[n % 10])
        channel.queue_declare(f"q{n}")
        channel.basic_qos(0, 10, False)
        if n % 2:
            channel.basic_consume(f"q{n}", sink=Store())
        else:
            channel.basic_consume(f"q{n}", callback=print)
    gevent.sleep(0.01)
    gc.collect()
    switches = 0

    def count(event: str, args: Any) -> None:
        nonlocal switches
        switches += 1

    loop: Any = get_hub().loop
    before = loop.iteration
    old = settrace(count)
    try:
        gevent.sleep(0.3)
    finally:
        settrace(old)
    # Whatever woke each link only once would be ten; the hub has turns of its own.
    assert switches < len(links)
    assert loop.iteration - before < len(links)
    for link in links:
        link.close()
    gevent.joinall(drainers, raise_error=True)


def test_repr_says_what_it_is(broker: Broker, channel: Channel) -> None:
    channel.queue_declare("q")
    channel.basic_consume("q", "tag", callback=print)
    channel.exchange_declare("x", "topic")
    assert "test" in repr(broker)
    assert "open" in repr(channel)
    assert "1 channels" in repr(channel.connection)
    assert "'q', 0 waiting, 1 consumers" in repr(broker.queues["q"])
    assert "tag" in repr(channel.consumers["tag"])
    assert "topic" in repr(broker.state.exchanges["x"])
    channel.close()
    assert "closed" in repr(channel)


@pytest.mark.parametrize("name", ["amq.direct", "", "amq.topic"])
def test_a_ready_made_exchange_may_be_declared_without_its_settings(
    channel: Channel, name: str
) -> None:
    kind = "topic" if name == "amq.topic" else "direct"
    channel.exchange_declare(name, kind)
    channel.exchange_declare(name, kind, durable=True)
    with pytest.raises(PreconditionFailed):
        channel.exchange_declare(name or "amq.direct", "fanout")


def test_no_name_asks_for_the_queue_that_was_declared_last(channel: Channel) -> None:
    name = channel.queue_declare("").queue
    assert name.startswith("amq.gen-")
    assert channel.queue_declare("", passive=True).queue == name


def test_second_declaration_with_another_delivery_limit(channel: Channel) -> None:
    channel.queue_declare("q", arguments={"x-delivery-limit": 3})
    channel.queue_declare("q", arguments={"x-delivery-limit": 3})
    with pytest.raises(PreconditionFailed, match="x-delivery-limit"):
        channel.queue_declare("q", arguments={"x-delivery-limit": 4})
