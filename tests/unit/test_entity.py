"""Exchanges, queues and bindings, and what they ask of a channel."""

from __future__ import annotations

import pickle
from copy import copy
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.entity import (
    Exchange,
    Queue,
    binding,
    maybe_declare,
    maybe_delivery_mode,
    pretty_bindings,
)
from greenconn.exceptions import (
    ChannelError,
    ContentDisallowed,
    NotBoundError,
    OperationalError,
    PreconditionFailed,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from tests.unit.fake_channel import FakeChannel, FakeClient, outcome


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def channel(client: FakeClient) -> FakeChannel:
    return client.channel()


# Exchanges


def test_exchange_defaults() -> None:
    exchange = Exchange()
    assert exchange.as_dict() == {
        "name": "",
        "type": "direct",
        "arguments": None,
        "durable": True,
        "passive": False,
        "auto_delete": False,
        "delivery_mode": None,
        "no_declare": False,
    }
    assert str(exchange) == "Exchange ''(direct)"


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout", "headers"])
def test_exchange_is_declared(channel: FakeChannel, kind: str) -> None:
    exchange = Exchange("e", kind, channel, durable=False, auto_delete=True, arguments={"x": 1})
    exchange.declare(nowait=True)
    assert channel.of("exchange_declare")[0].arguments == {
        "exchange": "e",
        "type": kind,
        "durable": False,
        "auto_delete": True,
        "arguments": {"x": 1},
        "nowait": True,
        "passive": False,
    }


@pytest.mark.parametrize(
    "exchange", [Exchange(""), Exchange("amq.topic", "topic"), Exchange("e", no_declare=True)]
)
def test_what_the_broker_has_is_not_declared(channel: FakeChannel, exchange: Exchange) -> None:
    exchange(channel).declare()
    assert channel.calls == []


def test_passive_comes_from_the_exchange_or_the_call(channel: FakeChannel) -> None:
    exchange = Exchange("e", channel=channel, passive=True)
    exchange.declare()
    exchange.declare(passive=False)
    assert [call.arguments["passive"] for call in channel.calls] == [True, False]


def test_exchange_on_another_channel(client: FakeClient, channel: FakeChannel) -> None:
    other = client.channel()
    exchange = Exchange("e", channel=channel)
    exchange.declare(channel=other)
    exchange.bind_to("s", channel=other)
    exchange.unbind_from("s", channel=other)
    assert channel.calls == []
    assert other.methods == ["exchange_declare", "exchange_bind", "exchange_unbind"]


def test_exchanges_are_bound_to_each_other(channel: FakeChannel) -> None:
    exchange = Exchange("e", channel=channel)
    exchange.bind_to(Exchange("source"), "key", arguments={"a": 1}, nowait=True)
    exchange.unbind_from("source", "key", arguments={"a": 1})
    assert channel.calls[0].arguments == {
        "destination": "e",
        "source": "source",
        "routing_key": "key",
        "nowait": True,
        "arguments": {"a": 1},
    }
    assert channel.calls[1].arguments == {
        "destination": "e",
        "source": "source",
        "routing_key": "key",
        "nowait": False,
        "arguments": {"a": 1},
    }


def test_exchange_makes_and_publishes_messages(channel: FakeChannel) -> None:
    exchange = Exchange("e", channel=channel, delivery_mode="transient")
    properties = {"app_id": "me"}
    message = exchange.Message("text", properties=properties, headers={"h": 1})
    assert message["content_encoding"] == "utf-8"
    assert message["properties"] == {"app_id": "me", "delivery_mode": 1}
    assert properties == {"app_id": "me"}
    assert exchange.Message(b"x", delivery_mode=2)["properties"] == {"delivery_mode": 2}
    exchange.publish(message, "key", mandatory=True)
    exchange.publish("text", exchange="other")
    first, second = channel.of("basic_publish")
    assert first.arguments["message"] is message
    assert (first.arguments["exchange"], first.arguments["routing_key"]) == ("e", "key")
    assert first.arguments["mandatory"] is True
    assert (second.arguments["exchange"], second.arguments["routing_key"]) == ("other", "")
    assert second.arguments["message"]["body"] == "text"


def test_exchange_is_deleted(channel: FakeChannel) -> None:
    Exchange("e", channel=channel).delete(if_unused=True)
    assert channel.calls[0].arguments == {"exchange": "e", "if_unused": True, "nowait": False}


def test_delivery_modes() -> None:
    assert maybe_delivery_mode(None) == 2
    assert maybe_delivery_mode("transient") == 1
    assert maybe_delivery_mode(1) == 1
    assert maybe_delivery_mode(None, default=1) == 1
    assert maybe_delivery_mode("low", modes={"low": 7}) == 7
    with pytest.raises(KeyError):
        maybe_delivery_mode("lost")
    assert Exchange("e", delivery_mode="persistent").delivery_mode == 2


def test_exchange_equality_and_hash() -> None:
    assert Exchange("e") == Exchange("e", "direct")
    assert Exchange("e") != Exchange("e", "topic")
    assert Exchange("e") != Exchange("e", durable=False)
    assert Exchange("e").__eq__(1) is NotImplemented
    assert hash(Exchange("e")) == hash(Exchange("e", "topic"))
    assert len({Exchange("e"), Exchange("e"), Exchange("f")}) == 2


def test_exchange_declaration_can_be_cached_unless_it_goes_by_itself() -> None:
    assert Exchange("e").can_cache_declaration
    assert not Exchange("e", auto_delete=True).can_cache_declaration


def test_exchange_repr(channel: FakeChannel) -> None:
    exchange = Exchange("e", "topic")
    assert repr(exchange) == "<unbound Exchange e(topic)>"
    assert repr(exchange(channel)) == f"<Exchange e(topic) bound to chan:{channel.channel_id}>"


def test_exchange_pickles_and_copies(channel: FakeChannel) -> None:
    exchange = Exchange("e", "topic", channel, arguments={"a": 1}, durable=False)
    assert pickle.loads(pickle.dumps(exchange)) == copy(exchange) == exchange


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


def test_binding_to_nothing_declares_nothing(channel: FakeChannel) -> None:
    binding().declare(channel)
    binding(Exchange("")).declare(channel)
    assert channel.calls == []


def test_binding_shows_itself() -> None:
    each = binding(Exchange("e"), "k")
    assert (str(each), repr(each)) == ("e->k", "<binding: e->k>")
    assert pretty_bindings([each, each]) == "[e->k, e->k]"


# Queues


def test_queue_defaults() -> None:
    queue = Queue()
    assert queue.exchange == Exchange("")
    details = queue.as_dict()
    del details["exchange"]
    assert details == {
        "name": "",
        "routing_key": "",
        "queue_arguments": None,
        "binding_arguments": None,
        "consumer_arguments": None,
        "durable": True,
        "exclusive": False,
        "auto_delete": False,
        "no_ack": False,
        "alias": None,
        "bindings": [],
        "no_declare": None,
        "expires": None,
        "message_ttl": None,
        "max_length": None,
        "max_length_bytes": None,
        "max_priority": None,
    }


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


def test_queue_of_the_default_exchange_is_not_bound(channel: FakeChannel) -> None:
    Queue("q", channel=channel).declare()
    assert channel.methods == ["queue_declare"]


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


def test_queue_that_must_not_be_declared(channel: FakeChannel) -> None:
    queue = Queue("q", Exchange("e"), channel=channel, no_declare=True)
    assert queue.declare() == "q"
    assert channel.calls == []


def test_queue_is_declared_on_another_channel(client: FakeClient, channel: FakeChannel) -> None:
    queue = Queue("q", [Exchange("e").binding("k")])
    queue.declare(channel=channel)
    assert channel.methods == ["queue_declare", "exchange_declare", "queue_bind"]
    with pytest.raises(NotBoundError):
        queue.declare()


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


def test_passive_declaration_asks_for_the_name(client: FakeClient, channel: FakeChannel) -> None:
    queue = Queue("", channel=channel)
    queue.declare()
    name = queue.name
    channel.connection.lose()
    queue.queue_declare(passive=True)
    used = queue.channel
    assert isinstance(used, FakeChannel)
    assert used.calls[0].arguments["queue"] == name
    assert used.calls[0].arguments["passive"] is True


def test_queue_is_bound_and_unbound(channel: FakeChannel) -> None:
    queue = Queue("q", Exchange("e"), "k", channel=channel, binding_arguments={"b": 1})
    queue.queue_bind()
    queue.queue_unbind({"u": 1})
    queue.bind_to("other", "x")
    queue.unbind_from("other", "x")
    queue.unbind_from(Exchange("third"))
    assert [
        (call.method, call.arguments["exchange"], call.arguments["routing_key"])
        for call in channel.calls
    ] == [
        ("queue_bind", "e", "k"),
        ("queue_unbind", "e", "k"),
        ("queue_bind", "other", "x"),
        ("queue_unbind", "other", "x"),
        ("queue_unbind", "third", ""),
    ]
    assert channel.calls[1].arguments["arguments"] == {"u": 1}


def test_get_gives_messages_with_accepted_types(channel: FakeChannel) -> None:
    queue = Queue("q", channel=channel, no_ack=True)
    assert queue.get() is None
    channel.waiting = [channel.message(content_type="application/x-yaml"), channel.message()]
    refused = queue.get(accept=["json"])
    with pytest.raises(ContentDisallowed):
        refused.decode()
    assert queue.get(no_ack=False).payload == {"a": 1}
    assert [call.arguments["no_ack"] for call in channel.of("basic_get")] == [True, True, False]


def test_get_raises_what_unpacking_found(channel: FakeChannel) -> None:
    channel.waiting = [channel.message(b"no", headers={"compression": "application/x-gzip"})]
    with pytest.raises(Exception, match="gzip"):
        Queue("q", channel=channel).get()


def test_consume_cancel_purge_delete(channel: FakeChannel) -> None:
    queue = Queue("q", channel=channel, consumer_arguments={"x-priority": 1}, no_ack=True)
    queue.consume("tag", callback=print, on_cancel=len)
    queue.consume("other", no_ack=False, nowait=True)
    queue.cancel("tag")
    assert queue.purge() == 3
    assert queue.delete(if_unused=True, if_empty=True, nowait=True) == 2
    assert channel.calls[0].arguments == {
        "queue": "q",
        "no_ack": True,
        "consumer_tag": "tag",
        "callback": print,
        "nowait": False,
        "arguments": {"x-priority": 1},
        "on_cancel": len,
    }
    assert channel.calls[1].arguments["no_ack"] is False
    assert channel.calls[2].arguments["consumer_tag"] == "tag"
    assert channel.calls[4].arguments == {
        "queue": "q",
        "if_unused": True,
        "if_empty": True,
        "nowait": True,
    }


def test_exchange_of_a_bound_queue_is_bound_too(client: FakeClient, channel: FakeChannel) -> None:
    queue = Queue("q", Exchange("e"))(channel)
    assert queue.exchange is not None
    assert queue.exchange.channel is channel
    other = client.channel()
    queue.revive(other)
    assert queue.exchange.channel is other
    lazily = Queue("q", Exchange("e"))(FakeClient())
    assert lazily.exchange is not None
    assert lazily.exchange.channel is lazily.channel


def test_exclusive_implies_auto_delete() -> None:
    assert Queue("q", exclusive=True).auto_delete
    assert not Queue("q").auto_delete


def test_queue_exchange_may_be_a_name() -> None:
    assert Queue("q", "e").exchange == Exchange("e")


def test_queue_declaration_can_be_cached_unless_it_goes_by_itself() -> None:
    assert Queue("q").can_cache_declaration
    assert not Queue("q", auto_delete=True).can_cache_declaration
    assert not Queue("q", queue_arguments={"x-expires": 1}).can_cache_declaration
    assert not Queue("q", expires=10).can_cache_declaration


def test_queue_equality_and_hash() -> None:
    exchange = Exchange("e")
    assert Queue("q", exchange, "k") == Queue("q", exchange, "k")
    assert Queue("q", exchange, "k") != Queue("q", exchange, "l")
    assert Queue("q") != Queue("q", durable=False)
    assert Queue("q").__eq__("q") is NotImplemented
    assert hash(Queue("q")) == hash(Queue("q", exchange))
    assert hash(Queue("q")) != hash(Exchange("q"))


def test_queue_pickles_and_copies(channel: FakeChannel) -> None:
    queue = Queue("q", Exchange("e"), "k", channel=channel, max_length=3, on_declared=print)
    for again in (pickle.loads(pickle.dumps(queue)), copy(queue)):
        assert again == queue
        assert again.max_length == 3
        assert again.on_declared is None
    assert queue(channel).on_declared is print


def test_queue_repr(channel: FakeChannel) -> None:
    queue = Queue("q", Exchange("e"), "k")
    assert repr(queue) == "<unbound Queue q -> <unbound Exchange e(direct)> -> k>"
    bound = repr(queue(channel))
    assert bound.startswith("<Queue q -> <Exchange e(direct) bound to chan:")
    several = Queue("q", [Exchange("e").binding("k")])
    assert repr(several) == "<unbound Queue q -> [e->k]>"


def test_from_dict() -> None:
    queue = Queue.from_dict(
        "q",
        exchange="e",
        exchange_type="topic",
        exchange_durable=False,
        exchange_auto_delete=True,
        exchange_arguments={"a": 1},
        delivery_mode="transient",
        binding_key="k",
        durable=True,
        queue_auto_delete=False,
        auto_delete=True,
        expires=3,
        queue_arguments={"x": 1},
    )
    assert queue.exchange == Exchange(
        "e", "topic", durable=False, auto_delete=True, arguments={"a": 1}, delivery_mode=1
    )
    assert (queue.name, queue.routing_key, queue.durable, queue.auto_delete) == (
        "q",
        "k",
        True,
        False,
    )
    assert (queue.expires, queue.queue_arguments) == (3.0, {"x": 1})
    assert Queue.from_dict("q", routing_key="r").routing_key == "r"


def test_as_dict_recurses_into_bindings() -> None:
    queue = Queue("q", [Exchange("e").binding("k")])
    details = queue.as_dict(recurse=True)
    assert details["bindings"][0]["exchange"]["name"] == "e"
    assert details["bindings"][0]["routing_key"] == "k"
    assert Queue("q").as_dict(recurse=True)["exchange"]["name"] == ""


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


def test_maybe_declare_names_the_queue_that_was_given(channel: FakeChannel) -> None:
    queue = Queue("")
    maybe_declare(queue, channel)
    assert queue.name.startswith("amq.gen")


def test_maybe_declare_needs_a_channel(channel: FakeChannel) -> None:
    with pytest.raises(ChannelError, match="no channel was given"):
        maybe_declare(Exchange("e"))
    with pytest.raises(ChannelError):
        maybe_declare(Exchange("e"), retry=True)
    channel.connection = None
    for retry in (False, True):
        with pytest.raises(RecoverableConnectionError):
            maybe_declare(Exchange("e"), channel, retry=retry)


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


def test_anothers_closed_channel_is_not_ones_own(client: FakeClient, channel: FakeChannel) -> None:
    go = Event()
    other = client.channel()

    def be_closed() -> None:
        go.wait(30.0)
        raise RecoverableChannelError("closed by something else")

    channel.script["exchange_declare"] = be_closed
    first = gevent.spawn(outcome, maybe_declare, Exchange("e"), channel)
    gevent.idle()
    second = gevent.spawn(outcome, maybe_declare, Exchange("e"), other)
    gevent.idle()
    assert other.calls == []
    go.set()
    gevent.joinall([first, second], timeout=30.0)
    assert isinstance(first.value, RecoverableChannelError)
    assert second.value is True
    assert other.methods == ["exchange_declare"]


def test_a_declaration_of_a_life_that_ended_is_not_remembered(
    client: FakeClient, channel: FakeChannel
) -> None:
    channel.script["exchange_declare"] = channel.connection.lose
    maybe_declare(Exchange("e"), channel)
    assert client.declared_entities == set()


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


def test_maybe_declare_without_single_flight(client: FakeClient, channel: FakeChannel) -> None:
    del client.declare_flight
    assert maybe_declare(Exchange("e"), channel) is True
    assert maybe_declare(Exchange("e"), channel) is False


def test_a_killed_flight_is_an_operational_error(channel: FakeChannel) -> None:
    def kill() -> None:
        raise gevent.GreenletExit

    channel.script["exchange_declare"] = kill
    with pytest.raises(OperationalError):
        maybe_declare(Exchange("e"), channel)


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
