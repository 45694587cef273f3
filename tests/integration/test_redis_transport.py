"""What the Redis transport does beside the contract."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
import redis
from gevent import Timeout
from redis import exceptions

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.exceptions import ContentTooLarge, DecodeError, RecoverableChannelError
from greenconn.identity import program_name
from greenconn.messaging import Producer
from greenconn.transport.redis import queues
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.fix_brokers import RedisFactory
from tests.fix_wires import until
from tests.integration.contract import SOON, Store, collecting

Connect = Callable[..., Connection]


@pytest.fixture
def connect(redis_url: str, unique: str) -> Iterator[Connect]:
    """Opens connections whose keys are the test's own; deleted after the test."""
    opened: list[Connection] = []

    def open_connection(**options: Any) -> Connection:
        options = {"global_keyprefix": f"{unique}:", **options}
        opened.append(Connection(redis_url, transport_options=options))
        return opened[-1]

    yield open_connection
    for each in opened:
        each.close()
    with Connection(redis_url) as cleaner:
        keys = cleaner.connection.commands.call(pack("KEYS", f"{unique}:*"))
        if keys:
            cleaner.connection.commands.call(pack("DEL", *keys))


def commands_of(connection: Connection, name: str) -> int:
    """How often the server has carried out a command."""
    text = connection.connection.commands.call(pack("INFO", "commandstats")).decode()
    for line in text.splitlines():
        if line.startswith(f"cmdstat_{name}:"):
            return int(line.partition("calls=")[2].partition(",")[0])
    return 0


def test_large_bodies_keep_their_place(connect: Connect) -> None:
    connection = connect()
    producer = Producer(connection)
    big = b"x" * (3 * 1024 * 1024)
    for body in (b"1", big, b"2", big, b"3"):
        producer.publish(body, routing_key="q")
    got: list[int] = []
    consumer = greenconn.spawn_consumer(
        "q", lambda body, message: got.append(len(body)), connection=connection
    )
    until(lambda: len(got) == 5)
    assert got == [1, len(big), 1, len(big), 1]
    assert consumer.stop(SOON)


def test_large_body_does_not_hold_up_small_ones(connect: Connect) -> None:
    connection = connect()
    producer = Producer(connection)
    producer.publish(b"warm", routing_key="small")
    done: list[str] = []

    def send(name: str, body: bytes) -> None:
        producer.publish(body, routing_key=name)
        done.append(name)

    big = gevent.spawn(send, "big", b"x" * (40 * 1024 * 1024))
    gevent.sleep(0)
    gevent.joinall([gevent.spawn(send, "small", b"x") for _ in range(5)], raise_error=True)
    big.get(timeout=SOON)
    assert done[-1] == "big"


def test_one_connection_serves_all(connect: Connect, unique: str) -> None:
    # A name of its own: another run of this test may use the same server now.
    connection = connect(client_name=unique)
    consumers = [
        greenconn.spawn_consumer(f"q{number}", print, connection=connection)
        for number in range(200)
    ]
    assert all(each.wait_ready(SOON) for each in consumers)
    for number in range(50):
        connection.channel().basic_publish(
            connection.default_channel.prepare_message("x"), "", f"other{number}"
        )
    clients = connection.connection.commands.call(pack("CLIENT", "LIST")).decode()
    assert clients.count(f"name={unique} ") == 1
    for each in consumers:
        each.kill()


def test_a_small_limit_of_messages_holds(connect: Connect) -> None:
    with pytest.raises(ContentTooLarge, match="max_message_size"):
        connect(max_message_size=10).Producer().publish("x" * 20, routing_key="q")


def test_limit_of_messages_counts_what_is_stored(connect: Connect) -> None:
    producer = connect(max_message_size=1000).Producer()
    producer.publish(b"x" * 500, routing_key="q")  # base64, and about 300 bytes more
    for size, headers in ((740, None), (500, {"x": "y" * 200})):
        with pytest.raises(ContentTooLarge, match=r"message of \d+ bytes.*max_message_size"):
            producer.publish(b"x" * size, routing_key="q", headers=headers)
        with pytest.raises(ContentTooLarge, match="max_message_size"):
            producer.publish(b"x" * size, routing_key="q", headers=headers, delay=1)


@pytest.mark.parametrize("may_ask", [True, False], ids=["told", "not told"])
@pytest.mark.parametrize("how", ["plain", "delayed", "window"])
def test_message_above_the_limit_of_the_server_is_refused(
    redis_with: RedisFactory, may_ask: bool, how: str
) -> None:
    server = redis_with("--proto-max-bulk-len", "2mb")
    with Connection(server.url) as neighbour:
        at_server = neighbour.connection.commands.call
        if not may_ask:
            at_server(pack("ACL", "SETUSER", "default", "-config"))
        options = {"publish_window": 8} if how == "window" else {}
        neighbour.default_channel.queue_declare("q")
        with Connection(server.url, transport_options=options) as connection:
            publish = connection.Producer().publish
            publish(b"small", routing_key="q")
            link = connection.connection
            connections = server_connections(neighbour)
            with pytest.raises(ContentTooLarge, match="proto-max-bulk-len"):
                publish(
                    b"x" * 3 * 1024 * 1024,
                    routing_key="q",
                    retry=True,
                    timeout=SOON,
                    delay=0.01 if how == "delayed" else None,
                )
                connection.flush()
            publish(b"y" * 1024 * 1024, routing_key="q")
            connection.flush()
            assert connection.connection is link
            # One for large messages, which the server ends where it does not tell its limit.
            assert server_connections(neighbour) <= connections + (1 if may_ask else 2)
        assert neighbour.default_channel.queue_declare("q", passive=True).message_count == 2


def server_connections(connection: Connection) -> int:
    """Return the number of connections that the server has accepted."""
    text = connection.connection.commands.call(pack("INFO", "stats")).decode()
    return int(text.partition("total_connections_received:")[2].split()[0])


def test_window_of_unconfirmed_publishes(connect: Connect) -> None:
    connection, other = connect(publish_window=16), connect()
    channel: Any = connection.channel()
    message = channel.prepare_message("x")
    for _ in range(100):
        channel.basic_publish(message, "", "q")
    channel.flush()
    assert other.default_channel.queue_declare("q", passive=True).message_count == 100
    link = other.connection
    link.commands.call(pack("SET", link.commands.keys.plain("wrong"), "no list"))
    channel.basic_publish(message, "", "wrong")
    with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
        channel.flush()
    channel.basic_publish(message, "", "wrong")
    with pytest.raises(exceptions.ResponseError, match="has another type"):
        while True:
            channel.basic_publish(message, "", "q")
    channel.flush()


def test_message_that_is_no_envelope(connect: Connect) -> None:
    connection = connect()
    link = connection.connection
    link.commands.call(pack("LPUSH", link.commands.keys.plain("q"), b"\xff no JSON"))
    link.commands.call(pack("LPUSH", link.commands.keys.plain("q"), b'{"body": "x"}'))
    Producer(connection).publish("good", routing_key="q")
    got: list[Any] = []
    bad: list[Any] = []

    def refuse(message: Any, exc: Exception) -> None:
        bad.append(exc)
        message.reject()

    consumer = greenconn.spawn_consumer(
        "q", lambda body, message: got.append(body), connection=connection, on_decode_error=refuse
    )
    until(lambda: got)
    assert (got, len(bad)) == (["good"], 2)
    assert all(isinstance(each, (DecodeError, ValueError, KeyError)) for each in bad)
    until(lambda: link.commands.call(pack("HLEN", link.commands.keys.unacked)) == 0)
    assert consumer.stop(SOON)


def test_poison_becomes_a_dead_letter(connect: Connect) -> None:
    connection = connect(delivery_limit=3, dead_letter_queue="dead")
    channel = connection.default_channel
    channel.queue_declare("q")
    Producer(connection).publish("poison", routing_key="q")
    deliveries = []
    while (message := channel.basic_get("q")) is not None:
        deliveries.append(message.headers.get("x-delivery-count", 0))
        message.requeue()
        gevent.sleep(0.02)
    assert deliveries == [0, 1, 2]
    letter = channel.basic_get("dead")
    assert letter.payload == "poison"
    assert letter.headers["x-death"][0]["reason"] == "delivery_limit"
    assert letter.headers["x-death"][0]["queue"] == "q"


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize(
    ("strategy", "expected"), [("sorted", ["a", "b", "c"]), ("priority", ["c", "a", "b"])]
)
def test_order_of_queues(connect: Connect, strategy: str, expected: list[str], limit: int) -> None:
    connection = connect(queue_order_strategy=strategy)
    channel = connection.channel()
    for name in "cab":
        channel.queue_declare(name)
        for number in range(3):
            Producer(connection).publish(f"{name}{number}", routing_key=name)
    got: list[str] = []
    channel.flow(False)
    channel.basic_qos(0, limit, True)

    def take(message: Any) -> None:
        got.append(message.payload)
        message.ack()

    for name in "cab":
        channel.basic_consume(name, callback=take)
    channel.flow(True)
    while len(got) < 9:
        connection.drain_events(timeout=SOON)
    assert got == [f"{name}{number}" for name in expected for number in range(3)]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 10])
def test_full_queues_get_as_much_of_the_limit_of_a_channel(connect: Connect, limit: int) -> None:
    connection = connect()
    channel = connection.channel()
    count = 60
    for name in "abc":
        channel.queue_declare(name)
        for _ in range(count):
            Producer(connection).publish(name, routing_key=name)
    got: list[str] = []
    channel.basic_qos(0, limit, True)

    def take(message: Any) -> None:
        got.append(message.payload)
        message.ack()

    for name in "abc":
        channel.basic_consume(name, callback=take)
    while len(got) < count:
        connection.drain_events(timeout=SOON)
    shares = [got[:count].count(name) for name in "abc"]
    assert max(shares) - min(shares) <= limit + 1, shares


def test_a_get_whose_channel_is_closed_gives_its_message_back(connect: Connect) -> None:
    connection = connect()
    Producer(connection).publish(b"1", routing_key="q")
    channel = connection.channel()
    getter = gevent.spawn(channel.basic_get, "q")
    gevent.sleep(0)  # it has asked the server
    channel.close()
    with pytest.raises(RecoverableChannelError):
        getter.get(timeout=SOON)
    found = connection.default_channel.basic_get("q")
    assert found is not None
    assert not found.delivery_info["redelivered"]


def test_channel_has_what_monitoring_reads(connect: Connect, unique: str) -> None:
    kombus: Any = pytest.importorskip("kombu.transport.redis").Channel
    channel: Any = connect().channel()
    for name in (
        *("priority_steps", "sep", "queue_order_strategy", "visibility_timeout"),
        *("unacked_key", "unacked_index_key"),
    ):
        theirs = getattr(kombus, name)
        assert getattr(channel, name) == (tuple(theirs) if isinstance(theirs, list) else theirs)
    connection = connect(priority_steps=[0, 5], sep=":", unacked_key="held")
    channel = connection.channel()
    assert (list(channel.priority_steps), channel.sep, channel.unacked_key) == ([0, 5], ":", "held")
    assert channel.active_queues == []
    fanned = Queue(f"{unique}-f", Exchange(f"{unique}-f", "fanout"), exclusive=True)
    with connection.Consumer([Queue("b"), Queue("a"), fanned], channel=channel, callbacks=[print]):
        assert channel.active_queues == ["b", "a"]
    assert channel.active_queues == []
    producer = connection.Producer()
    for priority in (0, 3, 9):
        producer.publish("x", routing_key="a", priority=priority)
    # As celery-exporter counts.
    lists = ["a" if not step else f"a{channel.sep}{step}" for step in channel.priority_steps]
    assert [channel.client.llen(each) for each in lists] == [2, 1]


def test_database_zero_is_not_selected(own_redis: RedisServer, unique: str) -> None:
    with Connection(own_redis.url) as watcher:
        before = commands_of(watcher, "select")
        with Connection(own_redis.url_of(0)) as connection:
            connection.default_channel.queue_declare(unique)
        assert commands_of(watcher, "select") == before
        with Connection(own_redis.url_of(1)) as connection:
            connection.default_channel.queue_declare(unique)
        assert commands_of(watcher, "select") == before + 1


def test_other_priority_steps(connect: Connect) -> None:
    connection = connect(priority_steps=[0, 5], sep=":")
    producer = Producer(connection)
    for priority in (9, 5, 4, 0):
        producer.publish(priority, routing_key="q", priority=priority)
    link = connection.connection
    assert link.commands.call(pack("LLEN", link.commands.keys.plain("q:5"))) == 2
    channel = connection.default_channel
    assert [channel.basic_get("q", no_ack=True).payload for _ in range(4)] == [4, 0, 9, 5]


def test_bodies_without_base64(connect: Connect) -> None:
    connection = connect(body_encoding=None)
    Producer(connection).publish({"a": "caf\u00e9"}, routing_key="q")
    link = connection.connection
    (raw,) = link.commands.call(pack("LRANGE", link.commands.keys.plain("q"), 0, -1))
    assert json.loads(json.loads(raw)["body"]) == {"a": "caf\u00e9"}
    assert connection.default_channel.basic_get("q").payload == {"a": "caf\u00e9"}


def test_use_keeps_a_queue_that_expires_and_its_bindings(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "LEAST_EXPIRY_MS", 100)
    monkeypatch.setattr(queues, "RENEWALS", 1e6)  # at each use
    connection = connect()
    link, channel = connection.connection, connection.channel()
    channel.exchange_declare("x", "direct")
    channel.queue_declare("q", arguments={"x-expires": 60_000})
    channel.queue_bind("q", "x", "key")

    def shorten() -> None:
        for key in (link.commands.keys.queue("q"), link.commands.keys.plain("q")):
            link.commands.call(pack("PEXPIRE", key, 30_000))
        link.commands.call(pack("ZADD", link.commands.keys.binding_deadlines, 1, "x"))

    def is_kept() -> bool:
        left = link.commands.call(pack("PTTL", link.commands.keys.queue("q")))
        deadline = float(
            link.commands.call(pack("ZSCORE", link.commands.keys.binding_deadlines, "x"))
        )
        return bool(left > 30_000 and deadline > 1)

    uses: list[Callable[[], Any]] = [
        lambda: channel.basic_get("q"),
        lambda: channel.queue_declare("q", passive=True),
    ]
    for use in uses:
        shorten()
        assert not is_kept()
        use()
        assert is_kept()
    link.commands.call(pack("SCRIPT", "FLUSH"))
    shorten()
    until(lambda: channel.basic_get("q") is None and is_kept())
    channel.basic_consume("q", sink=Store())
    shorten()
    link.queues.renew()  # as a clock does while it is consumed
    assert is_kept()


def test_ready_made_wrong_types_are_named(connect: Connect) -> None:
    connection = connect()
    link = connection.connection
    link.commands.call(pack("SET", link.commands.keys.unacked, "no hash"))
    Producer(connection).publish("x", routing_key="q")
    with pytest.raises(exceptions.ResponseError, match="another database"):
        connection.default_channel.basic_get("q")
    assert link.commands.call(pack("LLEN", link.commands.keys.plain("q"))) == 1


def test_foreign_messages_are_found_by_a_push(connect: Connect) -> None:
    connection, other = connect(), connect()
    store = Store()
    channel = connection.channel()
    channel.queue_declare("q")
    channel.basic_consume("q", sink=store)
    gevent.sleep(0.05)
    producer = Producer(other)
    for number in range(20):
        producer.publish(number, routing_key="q")
        until(lambda number=number: len(store) > number, 2.0)  # type: ignore[misc]


def test_unknown_options(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with Connection(redis_url, transport_options={"visibility_timeut": 5}) as connection:
        connection.connect()
    assert "'visibility_timeut' (did you mean 'visibility_timeout'?)" in caplog.text
    with pytest.raises(ValueError, match="did you mean 'visibility_timeout'"):
        Connection(f"{redis_url}?visibility_timeut=5")
    for options in (
        {"lease": 0},
        {"priority_steps": [3, 1]},
        {"queue_order_strategy": "any"},
        {"body_encoding": "gzip"},
    ):
        connection = Connection(redis_url, transport_options=options)
        with connection, pytest.raises(ValueError, match=min(options)):
            connection.connect()


def test_flushed_scripts(connect: Connect) -> None:
    connection, other = connect(), connect()
    got: list[Any] = []
    consumer = collecting(connection, "q", got)
    for number in range(3):
        other.connection.commands.call(pack("SCRIPT", "FLUSH"))
        Producer(other).publish(number, routing_key="q")
        until(lambda number=number: len(got) > number)  # type: ignore[misc]
        held = connection.default_channel
        other.default_channel.queue_declare("r")
        Producer(other).publish(number, routing_key="r")
        message = held.basic_get("r")
        other.connection.commands.call(pack("SCRIPT", "FLUSH"))
        message.requeue()
        until(lambda: other.default_channel.basic_get("r", no_ack=True))
    assert consumer.stop(SOON)


def test_new_credentials_on_the_open_connection(own_redis: RedisServer) -> None:
    class Provider(redis.CredentialProvider):
        token = "one"

        def get_credentials(self) -> Any:
            return "app", self.token

    provider = Provider()
    with Connection(own_redis.url) as control:
        call = control.connection.commands.call
        call(pack("ACL", "SETUSER", "app", "on", ">one", ">two", ">three", "~*", "&*", "+@all"))
        options = {"reauth_check_interval": 0.05}
        with Connection(
            own_redis.url, credential_provider=provider, transport_options=options
        ) as connection:
            link = connection.connection
            provider.token = "two"
            until(lambda: link.reauthentication._current == ("app", "two"))
            assert connection.connection is link
            connection.update_secret("three")
            with pytest.raises(exceptions.ResponseError, match="WRONGPASS"):
                connection.update_secret("wrong")
            Producer(connection).publish("x", routing_key="q")
        call(pack("ACL", "DELUSER", "app"))


def test_consumers_come_and_go(connect: Connect, long: bool) -> None:
    """Whoever stays is told of messages at once, not by a safety look."""
    connection, other = connect(), connect()
    channels = [connection.channel() for _ in range(3)]
    channels[0].queue_declare("q")
    store = Store()
    rng = random.Random(7)

    def come_and_go(channel: Any) -> None:
        for _ in range(300 if long else 60):
            tag = channel.basic_consume("q", sink=store)
            gevent.sleep(rng.random() / 500)
            channel.basic_cancel(tag)
            gevent.sleep(rng.random() / 500)

    producer = Producer(other)
    walkers = [gevent.spawn(come_and_go, each) for each in channels]
    number = 0
    while not all(each.ready() for each in walkers):
        producer.publish(number, routing_key="q")
        number += 1
        gevent.sleep(0.002)
    gevent.joinall(walkers, raise_error=True)
    channels[1].basic_consume("q", sink=store)
    with Timeout(2.0):
        while {each.payload for each in store} != set(range(number)):
            gevent.sleep(0.01)
    producer.publish("last", routing_key="q")
    with Timeout(2.0):
        while store[-1].payload != "last":
            gevent.sleep(0.01)
    link = connection.connection
    assert list(link.feeds) == ["q"]
    assert link.directory.counts(["q"]) == {"q": (0, 1)}


def test_dead_letters_without_an_exchange(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect()
    channel = connection.default_channel
    channel.queue_declare("q", arguments={"x-dead-letter-exchange": "absent"})
    Producer(connection).publish("x", routing_key="q")
    channel.basic_get("q").reject()
    link = connection.connection
    until(lambda: link.commands.call(pack("HLEN", link.commands.keys.unacked)) == 0)
    assert "exchange 'absent' does not exist" in caplog.text


@pytest.mark.parametrize("kind", ["direct", "fanout"])
def test_held_messages_of_kombu_go_where_their_exchange_leads(connect: Connect, kind: str) -> None:
    connection = connect(visibility_timeout=1.0, lease=1.0)
    channel = connection.default_channel
    exchange = greenconn.Exchange("x", kind)
    Queue("q", exchange, "key")(channel).declare()
    link = connection.connection
    held = json.dumps(
        [{"body": "", "headers": {}, "properties": {"delivery_info": {}}}, "x", "key"]
    )
    lost = json.dumps(
        [{"body": "", "headers": {}, "properties": {"delivery_info": {}}}, "y", "key"]
    )
    for tag, text in (("a-tag", held), ("b-tag", lost), ("c-tag", "no JSON")):
        link.commands.call(pack("HSET", link.commands.keys.unacked, tag, text))
        link.commands.call(pack("ZADD", link.commands.keys.unacked_index, 1, tag))
    assert link.placement.partition("").sweeper.sweep() == 2
    assert channel.queue_declare("q", passive=True).message_count == 1
    assert link.commands.call(pack("HKEYS", link.commands.keys.unacked)) == [b"c-tag"]
    # What cannot be read is left alone, and harms nobody.
    assert link.placement.partition("").sweeper.sweep() == 0


@pytest.mark.parametrize("window", [0, 4])
def test_message_to_no_queue_at_all_leaves_no_key(connect: Connect, window: int) -> None:
    dropping = connect(publish_window=window)
    keeping = connect(publish_window=window, deadletter_queue="last")
    link = dropping.connection
    Producer(dropping).publish("x", routing_key="")
    assert link.commands.call(pack("EXISTS", *link.commands.keys.lists(""))) == 0
    with pytest.warns(UserWarning, match="last"):
        Producer(keeping).publish("x", routing_key="")
    assert link.commands.call(pack("LLEN", link.commands.keys.plain("last"))) == 1


def test_connections_are_named_after_the_program(connect: Connect) -> None:
    link = connect().connection
    name = program_name()
    assert f" name={name} " in link.commands.call(pack("CLIENT", "LIST")).decode()


def test_name_that_redis_would_refuse(connect: Connect) -> None:
    with pytest.raises(ValueError, match=r"client_name.*without spaces"):
        connect(client_name="my program").connect()
