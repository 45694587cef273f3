"""Confirms against a broker that answers in any order, singly or with ``multiple``."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from greenconn.transport.amqp.publishing import ConfirmSequencer, PendingConfirm


def publish(
    routing_key: str = "key",
    *,
    exchange: str = "",
    mandatory: bool = True,
    properties: bytes = b"\0\0",
    body: bytes = b"body",
) -> PendingConfirm:
    link: Any = None
    return PendingConfirm(link, exchange, routing_key, mandatory, properties, body)


@dataclass
class Sent:
    """A publish as the broker sees it."""

    tag: int
    publish: PendingConfirm | None
    answered: bool = False


@dataclass
class Broker:
    """It counts by itself, and answers each count once."""

    sent: list[Sent] = field(default_factory=list)

    @property
    def unanswered(self) -> list[Sent]:
        return [each for each in self.sent if not each.answered]


class ConfirmsMachine(RuleBasedStateMachine):
    """Publishes, some of which nobody waits for, and answers."""

    def __init__(self) -> None:
        super().__init__()
        self.sequencer: ConfirmSequencer = ConfirmSequencer()
        self.broker = Broker()

    @rule()
    def await_one(self) -> None:
        one = publish()
        self.broker.sent.append(Sent(len(self.broker.sent) + 1, one))
        assert self.sequencer.expect(one) == self.sequencer.last == len(self.broker.sent)

    @rule()
    def send_one(self) -> None:
        self.broker.sent.append(Sent(len(self.broker.sent) + 1, None))
        self.sequencer.skip()
        assert self.sequencer.last == len(self.broker.sent)

    @precondition(lambda self: self.broker.unanswered)
    @rule(choice=st.integers(0, 1000), multiple=st.booleans())
    def answer(self, choice: int, multiple: bool) -> None:
        left = self.broker.unanswered
        chosen = left[choice % len(left)]
        meant = [each for each in left if each.tag <= chosen.tag] if multiple else [chosen]
        for each in meant:
            each.answered = True
        expected = [each.publish for each in meant if each.publish is not None]
        assert self.sequencer.settle(chosen.tag, multiple) == expected
        assert self.sequencer.settle(chosen.tag, multiple) == []

    @rule()
    def answer_all(self) -> None:
        expected = [each.publish for each in self.broker.unanswered if each.publish is not None]
        for each in self.broker.sent:
            each.answered = True
        assert self.sequencer.settle(0, True) == expected
        assert not self.sequencer.outstanding

    @rule()
    def lose_the_channel(self) -> None:
        expected = [each.publish for each in self.broker.unanswered if each.publish is not None]
        assert self.sequencer.give_up() == expected
        assert self.sequencer.give_up() == []
        self.sequencer = ConfirmSequencer()
        self.broker = Broker()


def test_each_publish_gets_its_own_confirm_once() -> None:
    run_state_machine_as_test(ConfirmsMachine, settings=settings(stateful_step_count=60))


def sequencer(*publishes: PendingConfirm) -> ConfirmSequencer:
    made: ConfirmSequencer = ConfirmSequencer()
    for each in publishes:
        made.expect(each)
    return made


def test_a_return_is_matched_to_the_oldest_alike() -> None:
    other, first, second = publish("other"), publish(), publish()
    confirms = sequencer(other, first, second)
    for expected in (first, second):
        found = confirms.match_return("", "key", b"\0\0", b"body")
        assert found is expected
        found.returned = (312, "NO_ROUTE")
    assert confirms.match_return("", "key", b"\0\0", b"body") is None


def test_properties_and_body_distinguish_publishes_to_one_key() -> None:
    by_body, by_block, both = publish(body=b"1"), publish(properties=b"2"), publish()
    confirms = sequencer(by_body, by_block, both)
    assert confirms.match_return("", "key", b"\0\0", b"body") is both
    assert confirms.match_return("", "key", b"2", b"body") is by_block
    assert confirms.match_return("", "key", b"\0\0", b"1") is by_body


def test_a_return_whose_headers_the_broker_changed_goes_to_the_oldest_of_its_key() -> None:
    elsewhere, first, second = publish(exchange="x"), publish(body=b"1"), publish(body=b"2")
    confirms = sequencer(elsewhere, first, second)
    assert confirms.match_return("", "key", b"without BCC", b"2") is first


def test_what_is_not_mandatory_is_never_returned() -> None:
    confirms = sequencer(publish(mandatory=False))
    assert confirms.match_return("", "key", b"\0\0", b"body") is None
    assert sequencer().match_return("", "key", b"\0\0", b"body") is None


def test_a_publish_that_was_confirmed_is_not_returned() -> None:
    first, second = publish(), publish()
    confirms = sequencer(first, second)
    confirms.settle(1, False)
    assert confirms.match_return("", "key", b"\0\0", b"body") is second


def test_many_outstanding_publishes_cost_what_is_confirmed() -> None:
    confirms = sequencer(*(publish(str(number)) for number in range(100_000)))
    began = monotonic()
    for tag in range(10, 50_000, 10):
        assert len(confirms.settle(tag, True)) == 10
    for tag in range(50_000, 60_000):
        confirms.settle(tag, False)
    # The quadratic way takes minutes.
    assert monotonic() - began < 10.0


def test_it_knows_whether_somebody_waits_for_all_that_may_be_unseen() -> None:
    confirms: ConfirmSequencer = ConfirmSequencer()

    def all_are_awaited() -> bool:
        return confirms.all_are_awaited

    assert all_are_awaited()
    confirms.skip()
    assert not all_are_awaited()
    confirms.expect(publish("q", mandatory=False))
    confirms.settle(2, False)  # the broker looks at them in order
    assert all_are_awaited()
    confirms.expect(publish("q", mandatory=False))
    confirms.skip()
    confirms.settle(3, True)
    assert not all_are_awaited()
    confirms.settle(4, False)
    assert all_are_awaited()
