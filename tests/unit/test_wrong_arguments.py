"""What a wrong argument or address is told: it names the value and the remedy."""

from __future__ import annotations

import logging
import math
import re
import traceback
from collections.abc import Callable
from typing import Any, cast

import gevent
import pytest

import greenconn as typed_greenconn
from greenconn import Connection as TypedConnection
from greenconn import Producer, health
from greenconn import Queue as TypedQueue
from greenconn import Retry as TypedRetry
from greenconn.common import Broadcast as TypedBroadcast
from greenconn.compat import Publisher
from greenconn.compat.carrot import connection as carrot
from greenconn.exceptions import RemoteError
from greenconn.green.deadline import Deadline
from greenconn.testing import MemoryBroker
from greenconn.transport.amqp.message import pack_properties
from tests.brokers.ports import free_ports

#: What is wrong here is wrong for mypy, too.
greenconn: Any = typed_greenconn
Connection: Any = TypedConnection
Retry: Any = TypedRetry
Queue: Any = TypedQueue
Broadcast: Any = TypedBroadcast
Exchange: Any = typed_greenconn.Exchange


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Queue(dead_leter=1), "Queue() has no option 'dead_leter'; did you mean 'dead_letter'?"),
        (lambda: Queue("q", chanel=None), "Queue() has no option 'chanel'; did you mean 'channel'?"),
        (lambda: Queue.from_dict("q", exchange_typ="topic"), "did you mean 'exchange_type'?"),
        (lambda: Exchange("e", tpye="fanout"), "Exchange() has no option 'tpye'; did you mean 'type'?"),
        (lambda: Exchange("e").bind_to("f", routingkey="a"), "did you mean 'routing_key'?"),
        (lambda: Broadcast("e", uniqe=1), "Broadcast() has no option 'uniqe'; did you mean 'unique'?"),
        (lambda: Broadcast("e", durabel=True), "did you mean 'durable'?"),
        (lambda: Connection(hartbeat=3), "Connection() has no option 'hartbeat'; did you"),
        (lambda: Connection("memory://").clone(hartbeat=3), "did you mean 'heartbeat'?"),
        (lambda: Connection("memory://").Pool(1, prelaod=1), "did you mean 'preload'?"),
        (lambda: Connection("memory://").ChannelPool(1, prelaod=1), "did you mean 'preload'?"),
        (lambda: Connection("memory://").SimpleQueue("q", queue_opts={"durabel": 1}), "'durable'?"),
        (lambda: Connection("memory://").Consumer([], prefetch_cuont=1), "prefetch_cuont"),
        (lambda: Connection("memory://").Producer(serialiser="json"), "serialiser"),
        (
            lambda: Connection("memory://").Producer().publish("x", rouitng_key="q"),
            "Producer.publish() has no option 'rouitng_key'; did you mean 'routing_key'?",
        ),
        (
            lambda: Connection("memory://").Producer().publish("x", corelation_id="1"),
            "did you mean 'correlation_id'?",
        ),
        (lambda: greenconn.App(brokr="memory://"), "App() has no option 'brokr'; known: alternates, "),
        (lambda: greenconn.App(hartbeat=3), "App() has no option 'hartbeat'; did you mean 'heartbeat'?"),
        (lambda: greenconn.App().configure(ulr="memory://"), "did you mean 'url'?"),
        (lambda: greenconn.configure(declare_by_nam=1), "did you mean 'declare_by_name'?"),
        (lambda: Retry(dely=1), "Retry() has no option 'dely'; did you mean 'delay'?"),
        (lambda: carrot.BrokerConnection(hartbeat=3), "did you mean 'heartbeat'?"),
        (lambda: Publisher(Connection("memory://"), serialiser="json"), "serialiser"),
    ],
)  # fmt: skip
def test_unknown_keywords_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(TypeError, match=re.escape(says)):
        make()


@pytest.mark.parametrize(
    "properties",
    [
        {"app_id": "a", "cluster_id": "b", "user_id": "c", "type": "d", "message_id": "e"},
        {"correlation_id": "a", "reply_to": "b", "timestamp": 1, "delay": 0, "expires": 9},
        {"MessageGroupId": "a", "MessageDeduplicationId": "b", "DelaySeconds": 1},
    ],
)
def test_known_properties_are_taken(broker: MemoryBroker, properties: dict[str, Any]) -> None:
    with broker.connection() as connection:
        queue = TypedQueue("q")(connection)
        queue.declare()
        producer = connection.Producer()
        producer.publish("x", "q", **properties)
        message = queue.get(no_ack=True)
        further = {name: each for name, each in message.properties.items() if each is not None}
        own = {
            name: further.pop(name, None) for name in ("delivery_mode", "priority", "expiration")
        }
        producer.publish(message.payload, "q", delivery_mode=own["delivery_mode"], **further)
        assert queue.get(no_ack=True).payload == "x"


def test_an_entity_takes_what_its_class_has_in_the_table() -> None:
    class Coloured(TypedQueue):
        attrs = (*TypedQueue.attrs, ("colour", None))

    made: Any = Coloured
    assert made("q", colour="green").colour == "green"
    with pytest.raises(TypeError, match="did you mean 'colour'"):
        made("q", color="green")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqp:/h", "'://' is missing after the scheme; write it as in amqp://localhost//"),
        ("amqp:h", "'://' is missing after the scheme"),
        ("amqp//h", "'://' is missing after the scheme"),
        ("Redis:/h", "write it as in redis://localhost//"),
        (
            "amqp://a//,amqp://b//",
            "the URL contains another URL; separate the brokers .* by semicolons",
        ),
        ("amqp:", "'://' is missing after the scheme"),
        ("127.0.0.1:", "the port after the colon is missing; write '127.0.0.1', or as in '127"),
        ("localhost:", "the port after the colon is missing"),
        (r"[::1]:", "the port after the colon is missing"),
        ("amqp://a;amqp:/b", "'://' is missing after the scheme"),
    ],
)
def test_malformed_urls_are_refused(url: str, says: str) -> None:
    for make in (Connection, greenconn.configure):
        with pytest.raises(ValueError, match=says):
            make(url)


@pytest.mark.parametrize("url", ["localhost", "h:5672", "[::1]:5672", "::1", "amqp:5672", "a;b:1"])
def test_hosts_are_hosts(url: str) -> None:
    Connection(url)


@pytest.mark.parametrize(
    ("alias", "meant"),
    [("rabbitmq", "amqp"), ("RabbitMQ", "amqp"), ("pg", "postgresql"), ("mongo", "mongodb")],
)
def test_the_name_of_a_server_says_which_transport_is_meant(alias: str, meant: str) -> None:
    with pytest.raises(KeyError, match=f"Did you mean {meant}://"):
        Connection(f"{alias}://localhost")


def test_a_mistyped_transport_is_reported_once(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda connection: connection.connect(),
        lambda connection: greenconn.publish("q", 1, connection=connection, timeout=5),
        lambda connection: connection.default_channel,
    ]
    for call in calls:
        with pytest.raises(KeyError, match="No such transport: ampq"):
            call(Connection(transport="ampq"))
        gevent.sleep(0)
    assert not [each for each in caplog.records if each.levelno > logging.DEBUG]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (
            lambda: greenconn.configure("amqp://h", hearbeat=3),
            TypeError,
            "did you mean 'heartbeat'",
        ),
        (
            lambda: greenconn.configure(conect_timeout=3),
            TypeError,
            "did you mean 'connect_timeout'",
        ),
        (lambda: greenconn.configure(123), TypeError, "url must be text .* got int"),
        (lambda: greenconn.configure(declare_by_name="yes"), TypeError, "declare_by_name must be"),
        (lambda: Connection(123), TypeError, "hostname must be a URL.* got int"),
        (lambda: Connection("amqp://h", heartbeat="x"), ValueError, "heartbeat must be .* got 'x'"),
        (lambda: Retry(3), TypeError, r"as in Retry\(tries=3\)"),
        (lambda: Retry(3, 0.5), TypeError, r"as in Retry\(tries=3, delay=0.5\)"),
        (lambda: greenconn.spawn_consumer(None, print), TypeError, "queue must be .* got None"),
        (lambda: greenconn.spawn_consumer(b"q", print), TypeError, "queue must be .* got b'q'"),
        (lambda: greenconn.spawn_consumer([None], print), TypeError, "queue must be .* got None"),
        (lambda: greenconn.publish("q", 1, declare="yes"), TypeError, "declare must be"),
        (lambda: greenconn.publish(Queue("q"), 1, declare=False), ValueError, "no_declare=True"),
        (
            lambda: greenconn.publish("q", 1, headers=["secret"]),
            TypeError,
            "headers must be .* list",
        ),
    ],
)
def test_arguments_are_named(call: Callable[[], Any], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        call()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("timeout", [math.inf, -math.inf, math.nan])
def test_no_timeout_is_endless_or_no_number(broker: MemoryBroker, timeout: float) -> None:
    with broker.connection() as connection:
        connection.connect()
        pool = connection.Pool(1)
        consumer = greenconn.spawn_consumer("q", print)
        calls: list[Callable[[], Any]] = [
            lambda: Deadline(timeout),
            lambda: connection.drain_events(timeout=timeout),
            lambda: greenconn.publish("q", 1, timeout=timeout),
            lambda: greenconn.publish_many("q", [1], timeout=timeout),
            lambda: greenconn.rpc.call("q", 1, timeout=timeout),
            lambda: Producer(connection).publish(1, routing_key="q", timeout=timeout),
            lambda: pool.acquire(block=True, timeout=timeout),
            lambda: consumer.wait_ready(timeout),
            lambda: consumer.pause(timeout),
            lambda: consumer.stop(timeout),
            lambda: greenconn.stop_consumers(timeout),
            lambda: connection.SimpleQueue("q").get(timeout=timeout),
            lambda: health.check(timeout),
            lambda: Connection(broker.url, connect_timeout=timeout),
            lambda: Connection(broker.url, heartbeat=timeout),
            lambda: greenconn.spawn_consumer("q", print, handler_timeout=timeout),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"timeout|heartbeat"):
                call()
        with pytest.raises(TypeError, match=r"timeout must be a number of seconds, .* got '3'"):
            Deadline(cast(Any, "3"))
        pool.force_close_all()


def test_a_header_that_cannot_be_sent_is_named_without_its_value() -> None:
    class Token:
        def __repr__(self) -> str:
            return "secret"

    for value in (Token(), {"in": Token()}, [Token()]):
        headers = {"fine": "not told", "token": value}
        with pytest.raises(ValueError, match="header 'token': a value of type") as caught:
            pack_properties(None, "text/plain", "utf-8", headers, {})
        shown = "".join(traceback.format_exception(caught.value))
        assert "secret" not in shown
        assert "not told" not in shown


def test_errors_of_a_broker_that_is_away_are_short() -> None:
    texts: list[str] = []
    (free_port,) = free_ports(1)

    def work(number: int) -> None:
        try:
            if number % 2:
                greenconn.publish("q", 1, connection=connection, timeout=1)
            else:
                connection.connect()
        except Exception as exc:
            texts.append("".join(traceback.format_exception(exc)))

    with Connection(f"amqp://127.0.0.1:{free_port}//") as connection:
        gevent.joinall([gevent.spawn(work, number) for number in range(500)])
    assert len(texts) == 500
    assert all("cannot connect to 127.0.0.1" in each for each in texts)
    assert max(each.count("Traceback") for each in texts) <= 2
    assert max(each.count("\n") for each in texts) <= 30


def test_a_failed_rpc_function_is_named(
    broker: MemoryBroker, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(body: Any) -> Any:
        raise OSError("no")

    greenconn.rpc.spawn_server("sums", fails)
    with pytest.raises(RemoteError):
        greenconn.rpc.call("sums", 1, timeout=10)
    (line,) = [each.getMessage() for each in caplog.records if each.name == "greenconn.rpc"]
    assert re.fullmatch(r"RPC function \S+fails of queue 'sums' failed", line)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Queue(5), "name of Queue must be text, got 5"),
        (lambda: Queue(b"mail"), "name of Queue must be text, got b'mail'"),
        (lambda: Queue(["mail"]), r"name of Queue must be text, got \['mail'\]"),
        (lambda: Queue("q", routing_key=7), "routing_key of Queue must be text, got 7"),
        (lambda: Queue("q", exchange=7), "exchange of Queue must be an Exchange, .* got 7"),
        (
            lambda: Queue("q", queue_arguments=[1]),
            r"queue_arguments of Queue must be a dict or None, got \[1\]",
        ),
        (
            lambda: Queue("q", consumer_arguments="x-priority"),
            "consumer_arguments of Queue must be a dict or None, got 'x-priority'",
        ),
        (lambda: Exchange(b"x"), "name of Exchange must be text, got b'x'"),
        (lambda: Exchange("x", type=1), "type of Exchange must be text, got 1"),
        (
            lambda: Exchange("x", arguments="alternate"),
            "arguments of Exchange must be a dict or None, got 'alternate'",
        ),
    ],
)
def test_entities_refuse_other_types_when_they_are_made(
    make: Callable[[], object], says: str
) -> None:
    with pytest.raises(TypeError, match=says):
        make()


def test_entities_accept_objects_that_stand_for_names() -> None:
    exchange = greenconn.Exchange("x")
    assert greenconn.Queue("q", routing_key=exchange).routing_key is exchange
    assert greenconn.Queue("q", exchange=[]).bindings == set()
