"""A user of the server with the documented commands only, and with one less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from redis import exceptions

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.exceptions import OperationalError
from greenconn.transport.redis.errors import NotRedis
from tests.brokers.redis_server import RedisServer
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting
from tests.integration.redis_clients import Control
from tests.unit.test_docs import ROOT

pytestmark = pytest.mark.full

PAGE = ROOT / "docs" / "redis.rst"
#: Refused without harm: a replica is noticed later, queues are polled, nobody flushes scripts, and what
#: a killed process owned alone is free later; bindings of queues that are gone count, and what was in a
#: queue that expired stays; nobody learns that the server evicts keys.  The server lets everybody log in
#: and name himself with HELLO.  No queue here has a time to live, and the database is 0.
DISPENSABLE = {
    *(
        "auth",
        "client|list",
        "client|setname",
        "client|tracking",
        "hello",
        "info",
        "lindex",
        "lpos",
    ),
    *("pttl", "punsubscribe", "role", "script|load", "select", "sismember"),
}


def documented() -> list[str]:
    """The words of the documented ``ACL SETUSER``."""
    found = re.search(r"^    (ACL SETUSER app.*?)\n\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].split()


COMMANDS = [word[1:] for word in documented() if re.match(r"\+[a-z]", word)]


@pytest.fixture
def at_server(at_server: Control) -> Iterator[Control]:
    """The same, without our user afterwards."""
    yield at_server
    at_server("ACL", "DELUSER", "app")


def program(url: str) -> list[Any]:
    """Use all that there is; what was received."""
    got: list[Any] = []
    options = {"global_keyprefix": "app:", "client_name": "app", "lease": 60.0}
    with Connection(url, transport_options=options) as connection:
        greenconn.publish("plain", 1, connection=connection, declare=True)
        channel = connection.default_channel
        queues = [
            Queue("plain"),
            Queue("brief", Exchange("x", "topic"), "a.#", expires=60),
            Queue("fanned", Exchange("f", "fanout"), auto_delete=True),
        ]
        for queue in queues[1:]:
            queue(channel).declare()
        consumer = greenconn.spawn_consumer(
            queues, lambda body, message: got.append(body), connection=connection
        )
        try:
            consumer.wait_ready(SOON)
            topic = Exchange("x", "topic")
            greenconn.publish(topic, 2, routing_key="a.b", connection=connection)
            greenconn.publish(Exchange("f", "fanout"), 3, connection=connection)
            until(lambda: set(got) >= {1, 2, 3} or consumer.ready(), SOON)
            if consumer.ready():
                consumer.get(timeout=SOON)
        finally:
            consumer.stop(SOON)
        connection.connection.placement.partition("").sweeper.advance()
        connection.connection.placement.partition(
            ""
        ).sweeper.sweep()  # finds what a dead owner held
        channel.queue_declare("other")
        channel.queue_purge("other")
        channel.basic_publish(channel.prepare_message("x"), "", "other")
        channel.basic_get("other").requeue()
        channel.queue_delete("other")
        channel.queue_delete("brief")
        channel.exchange_delete("x")
    return got


def user(at_server: Control, *changes: str) -> None:
    """Make the documented user, with *changes*."""
    words = documented()
    at_server("HSET", "app:unacked", "gc.dead.1", b'[{}, "", "old"]')
    at_server("ZADD", "app:unacked_index", 1, "gc.dead.1")
    at_server("ZADD", "app:greenconn.owners", -1, "dead")
    at_server(*words[:3], "reset", *words[3:], *changes)


def test_the_documented_commands_are_enough(own_redis: RedisServer, at_server: Control) -> None:
    user(at_server)
    assert sorted(program(own_redis.url.replace("//", "//app:password@"))) == [1, 2, 3]


def test_other_keys_are_out_of_reach(own_redis: RedisServer, at_server: Control) -> None:
    user(at_server)
    url = own_redis.url.replace("//", "//app:password@")
    with (
        Connection(url) as connection,
        pytest.raises(OperationalError, match=r"docs/redis\.rst") as caught,
    ):
        greenconn.publish("q", 1, connection=connection, declare=True)
    assert isinstance(caught.value.__cause__, exceptions.NoPermissionError)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in DISPENSABLE])
def test_one_command_less_is_named(
    command: str, own_redis: RedisServer, at_server: Control, caplog: pytest.LogCaptureFixture
) -> None:
    user(at_server, f"-{command}")
    url = own_redis.url.replace("//", "//app:password@")
    notified: list[str] = []
    try:
        program(url)
    except (exceptions.ResponseError, OperationalError) as exc:
        notified.append(str(exc))
    except gevent.Timeout:
        pass
    said = "\n".join([*notified, caplog.text])
    assert "docs/redis.rst lists the commands" in said, said
    # What was taken is not lost, whatever was not permitted.
    if not notified:
        return
    waiting = at_server("LLEN", "app:plain") + at_server("HLEN", "app:unacked")
    assert waiting <= 2


@pytest.mark.parametrize("command", sorted(DISPENSABLE & set(COMMANDS)))
def test_what_a_user_can_do_without(
    command: str, own_redis: RedisServer, at_server: Control
) -> None:
    user(at_server, f"-{command}")
    url = own_redis.url.replace("//", "//app:password@")
    assert sorted(program(url)) == [1, 2, 3]


def test_flushed_scripts_that_may_not_be_loaded(
    own_redis: RedisServer, at_server: Control, caplog: pytest.LogCaptureFixture
) -> None:
    """The consumer tries again with pauses, and goes on as soon as it may."""
    user(at_server, "-script|load")
    url = own_redis.url.replace("//", "//app:password@")
    got: list[Any] = []
    with (
        caplog.at_level("INFO", "greenconn"),
        Connection(url, transport_options={"global_keyprefix": "app:"}) as connection,
    ):
        consumer = collecting(connection, "plain", got)
        at_server("SCRIPT", "FLUSH")
        at_server("CONFIG", "RESETSTAT")
        greenconn.publish("plain", 1, connection=connection)
        gevent.sleep(0.5)
        assert at_server("LLEN", "app:plain") == 1
        assert at_server.calls("evalsha") < 20
        assert "script|load" in caplog.text
        at_server("ACL", "SETUSER", "app", "+script|load")
        until(lambda: got == [1])
        assert consumer.stop(SOON)


def test_delayed_message_needs_the_documented_commands_only(
    own_redis: RedisServer, at_server: Control
) -> None:
    user(at_server)
    url = own_redis.url.replace("//", "//app:password@")
    got: list[Any] = []
    with Connection(url, transport_options={"global_keyprefix": "app:"}) as connection:
        consumer = collecting(connection, "plain", got)
        greenconn.publish("plain", 1, connection=connection, delay=0.1)
        until(lambda: got == [1])
        assert consumer.stop(SOON)


def test_delayed_message_out_of_reach_holds_up_no_other(
    own_redis: RedisServer, at_server: Control
) -> None:
    """Users who share the delayed messages, but not the queues."""
    keys = ("~plain*", "~greenconn.*", "~unacked*")
    at_server("ACL", "SETUSER", "app", "reset", "on", ">password", *keys, "&*", "+@all")
    url = own_redis.url.replace("//", "//app:password@")
    got: list[Any] = []
    with Connection(own_redis.url) as other:
        expiring = Queue("other-brief", expires=60)
        expiring(other.default_channel).declare()
        greenconn.publish(expiring, "for others", connection=other, delay=0.1)
        greenconn.publish("other", "for others", connection=other, delay=0.1, declare=True)
        consumer = greenconn.spawn_consumer(
            "plain", lambda body, message: got.append(body), connection=Connection(url)
        )
        with Connection(url) as connection:
            assert consumer.wait_ready(SOON)
            other.close()
            greenconn.publish("plain", 1, connection=connection, delay=0.2)
            until(lambda: got == [1])
            assert consumer.stop(SOON)
            assert at_server("ZCARD", "greenconn.delayed") == 2


def test_connection_may_end_in_any_way_while_delayed_messages_are_moved(
    own_redis: RedisServer, at_server: Control, caplog: pytest.LogCaptureFixture
) -> None:
    with Connection(own_redis.url) as connection:
        connection.connect()
        partition = connection.connection.placement.partition("")
        delays, pipeline = partition.delays, partition.commands.pipeline
        at_server("CLIENT", "PAUSE", 60_000, "WRITE")
        try:
            delays.expect(0.0)
            greenlet = delays._moving.greenlet
            assert greenlet is not None
            until(lambda: pipeline._callbacks)
            pipeline.end(NotRedis("no protocol"))
            greenlet.join(SOON)
        finally:
            at_server("CLIENT", "UNPAUSE")
    assert "failed" not in caplog.text
