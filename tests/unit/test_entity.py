"""Exchanges, queues and bindings, and what they ask of a channel."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import copy
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.entities import KNOWN, ArgumentOf
from greenconn.broker.exchanges import PREDECLARED, ROUTERS
from greenconn.checks import (
    CONSUMER_ARGUMENTS,
    EXCHANGE_ARGUMENTS,
    EXCHANGE_TYPES,
    QUEUE_ARGUMENTS,
)
from greenconn.entity import Exchange, Queue, binding, maybe_declare
from greenconn.exceptions import ContentDisallowed, PreconditionFailed, RecoverableConnectionError
from tests.unit.fake_channel import FakeChannel, FakeClient, outcome

# Exchanges


def test_exchange_on_another_channel(client: FakeClient, channel: FakeChannel) -> None:
    other = client.channel()
    exchange = Exchange("e", channel=channel)
    exchange.declare(channel=other)
    exchange.bind_to("s", channel=other)
    exchange.unbind_from("s", channel=other)
    assert channel.calls == []
    assert other.methods == ["exchange_declare", "exchange_bind", "exchange_unbind"]


# Misspelled arguments


@pytest.mark.parametrize(
    ("make", "wrong", "meant"),
    [
        (lambda given: Queue("bills", queue_arguments=given), "x-mesage-ttl", "x-message-ttl"),
        (lambda given: Queue("bills", queue_arguments=given), "message-ttl", "x-message-ttl"),
        (
            lambda given: Queue("bills", queue_arguments=given),
            "x-dead-letter-exchagne",
            "x-dead-letter-exchange",
        ),
        (lambda given: Queue("bills", consumer_arguments=given), "x-priorty", "x-priority"),
        (
            lambda given: Exchange("bills", arguments=given),
            "alternate-exchang",
            "alternate-exchange",
        ),
    ],
)
def test_an_argument_that_brokers_would_ignore_is_an_error(
    make: Callable[[dict[str, Any]], object], wrong: str, meant: str
) -> None:
    with pytest.raises(
        ValueError, match=f"'bills': brokers ignore '{wrong}'; did you mean '{meant}'"
    ):
        make({wrong: "kept"})
    make({meant: "kept"})


def test_a_misspelled_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="'logs': no broker has 'fannout'; did you mean 'fanout'"):
        Exchange("logs", "fannout")
    assert Exchange("logs", "x-plugin").type == "x-plugin"
    assert {*PREDECLARED.values(), *ROUTERS} <= EXCHANGE_TYPES


def test_arguments_of_plugins_are_passed_on() -> None:
    given = {"x-plugin-setting": 1, "colour": "green", "x-message-deduplication": True}
    assert Queue("bills", queue_arguments=given).queue_arguments == given


def test_all_arguments_that_transports_know_are_known() -> None:
    known = {
        ArgumentOf.QUEUE: QUEUE_ARGUMENTS,
        ArgumentOf.EXCHANGE: EXCHANGE_ARGUMENTS,
        ArgumentOf.CONSUMER: CONSUMER_ARGUMENTS,
    }
    for kind, names in known.items():
        assert names >= set(KNOWN[kind])


# Bindings


def test_binding_declares_binds_and_unbinds(channel: FakeChannel) -> None:
    queue = Queue("q", channel=channel)
    bound = Exchange("e", "headers").binding("k", {"a": 1}, {"b": 2})
    bound.declare(channel)
    bound.bind(queue)
    bound.unbind(queue)
    assert channel.methods == ["exchange_declare", "queue_bind", "queue_unbind"]
    assert channel.calls[1].arguments["arguments"] == {"a": 1}
    assert channel.calls[2].arguments["arguments"] == {"b": 2}
    assert channel.calls[2].arguments["exchange"] == "e"


# Queues


def test_queue_declares_exchange_then_itself_then_binds(channel: FakeChannel) -> None:
    queue = Queue("q", Exchange("e"), "key", channel=channel, binding_arguments={"b": 1})
    assert queue.declare() == "q"
    assert channel.methods == ["exchange_declare", "queue_declare", "queue_bind"]
    assert channel.calls[2].arguments == {
        "queue": "q",
        "exchange": "e",
        "routing_key": "key",
        "arguments": {"b": 1},
        "nowait": False,
    }


def test_queue_with_several_bindings(channel: FakeChannel) -> None:
    one, two = Exchange("one"), Exchange("two")
    queue = Queue("q", [one.binding("a"), two.binding("b")], channel=channel)
    assert queue.exchange is None
    queue.declare(nowait=True)
    assert channel.methods[0] == "queue_declare"
    assert {call.arguments["exchange"] for call in channel.of("exchange_declare")} == {"one", "two"}
    assert {
        (call.arguments["exchange"], call.arguments["routing_key"], call.arguments["nowait"])
        for call in channel.of("queue_bind")
    } == {("one", "a", True), ("two", "b", True)}
    assert Queue("q", bindings=[one.binding("a")]).exchange is None


def test_queue_options_become_arguments(channel: FakeChannel) -> None:
    Queue(
        "q",
        channel=channel,
        durable=False,
        exclusive=True,
        expires=1.5,
        message_ttl=2,
        max_length=3,
        max_length_bytes=4,
        max_priority=5,
        queue_arguments={"x-queue-mode": "lazy"},
    ).declare()
    assert channel.calls[0].arguments == {
        "queue": "q",
        "passive": False,
        "durable": False,
        "exclusive": True,
        "auto_delete": True,
        "nowait": False,
        "arguments": {
            "x-queue-mode": "lazy",
            "x-expires": 1500,
            "x-message-ttl": 2000,
            "x-max-length": 3,
            "x-max-length-bytes": 4,
            "x-max-priority": 5,
        },
    }


def test_on_declared_is_called(channel: FakeChannel) -> None:
    notified: list[tuple[Any, ...]] = []
    channel.waiting = [channel.message(), channel.message()]
    queue = Queue("q", on_declared=lambda *reply: notified.append(reply))(channel)
    queue.declare()
    queue.declare(nowait=True)
    assert notified == [("q", 2, 0)]


def test_the_broker_names_a_queue_anew_in_each_life(
    client: FakeClient, channel: FakeChannel
) -> None:
    queue = Queue("", Exchange("e"), "k", channel=channel, exclusive=True)
    first = queue.declare()
    assert first == queue.name == f"amq.gen-{channel.channel_id}-1"
    assert queue.declare() == first
    assert channel.of("queue_declare")[1].arguments["queue"] == first
    assert channel.of("queue_bind")[0].arguments["queue"] == first
    again = queue(client.channel())
    assert again.declare() == first
    channel.connection.lose()
    assert queue.declare() != first
    used = queue.channel
    assert isinstance(used, FakeChannel)
    assert used.of("queue_declare")[0].arguments["queue"] == ""
    assert used.of("queue_bind")[0].arguments["queue"] == queue.name


def test_get_gives_messages_with_accepted_types(channel: FakeChannel) -> None:
    queue = Queue("q", channel=channel, no_ack=True)
    assert queue.get() is None
    channel.waiting = [channel.message(content_type="application/x-yaml"), channel.message()]
    refused = queue.get(accept=["json"])
    with pytest.raises(ContentDisallowed):
        refused.decode()
    assert queue.get(no_ack=False).payload == {"a": 1}
    assert [call.arguments["no_ack"] for call in channel.of("basic_get")] == [True, True, False]


# maybe_declare


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"durable": False}, True),
        ({"name": "r"}, True),
        ({"queue_arguments": {"x-max-length": 1}}, True),
        ({"max_priority": 3}, True),
        ({"exchange": Exchange("e", "topic")}, True),
        ({"routing_key": "l"}, True),
        ({"no_declare": True}, True),
        ({"bindings": {binding(Exchange("f"), "k")}}, True),
        ({"alias": "a"}, False),
        ({"consumer_arguments": {"x-priority": 1}}, False),
    ],
)
def test_the_key_of_a_queue_is_that_of_its_declaration(
    change: dict[str, Any], differs: bool
) -> None:
    queue = Queue("q", Exchange("e"), "k")
    assert Queue("q", Exchange("e"), "k").declaration_key() == queue.declaration_key()
    assert queue(FakeClient().channel()).declaration_key() == queue.declaration_key()
    changed = copy(queue)
    vars(changed).update(change)
    assert (changed.declaration_key() != queue.declaration_key()) is differs


def test_the_key_of_an_exchange_is_that_of_its_declaration() -> None:
    keys = {
        exchange.declaration_key()
        for exchange in (
            Exchange("e"),
            Exchange("f"),
            Exchange("e", "topic"),
            Exchange("e", durable=False),
            Exchange("e", passive=True),
            Exchange("e", arguments={"alternate-exchange": "f"}),
        )
    }
    assert len(keys) == 6
    exchange = Exchange("e")
    assert {exchange.declaration_key(), Exchange("e", delivery_mode=1).declaration_key()} <= keys
    exchange.name = "f"
    assert exchange.declaration_key() == Exchange("f").declaration_key()


def test_maybe_declare_declares_once_in_a_life(client: FakeClient, channel: FakeChannel) -> None:
    exchange = Exchange("e")
    assert maybe_declare(exchange, channel) is True
    assert maybe_declare(Exchange("e"), channel) is False
    assert channel.methods == ["exchange_declare"]
    assert exchange.declaration_key() in client.declared_entities
    channel.connection.lose()
    again = client.channel()
    assert maybe_declare(exchange, again) is True
    assert again.methods == ["exchange_declare"]


def test_maybe_declare_takes_a_connection_or_a_bound_entity(client: FakeClient) -> None:
    assert maybe_declare(Exchange("e"), client) is True
    assert maybe_declare(Exchange("f")(client)) is True
    assert client.default_channel.methods == ["exchange_declare"] * 2


@pytest.mark.parametrize(
    "entity", [Exchange("e", auto_delete=True), Queue(""), Queue("q", expires=1)]
)
def test_what_may_go_by_itself_is_declared_each_time(channel: FakeChannel, entity: Any) -> None:
    assert maybe_declare(entity(channel)) is True
    assert maybe_declare(entity(channel)) is True
    assert len(channel.calls) == 2


def test_an_entity_leaves_a_channel_that_has_no_connection(
    client: FakeClient, channel: FakeChannel
) -> None:
    closed = client.channel()
    exchange = Exchange("e")(closed)
    closed.connection = None  # as on transports that are written for kombu
    assert maybe_declare(exchange, channel, retry=True) is True
    assert exchange.channel is channel
    assert channel.methods == ["exchange_declare"]


def test_a_thousand_greenlets_cause_one_declaration(channel: FakeChannel) -> None:
    go = Event()
    channel.script["queue_declare"] = lambda: go.wait(30.0)
    declaring = [gevent.spawn(maybe_declare, Queue("q"), channel) for _ in range(1000)]
    gevent.idle()
    assert channel.methods == ["queue_declare"]
    assert not any(each.ready() for each in declaring)
    go.set()
    gevent.joinall(declaring, timeout=5.0, raise_error=True)
    assert channel.methods == ["queue_declare"]
    assert maybe_declare(Queue("q"), channel) is False


def test_killing_who_declares_does_not_affect_the_others(channel: FakeChannel) -> None:
    go = Event()
    channel.script["exchange_declare"] = lambda: go.wait(30.0)
    first = gevent.spawn(maybe_declare, Exchange("e"), channel)
    second = gevent.spawn(maybe_declare, Exchange("e"), channel)
    gevent.idle()
    first.kill()
    assert not second.ready()
    go.set()
    assert second.get(timeout=30.0) is True
    assert channel.methods == ["exchange_declare"]


def test_an_error_goes_to_all_and_is_not_remembered(
    client: FakeClient, channel: FakeChannel
) -> None:
    go = Event()

    def refuse() -> None:
        go.wait(30.0)
        raise PreconditionFailed("type differs")

    channel.script["exchange_declare"] = refuse
    declaring = [gevent.spawn(outcome, maybe_declare, Exchange("e"), channel) for _ in range(3)]
    gevent.idle()
    go.set()
    gevent.joinall(declaring, timeout=30.0)
    assert all(isinstance(each.value, PreconditionFailed) for each in declaring)
    del channel.script["exchange_declare"]
    assert maybe_declare(Exchange("e"), channel) is True


def test_maybe_declare_retries_through_the_connection(
    client: FakeClient, channel: FakeChannel
) -> None:
    def lose() -> None:
        channel.connection.lose()
        raise RecoverableConnectionError("lost")

    channel.script["exchange_declare"] = lose
    exchange = Exchange("e")(channel)
    assert maybe_declare(exchange, channel, retry=True, max_retries=2, interval_start=0) is True
    assert client.ensured[0]["max_retries"] == 2
    assert client.ensured[0]["interval_start"] == 0
    assert client.default_channel.methods == ["exchange_declare"]


def test_queue_with_dead_letters_keeps_them_in_copies() -> None:
    queue = Queue("mail", dead_letter=True, queue_arguments={"x-max-length": 5})
    expected = {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "mail.dead",
        "x-max-length": 5,
    }
    for each in (queue, copy(queue), pickle.loads(pickle.dumps(queue))):
        assert each.queue_arguments == expected
        assert each.dead_letter_queue == "mail.dead"
    assert Queue("mail", dead_letter="failed").dead_letter_queue == "failed"
    assert Queue("mail").dead_letter_queue is None
    assert "dead_letter" not in Queue("mail").as_dict()
    with pytest.raises(ValueError, match="dead_letter must be the name of a queue"):
        Queue("", dead_letter=True)


@pytest.mark.parametrize(("name", "value"), [("max_length", "x"), ("expires", [])])
def test_an_argument_that_cannot_be_converted_is_named(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name} of Queue is ") as raised:
        Queue("mail", **{name: value})
    assert repr(value) in str(raised.value)
