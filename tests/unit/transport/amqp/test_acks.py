"""Acks, rejects and requeues: what is written for them, and when nothing is."""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import spec
from gevent import get_hub

from greenconn.transport.amqp.acks import REQUEUES_AT_ONCE, Acks

ACK, NACK, REJECT = spec.Basic.Ack, spec.Basic.Nack, spec.Basic.Reject
MULTIPLE, REQUEUE = 1, 2


class Writer:
    """Notes the answers that are written, as ``(method, delivery tag, flags)``."""

    def __init__(self) -> None:
        self.answers: list[tuple[tuple[int, int], int, int]] = []
        self.error: BaseException | None = None
        self.later: list[Callable[[], None]] = []
        self.before_flush = self.later.append

    def write(self, frame: bytes) -> None:
        if self.error is not None:
            raise self.error
        class_id, method_id, tag, flags = unpack_from(">HHQB", frame, 7)
        self.answers.append(((class_id, method_id), tag, flags))


class Scene:
    """Acks between a channel and a link that only note what they are asked."""

    def __init__(self, *, has_nack: bool = True) -> None:
        self.writer = Writer()
        self.interrupted: list[tuple[str, BaseException]] = []
        channel: Any = SimpleNamespace(
            channel_id=1,
            cause=None,
            interrupted=lambda what, exc: self.interrupted.append((what, exc)),
        )
        link: Any = SimpleNamespace(
            writer=self.writer,
            hub_affinity=SimpleNamespace(hub=get_hub()),
        )
        self.channel = channel
        self.acks = Acks(channel, link, has_nack)

    def deliver(self, *tags: int) -> None:
        for tag in tags:
            self.acks.ledger.delivered(tag)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_acks_of_a_turn_are_merged(scene: Scene) -> None:
    scene.deliver(1, 2, 3, 4)
    for tag in (1, 2, 4):
        scene.acks.ledger.ack(tag)
    scene.acks.flush()
    assert scene.writer.answers == [(ACK, 2, MULTIPLE), (ACK, 4, 0)]
    scene.acks.flush()
    assert len(scene.writer.answers) == 2


def test_acks_leave_before_a_rejection(scene: Scene) -> None:
    scene.deliver(1, 2)
    scene.acks.ledger.ack(1)
    assert scene.acks.reject(2, False)
    assert scene.writer.answers == [(ACK, 1, 0), (REJECT, 2, 0)]
    assert not scene.acks.reject(2, False)
    assert len(scene.writer.answers) == 2


def test_requeues_are_written_at_the_end_of_the_turn(scene: Scene) -> None:
    scene.deliver(1, 2, 3)
    for tag in (1, 2, 2):
        scene.acks.requeue_unseen(tag)
    assert scene.writer.answers == []
    (flush,) = scene.writer.later
    flush()
    assert scene.writer.answers == [(NACK, 2, REQUEUE | MULTIPLE)]


def test_a_broker_without_nack_gets_rejections() -> None:
    scene = Scene(has_nack=False)
    scene.deliver(1)
    scene.acks.requeue_unseen(1)
    assert scene.writer.answers == [(REJECT, 1, 1)]


def test_many_returns_leave_in_groups(scene: Scene) -> None:
    count = REQUEUES_AT_ONCE + 5
    scene.deliver(*range(count + 1))
    for tag in range(1, count + 1):
        scene.acks.requeue_unseen(tag)  # tag 0 is in front of them all
    scene.acks.flush()
    assert len(scene.writer.answers) == REQUEUES_AT_ONCE
    scene.acks.finish_requeues(rejects_rest=False)
    assert len(scene.writer.answers) == count
    scene.acks.end()


def test_the_rest_is_rejected_so_that_many_are_requeued_by_one_nack(scene: Scene) -> None:
    count = REQUEUES_AT_ONCE + 5
    scene.deliver(*range(1, count + 2))
    for tag in range(2, count + 2):
        scene.acks.requeue_unseen(tag)
    scene.acks.finish_requeues(rejects_rest=True)
    assert scene.writer.answers == [(REJECT, 1, 1), (NACK, count + 1, REQUEUE | MULTIPLE)]


def test_after_the_end_of_the_channel_nothing_is_written(scene: Scene) -> None:
    scene.deliver(1, 2, 3)
    scene.acks.ledger.ack(1)
    scene.acks.requeue_unseen(2)
    scene.channel.cause = ConnectionError("lost")
    scene.acks.end()
    scene.acks.requeue_unseen(3)
    scene.acks.give_credit(3)
    scene.acks.flush()
    assert scene.writer.answers == []


@pytest.mark.parametrize("method", ["flush", "reject", "put_back"])
def test_the_channel_learns_of_an_interruption(scene: Scene, method: str) -> None:
    scene.deliver(1, 2)
    error = scene.writer.error = KeyboardInterrupt()
    if method == "reject":
        with pytest.raises(KeyboardInterrupt):
            scene.acks.reject(1, True)
    else:
        if method == "flush":
            scene.acks.ledger.ack(1)
        else:
            scene.acks.requeue_unseen(1)
        with pytest.raises(KeyboardInterrupt):
            scene.acks.flush()
    assert [exc for _, exc in scene.interrupted] == [error]


def test_a_transaction_can_be_rolled_back(scene: Scene) -> None:
    scene.deliver(1, 2)
    scene.acks.begin_transactions()
    scene.acks.begin_transactions()
    scene.acks.ledger.ack(1)
    scene.acks.ledger.ack(2)
    scene.acks.flush()
    assert scene.writer.answers == [(ACK, 1, 0), (ACK, 2, 0)]  # not merged
    answered = scene.acks.end_transaction()
    assert answered == [1, 2]
    scene.acks.roll_back(answered)
    assert list(scene.acks.ledger.outstanding) == [1, 2]
    assert scene.acks.end_transaction() == []
