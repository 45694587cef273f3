"""Replies and the calls that they answer."""

from __future__ import annotations

import pytest

from greenconn.exceptions import NotFound, RecoverableChannelError
from greenconn.green.deadline import Deadline
from greenconn.transport.amqp.calls import Call, PendingCalls
from greenconn.wire.amqp import Reply

DECLARE, DECLARE_OK = 50 << 16 | 10, 50 << 16 | 11
CONSUME, CONSUME_OK = 60 << 16 | 20, 60 << 16 | 21
CANCEL, CANCEL_OK = 60 << 16 | 30, 60 << 16 | 31
QOS, QOS_OK = 60 << 16 | 10, 60 << 16 | 11


def call(request: int, expected: int, tag: bytes | None = None) -> Call:
    """A call that waits."""
    return Call(request, frozenset((expected,)), tag=tag)


def reply(ids: int, tag: bytes = b"") -> Reply:
    """A reply of the broker."""
    return ids, b"\0\0\0\0" + bytes((len(tag),)) + tag, None, None


def pending(*calls: Call) -> PendingCalls:
    """Calls without a reply, oldest first."""
    made = PendingCalls()
    for each in calls:
        made.append(each)
    return made


def test_a_reply_is_the_oldest_calls() -> None:
    first, second = call(DECLARE, DECLARE_OK), call(DECLARE, DECLARE_OK)
    calls = pending(first, second)
    assert calls.settle(reply(DECLARE_OK))
    assert first.slot.is_filled
    assert not second.slot.is_filled


def test_a_reply_that_the_oldest_does_not_expect_is_nobodys() -> None:
    calls = pending(call(DECLARE, DECLARE_OK), call(QOS, QOS_OK))
    assert not calls.settle(reply(QOS_OK))
    assert not pending().settle(reply(QOS_OK))
    assert len(calls) == 2


def test_what_a_queue_replies_may_be_overtaken() -> None:
    consume, cancel = call(CONSUME, CONSUME_OK, b"a"), call(CANCEL, CANCEL_OK, b"b")
    qos, declare = call(QOS, QOS_OK), call(DECLARE, DECLARE_OK)
    calls = pending(consume, cancel, qos, declare)
    assert not calls.settle(reply(DECLARE_OK))
    assert calls.settle(reply(QOS_OK))
    assert calls.settle(reply(DECLARE_OK))
    assert calls.settle(reply(CANCEL_OK, b"b"))
    assert calls.settle(reply(CONSUME_OK, b"a"))
    assert qos.slot.is_filled
    assert not len(calls)


def test_each_consumer_gets_its_own_answer() -> None:
    first, second = call(CONSUME, CONSUME_OK, b"a"), call(CONSUME, CONSUME_OK, b"b")
    calls = pending(first, second)
    assert calls.settle(reply(CONSUME_OK, b"b"))
    assert not first.slot.is_filled
    assert second.slot.is_filled
    assert not calls.settle(reply(CONSUME_OK, b"c"))


def test_the_blamed_call_is_found_behind_what_a_queue_replies() -> None:
    consume, declare = call(CONSUME, CONSUME_OK, b"a"), call(DECLARE, DECLARE_OK)
    later = call(DECLARE, DECLARE_OK)
    cause = NotFound("no queue")
    assert pending(consume, declare, later).fail(cause, DECLARE)
    with pytest.raises(NotFound):
        declare.slot.wait(Deadline(0))
    for bystander in (consume, later):
        with pytest.raises(RecoverableChannelError, match="another call"):
            bystander.slot.wait(Deadline(0))


def test_nobody_is_blamed_for_what_the_oldest_did_not_send() -> None:
    qos, declare = call(QOS, QOS_OK), call(DECLARE, DECLARE_OK)
    assert not pending(qos, declare).fail(NotFound("no queue"), DECLARE)
    for each in (qos, declare):
        with pytest.raises(RecoverableChannelError):
            each.slot.wait(Deadline(0))


def test_what_leads_is_blamed_only_while_it_is_the_oldest() -> None:
    first, second, consume = (call(QOS, QOS_OK) for _ in range(3))
    first.leads = second.leads = True
    calls = pending(first, second, consume)
    assert calls.are_led_by(QOS)
    assert not calls.are_led_by(DECLARE)
    calls.settle(reply(QOS_OK))
    assert calls.are_led_by(QOS)
    calls.settle(reply(QOS_OK))
    assert not calls.are_led_by(QOS)  # the third one has a caller of its own
    assert not pending().are_led_by(QOS)
