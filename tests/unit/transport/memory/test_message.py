"""Messages in the queues of the memory broker: waiting, or delivered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenconn.compression import compress
from greenconn.exceptions import PreconditionFailed, ResourceLocked
from greenconn.testing import ManualClock
from greenconn.transport.memory import Channel
from greenconn.transport.memory.broker import (
    Broker,
    Entry,
    HubClock,
    Message,
    Timer,
    WaitingMessages,
    size_of,
)


def test_body_is_delivered_as_it_is(channel: Channel) -> None:
    channel.queue_declare("q")
    for body in (b"x" * 1000, "y" * 1000):
        message = channel.prepare_message(body, content_encoding="binary")
        channel.basic_publish(message, "", "q")
        got = channel.basic_get("q", no_ack=True)
        assert got is not None
        assert got.body is body


def test_what_can_change_is_copied(channel: Channel) -> None:
    channel.queue_declare("q")
    body, headers, properties = bytearray(b"abc"), {"list": [1, (2,)]}, {"type": "t"}
    message = channel.prepare_message(body, headers=headers, properties=properties)
    body[0], headers["list"] = 0, []
    properties["type"] = "changed"
    channel.basic_publish(message, "", "q")
    got = channel.basic_get("q", no_ack=True)
    assert got is not None
    assert got.body == b"abc"
    assert got.headers == {"list": [1, [2]]}
    assert got.properties == {"type": "t", "priority": 0}


@pytest.mark.parametrize("body", [None, 5, {"a": 1}, ["x"]])
def test_body_of_another_kind(channel: Channel, body: Any) -> None:
    with pytest.raises(TypeError, match=type(body).__name__):
        channel.prepare_message(body)


def test_compressed_body_is_unpacked(channel: Channel) -> None:
    channel.queue_declare("q")
    for body in (compress(b"plain", "gzip")[0], b"broken"):
        message = channel.prepare_message(
            body, content_type="application/data", headers={"compression": "application/x-gzip"}
        )
        channel.basic_publish(message, "", "q")
    good, bad = channel.basic_get("q"), channel.basic_get("q")
    assert good is not None
    assert bad is not None
    assert (good.body, good.errors) == (b"plain", [])
    assert bad.errors
    with pytest.raises(Exception):  # noqa: B017  (whatever the decompressor raises)
        bad.decode()


def test_fields_that_were_set_are_not_computed(channel: Channel) -> None:
    channel.queue_declare("q")
    channel.basic_publish(channel.prepare_message("x", headers={"a": 1}), "", "q")
    message = channel.basic_get("q")
    assert message is not None
    message.headers = {"b": 2}
    assert message.headers == {"b": 2}
    assert message.properties is message.properties
    message.properties["added"] = True
    assert message.properties["added"]


def test_a_compressed_body_is_unpacked_once(channel: Channel) -> None:
    channel.queue_declare("q")
    body = compress(b"plain", "gzip")[0]
    message = channel.prepare_message(body, headers={"compression": "application/x-gzip"})
    channel.basic_publish(message, "", "q")
    got = channel.basic_get("q")
    assert got is not None
    assert got.errors == []
    errors = got.errors
    assert got.body == b"plain"
    assert got.errors is errors
    assert got.body is got.body


def test_the_interpreter_reads_slots_directly() -> None:
    # With a __getattr__ each use of an attribute takes a detour, which costs a twentieth of a message.
    assert not hasattr(Message, "__getattr__")


def test_message_has_no_other_attributes(channel: Channel) -> None:
    channel.queue_declare("q")
    channel.basic_publish(channel.prepare_message("x"), "", "q")
    message = channel.basic_get("q")
    assert message is not None
    assert "Message" in repr(message)
    with pytest.raises(AttributeError, match="colour"):
        message.colour  # type: ignore[union-attr]  # noqa: B018


@pytest.mark.parametrize("requeue", [True, False])
@pytest.mark.parametrize("multiple", [True, False])
def test_nack(broker: Broker, channel: Channel, multiple: bool, requeue: bool) -> None:
    channel.queue_declare("q")
    for n in range(3):
        channel.basic_publish(channel.prepare_message(str(n)), "", "q")
    tags = [message.delivery_tag for _ in range(3) if (message := channel.basic_get("q"))]
    channel.basic_nack(tags[1], multiple=multiple, requeue=requeue)
    waiting = [each.envelope["body"] for each in broker.queues["q"].store]
    assert waiting == ((["0", "1"] if multiple else ["1"]) if requeue else [])
    with pytest.raises(PreconditionFailed):
        channel.basic_nack(tags[1], multiple=multiple)
    channel.connection.close()
    channel.basic_nack(tags[2], multiple=multiple)


def test_locked_queue_is_not_deleted(broker: Broker, channel: Channel, open_channel: Any) -> None:
    channel.queue_declare("q", exclusive=True)
    forbidden: Callable[[Any], Any]
    for forbidden in (
        lambda other: other.queue_delete("q"),
        lambda other: other.queue_declare("q"),
        lambda other: other.queue_bind("q", "amq.direct", "k"),
        lambda other: other.basic_get("q"),
    ):
        with pytest.raises(ResourceLocked):
            forbidden(open_channel())
    with pytest.raises(ResourceLocked):
        channel.queue_declare("q")
    assert "q" in broker.queues


def test_a_timer_that_is_early_looks_again(clock: ManualClock) -> None:
    notified: list[float] = []
    timer = Timer(clock, lambda: notified.append(clock.now()))
    timer.set(clock.now() + 5)
    timer._on_time()
    assert (notified, clock.armed, timer.at) == ([], 1, 1005.0)
    clock.move(5)
    assert (notified, clock.armed, timer.at) == ([1005.0], 0, None)
    timer.set(clock.now() + 5)
    timer.set(clock.now() + 1)
    timer.stop()
    timer.stop()
    clock.move(9)
    assert len(notified) == 1


def test_hub_clock_goes_on() -> None:
    clock = HubClock()
    assert clock.now() <= clock.now()
    clock.call_later(60, print)()


def entry(
    position: int, priority: int = 0, expires_at: float | None = None, size: int = 0
) -> Entry:
    made = Entry(cast(Any, None), {}, "", "", position, expires_at, priority)
    made.size = size
    return made


def test_size_is_that_of_the_wire() -> None:
    assert [size_of(each) for each in ("", "a", "\u00e9", b"abc", None)] == [0, 1, 2, 3, 0]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 3)),
            st.tuples(st.just("take"), st.just(0)),
            st.tuples(st.just("return"), st.integers(0, 20)),
        ),
        max_size=60,
    )
)
def test_order_is_that_of_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    store = WaitingMessages(3)
    waiting: list[Entry] = []
    out: list[Entry] = []
    position = 0
    for step, number in steps:
        if step == "add":
            position += 1
            added = entry(position, number, size=position)
            store.add(added)
            waiting.append(added)
        elif step == "take" and waiting:
            waiting.sort(key=lambda each: (-each.priority, each.position))
            taken = store.take()
            assert taken is waiting.pop(0)
            out.append(taken)
        elif step == "return" and out:
            back = out.pop(number % len(out))
            store.put_back(back)
            waiting.append(back)
        waiting.sort(key=lambda each: (-each.priority, each.position))
        assert list(store) == waiting
        assert store.count == len(waiting)
        assert store.size == sum(each.size for each in waiting)


def test_only_heads_expire() -> None:
    store = WaitingMessages(1)
    late, soon, never = entry(1, 0, 20.0), entry(2, 0, 10.0), entry(3, 1)
    for each in (late, soon, never):
        store.add(each)
    assert store.next_expiry() == 20.0
    assert store.take_expired(15.0) is None
    assert store.take() is never
    assert store.take_expired(20.0) is late
    assert store.next_expiry() == 10.0
    assert store.take_expired(20.0) is soon
    assert store.take_expired(20.0) is None
    assert store.next_expiry() is None


def test_clear() -> None:
    store = WaitingMessages(2)
    for n in range(3):
        store.add(entry(n, n, size=5))
    assert store.clear() == 3
    assert (store.count, store.size, list(store)) == (0, 0, [])
    store.add(entry(9))
    assert store.take().position == 9
