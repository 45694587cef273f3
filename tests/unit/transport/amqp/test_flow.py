"""Flow control: the bytes that wait for consumers pause the reader, and a blocked broker publishers."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Listener
from greenconn.green.deadline import Deadline
from greenconn.green.inbox import Inbox
from greenconn.listeners import BlockedEvent, UnblockedEvent
from greenconn.options import AmqpOptions
from greenconn.transport.amqp.link import PAUSE_ABOVE, RESUME_BELOW, FlowControl, InboxBudget
from tests.fix_wires import until


class Reader:
    """Notes when it is paused and resumed."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.budget = InboxBudget(
            lambda: self.calls.append("pause"), lambda: self.calls.append("resume")
        )


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_reading_pauses_above_the_limit_and_resumes_below_the_lower_one(reader: Reader) -> None:
    budget = reader.budget
    budget.hold(PAUSE_ABOVE)
    assert reader.calls == []
    budget.hold(1)
    budget.hold(1)
    assert reader.calls == ["pause"]
    budget.release(PAUSE_ABOVE + 2 - RESUME_BELOW)
    assert reader.calls == ["pause"]
    budget.release(1)
    assert reader.calls == ["pause", "resume"]


def test_a_greenlet_that_waits_for_a_reply_keeps_the_reader_going(reader: Reader) -> None:
    budget = reader.budget
    budget.begin_wait()
    budget.hold(PAUSE_ABOVE + 1)
    assert reader.calls == []
    budget.end_wait()
    budget.hold(1)
    assert reader.calls == ["pause"]
    budget.begin_wait()
    assert reader.calls == ["pause", "resume"]
    budget.end_wait()


def test_an_ended_budget_pauses_nothing(reader: Reader) -> None:
    reader.budget.end()
    reader.budget.end()
    reader.budget.hold(PAUSE_ABOVE + 1)
    assert reader.calls == []


def test_wait_idle_returns_when_the_last_reply_has_come(reader: Reader) -> None:
    budget = reader.budget
    budget.wait_idle(Deadline(0))
    budget.begin_wait()
    budget.begin_wait()
    with pytest.raises(TimeoutError):
        budget.wait_idle(Deadline(0))
    waiting = gevent.spawn(budget.wait_idle, Deadline(10))
    gevent.sleep(0)
    budget.end_wait()
    assert not waiting.ready()
    budget.end_wait()
    waiting.get(timeout=10)


def test_hooks_are_called_once_for_a_block_and_for_its_end() -> None:
    called: list[Any] = []
    options = AmqpOptions(on_blocked=called.append, on_unblocked=lambda: called.append(None))
    events: Inbox[Any] = Inbox()
    flow = FlowControl("amqp://host//", options, events)
    reasons = []
    flow.block("memory")
    flow.block("memory again")
    flow.block("channel.flow", 3)
    reasons.append(flow.blocked)
    flow.unblock()
    reasons.append(flow.blocked)
    flow.unblock(3)
    flow.unblock(3)
    reasons.append(flow.blocked)
    assert reasons == ["memory", "channel.flow", None]
    while len(events):
        function, argument = events.get(Deadline(0))
        function(argument)
    assert called == ["memory", None]
    flow.end()
    flow.end()


def test_listeners_are_told_of_a_block_and_of_its_end() -> None:
    class Alarms(Listener):
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def on_blocked(self, event: BlockedEvent) -> None:
            self.heard.append((event.connection, event.reason))

        def on_unblocked(self, event: UnblockedEvent) -> None:
            assert event.duration >= 0.0
            self.heard.append(event.connection)

    alarms = Alarms()
    greenconn.add_listener(alarms)
    try:
        for end in ("unblock", "end"):
            flow = FlowControl("amqp://host//", AmqpOptions(), Inbox())
            flow.block("memory")
            flow.block("channel.flow", 3)
            flow.unblock(3)
            getattr(flow, end)()
            flow.end()
        until(lambda: len(alarms.heard) == 4, 30.0)
    finally:
        greenconn.remove_listener(alarms)
    assert alarms.heard == [("amqp://host//", "memory"), "amqp://host//"] * 2
