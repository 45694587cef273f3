"""Exchanges, queues and bindings that programs share, as one channel declares and deletes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest

from greenconn.broker.channel import StoreChannel
from greenconn.broker.errors import Method, refused
from greenconn.broker.link import StoreLink
from greenconn.broker.queues import Declaration, QueueStore
from greenconn.exceptions import (
    AccessRefused,
    ConsumerCancelled,
    NotFound,
    PreconditionFailed,
    ResourceLocked,
)
from tests.unit.broker.conftest import Opener
from tests.unit.broker.fake_store import FakeBroker
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import channel_to, publish


@pytest.fixture
def channel(connect: Opener) -> StoreChannel[StoreLink]:
    """A channel."""
    return channel_to(connect)


def anew(channel: StoreChannel[StoreLink]) -> StoreChannel[StoreLink]:
    """Return another channel of the same connection."""
    return channel.connection.transport.create_channel(channel.connection)


def test_a_queue_is_declared_as_it_was_said(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    arguments = {"x-message-ttl": 5}
    assert channel.queue_declare("q", durable=True, arguments=arguments) == ("q", 0, 0)
    assert channel.queue_declare("mine", exclusive=True, auto_delete=True) == ("mine", 0, 0)
    assert fake_broker.queues == {
        "q": Declaration(durable=True, arguments=arguments),
        "mine": Declaration(auto_delete=True, owner=channel.connection.owner),
    }
    publish(channel, "x")
    assert channel.queue_declare("q", passive=True) == ("q", 1, 0)
    assert channel.queue_declare("q", durable=True, arguments=arguments) == ("q", 1, 0)


def test_a_queue_without_a_name_gets_one(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    name = channel.queue_declare().queue
    assert name.startswith("amq.gen-")
    assert list(fake_broker.queues) == [name]
    assert channel.queue_declare().queue != name
    channel.queue_declare(name)
    channel.queue_bind("", "amq.direct", "key")  # the last one that was declared
    assert list(channel.list_bindings()) == [(name, "amq.direct", "key")]


def test_a_passive_declaration_makes_nothing(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    with pytest.raises(NotFound):
        channel.queue_declare("q", passive=True)
    with pytest.raises(NotFound):
        anew(channel).exchange_declare("x", passive=True)
    assert (fake_broker.queues, fake_broker.exchanges) == ({}, {})


def test_what_was_settled_before_is_counted(channel: StoreChannel[StoreLink]) -> None:
    channel.queue_declare("q")
    for number in range(3):
        publish(channel, f"{number}")
    for _ in range(2):
        message = channel.basic_get("q")
        assert message is not None
        channel.basic_reject(message.delivery_tag, requeue=True)
        assert channel.queue_declare("q", passive=True).message_count == 3
    message = channel.basic_get("q")
    assert message is not None
    channel.basic_reject(message.delivery_tag, requeue=True)
    assert channel.queue_purge("q") == 3
    publish(channel, "x")
    message = channel.basic_get("q")
    assert message is not None
    channel.basic_reject(message.delivery_tag, requeue=True)
    assert channel.queue_delete("q") == 1


def test_an_exchange_is_known_to_others(
    channel: StoreChannel[StoreLink], connect: Opener, fake_broker: FakeBroker
) -> None:
    other = channel_to(connect)
    channel.exchange_declare("x", "topic", durable=True, auto_delete=True)
    assert fake_broker.exchanges["x"] == {
        "type": "topic",
        "durable": True,
        "auto_delete": True,
        "arguments": {},
    }
    other.exchange_declare("x", passive=True)
    other.exchange_declare("x", "topic", durable=True, auto_delete=True)
    with pytest.raises(PreconditionFailed):
        other.exchange_declare("x", "direct")


def test_an_exchange_that_the_broker_has_lost_is_declared_again(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    channel.exchange_declare("x")
    channel.queue_declare("q")
    channel.queue_bind("q", "x", "key")
    fake_broker.exchanges.clear()
    fake_broker.rows.clear()
    channel.exchange_declare("x")
    channel.queue_bind("q", "x", "key")
    assert set(fake_broker.exchanges) == {"x"}
    assert [row.queue for row in fake_broker.rows["x"]] == ["q"]


def test_who_declares_an_exchange_of_a_foreign_program_says_what_it_is(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    fake_broker.exchanges["x"] = {"type": "direct", "is_guess": True}
    fake_broker.rows["x"] = ()
    channel.exchange_declare("x", passive=True)
    channel.exchange_declare("x", "topic")
    assert channel.state.exchanges["x"].type == "topic"


def test_bindings_need_their_ends(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    channel.exchange_declare("x")
    channel.queue_declare("q")
    calls: list[Callable[[StoreChannel[StoreLink]], Any]] = [
        lambda each: each.queue_bind("none", "x"),
        lambda each: each.queue_bind("q", "none"),
        lambda each: each.exchange_bind("none", "x"),
        lambda each: each.exchange_bind("x", "none"),
    ]
    for bind in calls:
        with pytest.raises(NotFound):
            bind(anew(channel))
    assert not fake_broker.rows["x"]
    channel.queue_bind("q", "x", "key")
    channel.exchange_bind("x", "amq.topic", "key")
    assert [row.queue for row in fake_broker.rows["x"]] == ["q"]
    channel.queue_unbind("q", "x", "key")
    assert fake_broker.rows["x"] == ()
    channel.exchange_unbind("x", "amq.topic", "key")
    assert fake_broker.rows["amq.topic"] == ()


def test_an_exchange_in_use_may_be_spared(
    channel: StoreChannel[StoreLink], connect: Opener, fake_broker: FakeBroker
) -> None:
    channel.exchange_declare("x")
    channel.queue_declare("q")
    channel.queue_bind("q", "x", "key")
    other = channel_to(connect)
    other.exchange_declare("x", passive=True)
    other.state.exchanges["x"].bindings.clear()  # as in a process that was not told of it
    with pytest.raises(PreconditionFailed):
        other.exchange_delete("x", if_unused=True)
    assert "x" in fake_broker.exchanges
    channel.exchange_delete("x")
    channel.exchange_delete("x")  # again: no error
    channel.exchange_delete("x", if_unused=True)
    assert fake_broker.exchanges == {}
    with pytest.raises(NotFound):
        channel.exchange_declare("x", passive=True)
    channel = anew(channel)
    channel.exchange_declare("y")
    channel.exchange_delete("y", if_unused=True)
    assert fake_broker.exchanges == {}
    with pytest.raises(AccessRefused):
        channel.exchange_delete("amq.direct", if_unused=True)


def test_a_queue_in_use_may_be_spared(channel: StoreChannel[StoreLink], connect: Opener) -> None:
    channel.queue_declare("q")
    publish(channel, "x")
    options: list[dict[str, Any]] = [{"if_empty": True}, {"if_unused": True, "if_empty": True}]
    for each in options:
        with pytest.raises(PreconditionFailed):
            anew(channel).queue_delete("q", **each)
    channel.basic_consume("q", sink=Sink())
    for deleter in (anew(channel), channel_to(connect)):
        with pytest.raises(PreconditionFailed):
            deleter.queue_delete("q", if_unused=True)
    channel.basic_cancel(next(iter(channel.consumers)))
    assert channel.queue_delete("q", if_unused=True) == 0
    assert channel.queue_delete("q", if_unused=True, if_empty=True) == 0


def test_a_queue_of_another_connection_is_left_alone(
    channel: StoreChannel[StoreLink], connect: Opener, fake_broker: FakeBroker
) -> None:
    channel.queue_declare("q", exclusive=True)
    other = channel_to(connect)
    calls: list[Callable[[StoreChannel[StoreLink]], Any]] = [
        lambda each: each.queue_delete("q"),
        lambda each: each.queue_purge("q"),
        lambda each: each.queue_declare("q", passive=True),
        lambda each: each.queue_bind("q", "amq.direct"),
    ]
    for call in calls:
        with pytest.raises(ResourceLocked):
            call(anew(other))
    assert set(fake_broker.queues) == {"q"}


def test_the_bindings_of_a_queue_that_is_gone_go(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    channel.exchange_declare("x")
    channel.queue_declare("q")
    channel.queue_bind("q", "x", "key")
    del fake_broker.queues["q"]
    assert channel.queue_delete("q") == 0
    assert fake_broker.rows["x"] == ()
    assert list(channel.list_bindings()) == []


def test_what_was_settled_counts_also_where_the_store_is_slow(
    channel: StoreChannel[StoreLink], fake_broker: FakeBroker
) -> None:
    channel.queue_declare("q")

    def before(method: str, argument: Any) -> None:
        if method == "settle":
            for _ in range(10):
                gevent.sleep(0)

    fake_broker.before = before
    calls: list[tuple[Callable[[], Any], Any]] = [
        (lambda: channel.queue_declare("q", passive=True).message_count, 1),
        (lambda: channel.queue_purge("q"), 1),
        (lambda: channel.queue_delete("q"), 1),
    ]
    for call, count in calls:
        publish(channel, "x")
        message = channel.basic_get("q")
        assert message is not None
        channel.basic_reject(message.delivery_tag, requeue=True)
        assert call() == count
        channel.queue_declare("q")
        channel.queue_purge("q")


def test_a_deleted_queue_takes_its_consumers_along(channel: StoreChannel[StoreLink]) -> None:
    channel.queue_declare("q")
    channel.basic_consume("q", sink=(sink := Sink()))
    assert channel.queue_delete("q") == 0
    assert isinstance(sink.lost[0], ConsumerCancelled)
    assert channel.consumers == {}


def test_the_log_warns_of_arguments_of_a_queue_that_do_nothing(
    channel: StoreChannel[StoreLink], caplog: pytest.LogCaptureFixture
) -> None:
    channel.queue_declare("q", arguments={"x-max-age": "1D", "x-message-ttl": 5})
    (record,) = (each for each in caplog.records if "x-max-age" in each.getMessage())
    assert "queue 'q'" in record.getMessage()
    assert "x-message-ttl" not in record.getMessage()


def test_queues_that_exist(channel: StoreChannel[StoreLink], fake_broker: FakeBroker) -> None:
    channel.queue_declare("q")
    fake_broker.queues["p"] = Declaration()
    assert channel.connection.existing(["p", "none", "q"]) == ["p", "q"]


def test_a_reserved_name_is_not_deleted(
    channel: StoreChannel[StoreLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_name(self: Any, name: str, method: Method) -> None:
        raise refused(f"queue name {name!r} is reserved", method)

    monkeypatch.setattr(QueueStore, "check_name", check_name)
    with pytest.raises(AccessRefused, match="'mine' is reserved"):
        channel.queue_delete("mine")
