"""The ledger of acknowledgements against a broker that forgives nothing."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from greenconn.transport.amqp.acks import AckTracker, TransactionAckTracker


class Broker:
    """One channel of RabbitMQ: it closes the channel (here: fails) over each wrong ack."""

    def __init__(self) -> None:
        self.last_tag = 0
        self.unacked: dict[int, None] = {}
        self.acked: set[int] = set()
        self.rejected: set[int] = set()
        self.frames = 0

    def deliver(self, needs_ack: bool) -> int:
        """A delivery; those without acks take a tag too."""
        self.last_tag += 1
        if needs_ack:
            self.unacked[self.last_tag] = None
        return self.last_tag

    def ack(self, tag: int, multiple: bool) -> None:
        self.frames += 1
        assert tag in self.unacked, f"406 PRECONDITION_FAILED - unknown delivery tag {tag}"
        for each in [each for each in self.unacked if each == tag or (multiple and each <= tag)]:
            del self.unacked[each]
            self.acked.add(each)

    def reject(self, tag: int) -> None:
        assert tag in self.unacked, f"406 PRECONDITION_FAILED - unknown delivery tag {tag}"
        del self.unacked[tag]
        self.rejected.add(tag)

    def recover(self) -> set[int]:
        """Requeue all outstanding deliveries."""
        requeued = set(self.unacked)
        self.unacked.clear()
        return requeued


class AnswersMachine(RuleBasedStateMachine):
    """Deliveries, acks, rejects and flushes in any order; some deliveries are still on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.ledger = AckTracker()
        self.on_the_way: list[int] = []
        self.known: dict[int, None] = {}  # came, not settled by the program
        self.acked: set[int] = set()
        self.rejected: set[int] = set()

    @rule(needs_ack=st.booleans(), comes_at_once=st.booleans())
    def deliver(self, needs_ack: bool, comes_at_once: bool) -> None:
        tag = self.broker.deliver(needs_ack)
        if needs_ack:
            self.on_the_way.append(tag)
        if comes_at_once:
            self.receive()

    @rule()
    def receive(self) -> None:
        for tag in self.on_the_way:
            self.ledger.delivered(tag)
            self.known[tag] = None
        self.on_the_way.clear()

    @precondition(lambda self: self.known)
    @rule(choice=st.integers(0, 1000))
    def ack(self, choice: int) -> None:
        tag = list(self.known)[choice % len(self.known)]
        assert self.ledger.ack(tag)
        assert not self.ledger.ack(tag)
        del self.known[tag]
        self.acked.add(tag)

    @rule(choice=st.integers(0, 1000))
    def ack_up_to(self, choice: int) -> None:
        limit = choice % (self.broker.last_tag + 1)
        is_known = not limit or limit in self.known
        assert self.ledger.ack_up_to(limit) is is_known
        tags = [tag for tag in self.known if is_known and (not limit or tag <= limit)]
        for tag in tags:
            del self.known[tag]
        self.acked |= set(tags)

    @precondition(lambda self: self.known)
    @rule(choice=st.integers(0, 1000))
    def reject(self, choice: int) -> None:
        tag = list(self.known)[choice % len(self.known)]
        self.flush()
        assert self.ledger.reject(tag)
        assert not self.ledger.reject(tag)
        assert not self.ledger.ack(tag)
        self.broker.reject(tag)
        del self.known[tag]
        self.rejected.add(tag)

    @rule()
    def settle_the_unknown(self) -> None:
        unknown = self.broker.last_tag + 1
        assert not self.ledger.ack(unknown)
        self.flush()
        assert not self.ledger.reject(unknown)

    @rule()
    def flush(self) -> None:
        for tag, multiple in self.ledger.take_acks():
            self.broker.ack(tag, multiple)
        assert self.ledger.take_acks() == []
        assert self.broker.acked == self.acked

    @rule(acked_meanwhile=st.lists(st.integers(0, 1000), max_size=5))
    def recover(self, acked_meanwhile: list[int]) -> None:
        self.flush()
        self.ledger.begin_recover()
        self.broker.recover()
        # The program knows nothing of it yet, and goes on with what it has.
        self.receive()
        for choice in acked_meanwhile:
            if self.known:
                tag = list(self.known)[choice % len(self.known)]
                assert self.ledger.ack(tag) if choice % 2 else self.ledger.reject(tag)
                del self.known[tag]
        assert self.ledger.is_recovering
        assert self.ledger.take_acks() == []
        self.ledger.end_recover()
        for tag in self.known:
            assert not self.ledger.ack(tag)
        self.known.clear()
        self.flush()

    @invariant()
    def both_sides_agree(self) -> None:
        assert self.broker.rejected == self.rejected
        assert self.broker.acked <= self.acked
        assert set(self.broker.unacked) == (
            set(self.known) | set(self.on_the_way) | (self.acked - self.broker.acked)
        )


def test_what_is_written_is_what_was_settled() -> None:
    run_state_machine_as_test(AnswersMachine, settings=settings(stateful_step_count=60))


def tracker(*tags: int) -> AckTracker:
    """Return one to which these were delivered."""
    ledger = AckTracker()
    for tag in tags:
        ledger.delivered(tag)
    return ledger


def test_acks_in_order_become_one_frame() -> None:
    ledger = tracker(*range(1, 101))
    for tag in range(1, 51):
        assert ledger.ack(tag)
    assert ledger.take_acks() == [(50, True)]
    for tag in range(100, 50, -1):
        assert ledger.ack(tag)
    assert ledger.take_acks() == [(100, True)]
    assert not ledger.outstanding


def test_an_ack_of_all_names_a_tag_that_is_outstanding() -> None:
    ledger = tracker(2, 4, 6)
    assert not ledger.ack_up_to(5)  # as for a broker, also where 5 needed no ack
    assert ledger.ack_up_to(4)
    assert ledger.take_acks() == [(4, True)]
    assert ledger.ack_up_to(0)
    assert ledger.take_acks() == [(6, False)]
    assert ledger.ack_up_to(0)
    assert ledger.take_acks() == []


def test_two_recovers_at_once_end_with_the_second_reply() -> None:
    ledger = AckTracker()
    ledger.begin_recover()
    ledger.begin_recover()
    ledger.end_recover()
    ledger.delivered(1)
    assert ledger.is_recovering
    assert ledger.ack(1)
    assert ledger.take_acks() == []
    ledger.end_recover()
    ledger.delivered(2)
    assert ledger.ack(2)
    assert ledger.take_acks() == [(2, False)]


def transactional(*tags: int) -> TransactionAckTracker:
    ledger = TransactionAckTracker(AckTracker())
    for tag in tags:
        ledger.delivered(tag)
    return ledger


def test_a_transaction_merges_nothing() -> None:
    ledger = transactional(1, 2, 3)
    for tag in (1, 2, 3):
        assert ledger.ack(tag)
    assert ledger.take_acks() == [(1, False), (2, False), (3, False)]
    assert ledger.take_acks() == []


def test_a_rollback_puts_the_tags_back_in_their_order() -> None:
    ledger = transactional(1, 2, 3, 4)
    ledger.ack(3)
    ledger.take_acks()
    ledger.reject(1)
    settled = ledger.end_transaction()
    ledger.ack(2)  # of the next transaction
    ledger.delivered(5)
    ledger.roll_back(settled)
    assert list(ledger.outstanding) == [1, 3, 4, 5]
    assert ledger.ack_up_to(3)
    assert ledger.end_transaction() == [2, 1, 3]


def test_what_was_delivered_before_belongs_to_it() -> None:
    before = tracker(7)
    ledger = TransactionAckTracker(before)
    assert ledger.ack(7)
    assert not ledger.ack(7)


def test_requeues_in_a_transaction_are_written_one_by_one() -> None:
    ledger = transactional(1, 2, 3, 4, 5)
    for tag in (4, 1, 2):
        assert ledger.requeue(tag)
    assert not ledger.requeue(1)
    assert not ledger.requeue(9)
    assert ledger.ack(3)
    assert ledger.take_acks() == [(3, False)]
    # All, whatever the limit.
    assert ledger.take_requeues(1) == [(1, False), (2, False), (4, False)]
    assert ledger.take_requeues(10) == []
    assert ledger.end_transaction() == [4, 1, 2, 3]
    assert ledger.end_transaction() == []
    assert list(ledger.outstanding) == [5]
    assert ledger.requeue(5)
    ledger.begin_recover()
    assert ledger.take_requeues(10) == []


def test_requeues_are_merged_below_what_is_outstanding() -> None:
    ledger = tracker(*range(1, 8))
    for tag in (1, 2, 4, 5, 7):
        assert ledger.requeue(tag)
    assert ledger.take_requeues(2) == [(2, True), (4, False)]
    assert ledger.take_requeues(1) == [(5, False)]
    assert ledger.take_requeues(0) == []
    assert ledger.take_requeues(9) == [(7, False)]
    assert ledger.ack_up_to(0)
    assert ledger.take_acks() == [(6, True)]
    ledger.delivered(8)
    assert ledger.requeue(8)
    assert ledger.take_requeues(9) == [(8, False)]


def test_acks_are_not_merged_over_what_is_requeue() -> None:
    ledger = tracker(*range(1, 7))
    assert ledger.requeue(3)
    for tag in (1, 2, 4, 5):
        assert ledger.ack(tag)
    assert ledger.take_acks() == [(2, True), (4, False), (5, False)]
    assert ledger.ack(6)
    assert ledger.take_acks() == [(6, False)]
    assert ledger.take_requeues(9) == [(3, False)]


def test_acks_are_not_merged_over_what_is_outstanding_below_requeued_tags() -> None:
    ledger = tracker(*range(1, 7))
    assert ledger.requeue(5)
    for tag in (1, 3, 4):
        assert ledger.ack(tag)
    assert ledger.take_acks() == [(1, False), (3, False), (4, False)]
    for tag in (2, 6):
        assert ledger.ack(tag)
    # Nothing is outstanding, but 5 is not settled.
    assert ledger.take_acks() == [(2, False), (6, False)]


def test_nothing_is_requeued_while_the_broker_recovers() -> None:
    ledger = AckTracker()
    assert not ledger.is_recovering
    ledger.delivered(1)
    assert ledger.requeue(1)
    ledger.begin_recover()
    assert ledger.take_requeues(9) == []
    ledger.end_recover()
    assert not ledger.is_recovering
    assert ledger.take_requeues(9) == []  # the broker has requeued it by itself


def test_a_transaction_goes_on_with_what_was_requeued_before() -> None:
    before = tracker(1)
    assert before.requeue(1)
    before.begin_recover()
    ledger = TransactionAckTracker(before)
    assert ledger.is_recovering
    assert ledger.take_requeues(9) == []
    ledger = TransactionAckTracker(AckTracker())
    assert not ledger.is_recovering
    before = tracker(2)
    assert before.requeue(2)
    assert TransactionAckTracker(before).take_requeues(9) == [(2, False)]


def test_a_transaction_settles_only_what_is_outstanding() -> None:
    ledger = transactional(1, 2)
    assert ledger.reject(1)
    assert not ledger.reject(1)
    assert not ledger.ack_up_to(1)
    assert not ledger.ack(1)
    assert ledger.end_transaction() == [1]
    assert ledger.ack(2)
    ledger.begin_recover()
    assert ledger.take_acks() == []
