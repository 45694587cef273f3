"""How connections end, and how they come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from select import POLLIN
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.exceptions import (
    ConnectionBlocked,
    ConnectionError,
    ConnectionForced,
    OperationalError,
    PublishTimeout,
    RecoverableConnectionError,
)
from greenconn.messaging import Consumer, Producer
from greenconn.publishing import publish
from greenconn.worker import spawn_consumer
from tests.brokers.rabbitmq import RabbitMQ, RabbitMQHandle
from tests.fix_relay import Relay, RelayFactory
from tests.fix_wires import until
from tests.integration.recovering import SOON, Recoveries, consumers_of, exists, lose, send, settled


@pytest.fixture
def other(amqp_url: str, unique: str) -> Iterator[Connection]:
    """A connection that stays; the queue of the test's name is deleted at its end."""
    with Connection(amqp_url) as made:
        yield made
        with suppress(*made.channel_errors):
            made.default_channel.queue_delete(unique)


def consuming(connection: Connection, name: str) -> list[Any]:
    """Start a consumer; the bodies that it has received."""
    got: list[Any] = []

    def receive(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    Consumer(connection, Queue(name), callbacks=[receive]).consume()
    return got


def drain_until(connection: Connection, got: list[Any], expected: list[Any]) -> None:
    """Drain until *got* has what is *expected*, whatever happens to the connection."""
    with gevent.Timeout(SOON):
        while not set(expected) <= set(got):  # what was not answered comes again
            with suppress(*connection.connection_errors):
                connection.drain_events()


def connections_named(broker: RabbitMQHandle, name: str) -> list[str]:
    """The process ids that the broker has for the connections of that name."""
    rows = broker.ctl("list_connections", "pid", "client_properties").splitlines()
    return [row.split("\t")[0] for row in rows if name in row]


# Ends


def test_an_operator_closes_the_connection(
    rabbitmq: RabbitMQHandle, amqp_url: str, other: Connection, unique: str
) -> None:
    options = {"connection_name": unique}
    with Connection(amqp_url, transport_options=options) as connection:
        got = consuming(connection, unique)
        with Recoveries(connection) as recoveries:
            waiting = [gevent.spawn(connection.drain_events) for _ in range(3)]
            gevent.sleep(0)
            [pid] = connections_named(rabbitmq, unique)
            rabbitmq.ctl("close_connection", pid, "have a break")
            for each in waiting:
                with pytest.raises(ConnectionForced, match="have a break"):
                    each.get(timeout=SOON)
            recoveries.wait()
        [again] = connections_named(rabbitmq, unique)
        assert again != pid
        settled(other, unique)
        send(other, unique, "x")
        drain_until(connection, got, ["x"])
        assert consumers_of(other, unique) == 1


def test_the_first_publish_after_a_long_computation_knows_that_the_connection_was_closed(
    rabbitmq: RabbitMQHandle, amqp_url: str, other: Connection, unique: str
) -> None:
    """Only the kernel knows it then: no hub has run, and no confirm would tell."""
    Queue(unique)(other.default_channel).declare()
    with Connection(amqp_url, transport_options={"connection_name": unique}) as connection:
        producer = Producer(connection.default_channel)
        producer.publish("before", routing_key=unique)
        until(lambda: connections_named(rabbitmq, unique))
        [process] = connections_named(rabbitmq, unique)
        closing = (
            f'rabbit_networking:close_connection(rabbit_misc:string_to_pid("{process}"), <<"bye">>)'
        )
        rabbitmq.evaluate(f"spawn(fun() -> timer:sleep(500), {closing} end)")
        computed_until_closed(connection)
        with pytest.raises(connection.connection_errors):
            producer.publish("lost", routing_key=unique)
        producer.publish("after", routing_key=unique, retry=True)
        got = consuming(other, unique)
        drain_until(other, got, ["before", "after"])
        assert got == ["before", "after"]


def computed_until_closed(connection: Connection) -> None:
    """Keep the processor until the peer has sent something, as a long computation does."""
    poll = get_original("select", "poll")()
    poll.register(connection.connection.stream._sock.fileno(), POLLIN)
    assert poll.poll(SOON * 1000)


def bytes_of_a_recovery(relay: Relay, connection: Connection) -> int:
    """How many bytes the broker is sent until *connection* is whole again."""
    before = relay.passed
    lose(relay, connection)
    return relay.passed - before


@pytest.mark.full
def test_a_peer_that_is_silent_while_it_is_restored(
    relay: Relay, other: Connection, unique: str
) -> None:
    """The new link is no better: it is given up, too."""
    with Connection(relay.url, heartbeat=1) as connection:
        got = consuming(connection, unique)
        relay.budget = bytes_of_a_recovery(relay, connection) - 20
        relay.on_budget = relay.is_passing.clear
        with Recoveries(connection) as recoveries:
            relay.cut()
            until(lambda: not relay.is_passing.is_set(), SOON)
            relay.budget = None
            assert connection.session.generation == 3
            until(lambda: not connection.connected, SOON)
            assert recoveries.count == 0
            relay.is_passing.set()
            recoveries.wait()
            assert connection.session.generation > 3
        settled(other, unique)
        send(other, unique, "x")
        drain_until(connection, got, ["x"])


def test_what_the_program_closes_stays_closed(relay: Relay, other: Connection, unique: str) -> None:
    with Connection(relay.url) as connection:
        consuming(connection, unique)
        with Recoveries(connection) as recoveries:
            connection.close()
            gevent.sleep(0.3)
            assert relay.open == 0
            assert relay.accepted == 1
            assert recoveries.lost == []
            assert recoveries.count == 0
        assert consumers_of(other, unique) == 0


def test_closed_while_the_broker_is_away(relay: Relay, unique: str) -> None:
    connection = Connection(relay.url)
    consuming(connection, unique)
    relay.server.stop()
    until(lambda: not connection.connected)
    connection.close()
    relay.server.start()
    gevent.sleep(0.3)
    assert relay.accepted == 1


@pytest.mark.parametrize("share", [0.01, 0.5, 0.7, 0.8, 0.9, 0.98])
@pytest.mark.sampled(2)
def test_closed_while_it_comes_back(
    relay: Relay, other: Connection, unique: str, share: float
) -> None:
    """After a share of our bytes the broker hears no more, and then the program closes."""
    connection = Connection(relay.url)
    consuming(connection, unique)
    relay.budget = int(bytes_of_a_recovery(relay, connection) * share)
    relay.on_budget = relay.is_passing.clear
    relay.cut()
    until(lambda: not relay.is_passing.is_set(), SOON)
    with gevent.Timeout(SOON / 2):
        connection.close()
    relay.budget = None
    relay.is_passing.set()
    until(lambda: relay.open == 0, SOON)
    accepted = relay.accepted
    gevent.sleep(0.3)
    assert relay.accepted == accepted
    until(lambda: consumers_of(other, unique) == 0)
    with pytest.raises(RecoverableConnectionError):
        connection.drain_events(timeout=0.1)


# Others hear of it


def test_listeners_hear_in_order(relay: Relay, unique: str) -> None:
    heard: list[Any] = []
    with Connection(relay.url) as connection:
        consuming(connection, unique)
        connection.on_connection_lost.append(lambda exc: heard.append(("lost", type(exc))))
        connection.on_recovered.append(
            lambda: heard.append(("recovered", connection.connected, relay.open))
        )
        for number in range(1, 4):
            relay.cut()
            until(lambda number=number: len(heard) == 2 * number, SOON)  # type: ignore[misc]
        for lost, recovered in zip(heard[::2], heard[1::2], strict=True):
            assert lost[0] == "lost"
            assert issubclass(lost[1], ConnectionError)
            assert recovered == ("recovered", True, 1)
        Queue(unique)(connection).delete()


def test_listeners_learn_of_a_connection_that_its_next_use_brings_back(
    relay: Relay, unique: str
) -> None:
    """Nothing runs on it that would bring it back by itself."""
    heard: list[str] = []
    with Connection(relay.url) as connection:
        connection.on_connection_lost.append(lambda exc: heard.append("lost"))
        connection.on_recovered.append(lambda: heard.append("recovered"))
        connection.connect()
        relay.cut()
        until(lambda: heard == ["lost"])
        gevent.sleep(0.2)
        assert relay.accepted == 1
        connection.default_channel  # noqa: B018 - opened
        until(lambda: heard == ["lost", "recovered"])
    gevent.sleep(0)
    assert heard == ["lost", "recovered"]


def test_a_listener_may_use_the_connection(relay: Relay, other: Connection, unique: str) -> None:
    """When it hears that all is back it is; what it waits for keeps nobody."""
    found: list[int] = []
    with Connection(relay.url) as connection:
        consuming(connection, unique)

        def look() -> None:
            with connection.channel() as channel:
                found.append(channel.queue_declare(unique, passive=True).consumer_count)

        connection.on_recovered.append(look)
        for number in range(1, 4):
            relay.cut()
            until(lambda number=number: len(found) == number, SOON)  # type: ignore[misc]
    assert found == [1, 1, 1]


def test_a_listener_that_fails_affects_nobody_else(
    relay: Relay, other: Connection, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def fail(*args: Any) -> None:
        heard.append("fails")
        raise LookupError("of a listener")

    with Connection(relay.url) as connection:
        got = consuming(connection, unique)
        connection.on_connection_lost.extend([fail, lambda exc: heard.append("lost")])
        connection.on_recovered.extend([fail, lambda: heard.append("recovered")])
        relay.cut()
        until(lambda: len(heard) == 4, SOON)
        assert heard == ["fails", "lost", "fails", "recovered"]
        settled(other, unique)
        send(other, unique, "x")
        drain_until(connection, got, ["x"])
    assert caplog.text.count("of a listener") >= 2


# Hosts


def test_the_first_of_several_hosts_is_dead(relay: Relay, other: Connection, unique: str) -> None:
    with Connection(f"amqp://127.0.0.1:1/;{relay.url}") as connection:
        got = consuming(connection, unique)
        for number in range(1, 4):
            lose(relay, connection)
            settled(other, unique)
            send(other, unique, number)
            drain_until(connection, got, list(range(1, number + 1)))
        assert relay.accepted == 4


@pytest.mark.full
def test_hosts_take_turns(
    relay_to: RelayFactory, amqp_url: str, other: Connection, unique: str
) -> None:
    relays = [relay_to(amqp_url), relay_to(amqp_url)]
    with Connection([each.url for each in relays]) as connection:
        got = consuming(connection, unique)
        for number in range(4):
            here, there = relays[number % 2], relays[(number + 1) % 2]
            assert (here.open, there.open) == (1, 0)
            if number:
                there.server.start()
            with Recoveries(connection) as recoveries:
                here.server.stop()
                recoveries.wait()
            settled(other, unique)
            send(other, unique, number)
            drain_until(connection, got, list(range(number + 1)))
            assert consumers_of(other, unique) == 1


# Refusals


@pytest.mark.full
def test_a_virtual_host_that_is_gone(rabbitmq: RabbitMQHandle, unique: str) -> None:
    """Nobody is let in any more: it is told, and not tried for ever."""
    url = rabbitmq.add_vhost(unique)
    heard: list[BaseException] = []
    with Connection(url) as connection:
        consumer = spawn_consumer("q", lambda body, message: None, connection=connection)
        assert consumer.wait_ready(SOON)
        consuming(connection, "other")
        connection.on_connection_lost.append(heard.append)
        rabbitmq.delete_vhost(unique)
        until(lambda: heard, SOON)
        errors: list[type[BaseException]] = []
        with gevent.Timeout(SOON):
            while not errors or issubclass(errors[-1], RecoverableConnectionError):
                try:
                    connection.drain_events()
                except connection.connection_errors + connection.channel_errors as exc:
                    errors.append(type(exc))
        with pytest.raises(connection.connection_errors + connection.channel_errors):
            consumer.get(timeout=SOON)
        # It is back: an explicit use finds it, and what was wanted there is there again.
        rabbitmq.add_vhost(unique)
        connection.ensure_connection(max_retries=3, interval_start=0.1)
        with Connection(url) as other:
            settled(other, "other")
    rabbitmq.delete_vhost(unique)


# Blocked


@pytest.mark.full
def test_blocked_over_a_loss(own_rabbitmq: RabbitMQ, relay_to: RelayFactory, unique: str) -> None:
    """The broker blocks publishing, the connection is lost, the broker still blocks."""
    relay = relay_to(own_rabbitmq.url)
    with Connection(relay.url, transport_options={"confirm_publish": True}) as connection:
        got = consuming(connection, unique)
        producer = Producer(connection)
        producer.publish(0, unique)
        drain_until(connection, got, [0])
        own_rabbitmq.set_memory_alarm(True)
        with pytest.raises((ConnectionBlocked, PublishTimeout)):
            producer.publish(1, unique, timeout=0.3)
        with pytest.raises(ConnectionBlocked):
            producer.publish(1, unique, timeout=0.3)
        waiting = [
            gevent.spawn(publish, unique, number, connection=connection, timeout=SOON, declare=True)
            for number in range(2, 7)
        ]
        gevent.sleep(0)
        relay.cut()
        until(lambda: not connection.connected or connection.session.generation > 1, SOON)
        with pytest.raises((ConnectionBlocked, PublishTimeout)):
            producer.publish(1, unique, timeout=1.0)
        assert not any(each.dead for each in waiting)
        own_rabbitmq.set_memory_alarm(False)
        gevent.joinall(waiting, timeout=SOON, raise_error=True)
        producer.publish(7, unique, retry=True, timeout=SOON)
        with gevent.Timeout(SOON):
            while not {*range(2, 8)} <= set(got):
                with suppress(*connection.connection_errors):
                    connection.drain_events()
        with connection.channel() as channel:
            channel.queue_delete(unique)


# In the middle of work


@pytest.mark.full
def test_a_thousand_waiting_publishers(relay: Relay, other: Connection, unique: str) -> None:
    """The broker goes while they wait, and comes back once they wait for it."""
    with Connection(relay.url, transport_options={"confirm_publish": True}) as connection:
        other.default_channel.queue_declare(unique, durable=True, auto_delete=False)
        producer = Producer(connection)
        producer.publish("first", unique)
        policy = {"interval_start": 0, "interval_step": 0.05, "interval_max": 0.2}
        relay.is_passing.clear()
        publishing = [
            gevent.spawn(producer.publish, number, unique, retry=True, retry_policy=policy)
            for number in range(1000)
        ]
        gevent.sleep(0)
        relay.is_passing.set()
        relay.server.stop()
        until(lambda: not connection.connected)
        relay.server.start()
        gevent.joinall(publishing, timeout=SOON, raise_error=True)
        assert all(each.successful() for each in publishing)
        assert relay.accepted == 2
        bodies = set()
        channel = other.default_channel
        while (message := channel.basic_get(unique, no_ack=True)) is not None:
            bodies.add(message.payload)
        assert bodies == {"first", *range(1000)}


def test_calls_of_all_kinds_end_with_the_loss(relay: Relay, unique: str) -> None:
    """None hangs, and the connection serves the next ones."""
    with Connection(relay.url) as connection:
        consuming(connection, unique)
        channel = connection.channel()
        errors = connection.connection_errors + connection.channel_errors
        relay.is_passing.clear()
        calls: list[Any] = [
            lambda: channel.queue_declare(f"{unique}-2", auto_delete=True),
            lambda: channel.basic_get(unique),
            lambda: channel.basic_qos(0, 1, False),
            channel.close,
            connection.channel,
            connection.drain_events,
        ]
        waiting = [gevent.spawn(call) for call in calls * 3]
        gevent.sleep(0.05)
        relay.is_passing.set()
        relay.server.stop()
        for each in waiting:
            with suppress(OperationalError, *errors):
                each.get(timeout=SOON)
        assert all(each.dead for each in waiting)
        with Recoveries(connection) as recoveries:
            relay.server.start()
            recoveries.wait()
        assert connection.default_channel.queue_delete(unique) is not None
        assert not exists(connection, unique)
