"""Publishing to an exchange on a real Redis: its bindings are read once, and no change is missed."""

from __future__ import annotations

from _socket import socket as RawSocket  # noqa: N812 - the class below any monkey-patching
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from greenconn import Connection, Exchange, Queue
from greenconn.broker.exchanges import Routing
from greenconn.exceptions import NotFound, PublishNacked, RecoverableConnectionError
from greenconn.transport.redis import queues as queues_module
from greenconn.transport.redis.queues import KNOWN_FOR, RedisTopology
from greenconn.wire.resp import pack
from tests.brokers.redis_server import RedisServer
from tests.fix_interrupts import Signal
from tests.integration.contract import SOON
from tests.integration.news import NEWS, Program
from tests.integration.redis_clients import Control

pytestmark = pytest.mark.halved


@pytest.fixture
def program(own_redis: RedisServer, at_server: Control) -> Iterator[Callable[..., Program]]:
    """Starts programs, each with a connection of its own, on an empty server."""
    programs: list[Program] = []

    def begin(**options: Any) -> Program:
        programs.append(Program(Connection(own_redis.url, transport_options=options)))
        return programs[-1]

    yield begin
    for each in programs:
        each.connection.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The exchanges whose bindings were read, in order."""
    found: list[str] = []
    rows = RedisTopology.rows

    def read(self: RedisTopology, exchange: str) -> Any:
        found.append(exchange)
        return rows(self, exchange)

    monkeypatch.setattr(RedisTopology, "rows", read)
    return found


@pytest.fixture
def at_once(own_redis: RedisServer) -> Iterator[Callable[..., None]]:
    """Carries out commands while no greenlet runs: pushes that they cause have come, and are unread."""
    sock = RawSocket()
    sock.settimeout(SOON)
    sock.connect(("127.0.0.1", own_redis.port))

    def carry_out(*command: Any) -> None:
        sock.sendall(pack(*command))
        assert sock.recv(1000)[:1] in b":+$*"

    yield carry_out
    sock.close()


@pytest.mark.parametrize("type", ["direct", "topic", "fanout", "headers"])
@pytest.mark.parametrize("options", [{}, {"publish_window": 4}], ids=["awaited", "windowed"])
def test_bindings_are_read_once(
    program: Callable[..., Program], reads: list[str], type: str, options: dict[str, Any]
) -> None:
    sender = program(fanout_lists=True, **options)
    exchange = Exchange(type, type)
    for name in ("one", "two"):
        arguments = {"x-match": "any", "a": 1} if type == "headers" else None
        Queue(name, exchange, "a.b", binding_arguments=arguments)(sender.channel).declare()
    publish: dict[str, Any] = {"exchange": exchange.name, "headers": {"a": 1}}
    sender.publish("first", **publish)
    for _ in range(10):
        sender.publish(**publish)
    if options:
        sender.channel.flush()
    assert reads == [type]
    for name in ("one", "two"):
        assert sender.bodies(name) == ["first", *["x"] * 10]


def test_a_fan_out_exchange_is_read_once(program: Callable[..., Program], reads: list[str]) -> None:
    sender, other = program(), program()
    got: list[Any] = []
    exchange = Exchange("all", "fanout")
    with other.connection.Consumer(
        Queue("", exchange, exclusive=True), callbacks=[lambda body, message: got.append(body)]
    ):
        for number in range(4):
            sender.publish(number, exchange="all")
        assert reads == ["all"]
        while len(got) < 4:
            other.connection.drain_events(timeout=SOON)
    assert got == [0, 1, 2, 3]


def test_what_another_program_binds_gets_the_next_message(
    program: Callable[..., Program], at_once: Callable[..., None], own_redis: RedisServer
) -> None:
    sender = program()
    sender.queue("one")
    sender.publish("first")
    keys = sender.connection.connection.commands.keys
    for number in range(3):
        name = f"other{number}"
        sender.channel.queue_declare(name)
        sender.publish("before")
        at_once("SADD", keys.bindings("news"), keys.member("a.*", r"^a\.[^.]*?$", name))
        sender.publish("after")
        # When the publish has returned, and not more often.
        assert sender.bodies(name) == ["after"]
    assert sender.bodies("one") == ["first", *["before", "after"] * 3]


def test_pipelined_messages_keep_their_order_while_queues_are_bound(
    program: Callable[..., Program], at_once: Callable[..., None]
) -> None:
    sender = program()
    sender.queue("first")
    keys = sender.connection.connection.commands.keys
    later = [f"later{number}" for number in range(3)]
    for name in later:
        sender.channel.queue_declare(name)

    def bind(part: int) -> None:
        binding = keys.member("a.*", r"^a\.[^.]*?$", later[part])
        at_once("SADD", keys.bindings("news"), binding)

    published = sender.publish_amid_bindings(bind, 0.0002)
    assert sender.bodies("first") == published
    sender.check_order(published, later)


def test_what_this_program_binds_or_unbinds_over_another_connection_counts_at_once(
    program: Callable[..., Program],
) -> None:
    sender, other = program(), program()
    other.queue("one")
    second = other.queue("two")
    for number in range(3):
        sender.publish(f"both {number}")
        second.unbind_from(NEWS, "#")
        sender.publish(f"one {number}")
        second.bind_to(NEWS, "#")
    assert sender.bodies("two") == [f"both {number}" for number in range(3)]
    other.channel.queue_delete("two")
    sender.publish("last")
    assert sender.bodies("one")[-2:] == ["one 2", "last"]
    other.channel.exchange_delete("news")
    with pytest.raises(NotFound, match="no exchange 'news'"):
        sender.publish()


def test_all_that_is_flushed_is_read_again(
    program: Callable[..., Program], at_once: Callable[..., None]
) -> None:
    sender = program()
    sender.queue("one")
    sender.publish()
    at_once("FLUSHALL")
    sender.publish()  # which the server has, as it was bound when this began, for all that is known
    gevent.sleep(0)
    with pytest.raises(NotFound, match="no exchange 'news'"):
        sender.publish()


def test_without_pushes_bindings_are_read_each_time(
    program: Callable[..., Program], reads: list[str]
) -> None:
    sender = program()
    sender.connection.connection.commands.is_tracking = False
    sender.queue("one")
    for _ in range(3):
        sender.publish()
    assert reads == ["news"] * 3


def test_bindings_count_for_a_few_seconds_only(
    program: Callable[..., Program], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may lose what the server pushes."""
    now = 1000.0
    monkeypatch.setattr(queues_module, "monotonic", lambda: now)
    sender = program()
    sender.queue("one")
    sender.publish()
    now += KNOWN_FOR
    sender.publish()
    assert reads == ["news"]
    now += 0.1
    sender.publish()
    assert reads == ["news"] * 2


@pytest.mark.parametrize("way", ["exchange", "alternate"])
def test_what_other_exchanges_decide_is_read_each_time(
    program: Callable[..., Program], at_once: Callable[..., None], way: str
) -> None:
    sender = program()
    channel = sender.channel
    channel.exchange_declare("behind", "direct")
    channel.queue_declare("one")
    if way == "exchange":
        channel.exchange_declare("before", "topic")
        channel.exchange_bind("behind", "before", "#")
    else:
        arguments = {"alternate-exchange": "behind"}
        channel.exchange_declare("before", "topic", arguments=arguments)
        channel.queue_declare("other")
        channel.queue_bind("other", "before", "other.#")
        sender.publish(exchange="before", routing_key="other.a")
    sender.publish("dropped", exchange="before")
    keys = sender.connection.connection.commands.keys
    at_once("SADD", keys.bindings("behind"), keys.member("a.b", "", "one"))
    sender.publish("kept", exchange="before")
    assert sender.bodies("one") == ["kept"]


@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        (NotFound("the exchange was deleted"), None),
        (RecoverableConnectionError("lost"), RecoverableConnectionError),
        (Signal(), PublishNacked),
    ],
    ids=["deleted", "lost", "interrupted"],
)
def test_a_second_look_that_fails_is_an_outcome(
    program: Callable[..., Program],
    monkeypatch: pytest.MonkeyPatch,
    hub_errors: Any,
    problem: BaseException,
    outcome: type[Exception] | None,
) -> None:
    """Those that have the message keep it; whether others should have it, too, is not known."""
    sender = program()
    sender.queue("one")
    sender.publish("first")

    def look(*arguments: Any) -> None:
        raise problem

    monkeypatch.setattr(Routing, "routes", look)
    gevent.get_hub().loop.run_callback(RedisTopology.note_change)
    if outcome is None:
        sender.publish()
    else:
        with pytest.raises(outcome):
            sender.publish()
    monkeypatch.undo()
    hub_errors.clear()
    assert sender.bodies("one") == ["first", "x"]
